"""Which trackers are chosen, that they are checked before anything starts, and that they change nothing computed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lorascope import api
from lorascope.engine.events import StepFinished, StepStarted
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.plan.announce import announcing
from lorascope.plan.labels import RunLabel
from lorascope.plan.steps.results import analysis_step
from lorascope.study.loading.load import load_study
from lorascope.study.spec import Study
from lorascope.tracking.choice import chosen_trackers

STUDY = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [docstrings]
methods: [full, lora]
seeds: [1]
"""


def study(tmp_path: Path, track: str = "") -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + (f"track: {track}\n" if track else ""))
    return load_study(path)


def test_the_command_line_goes_before_the_study_and_keeps_its_settings(tmp_path: Path) -> None:
    asked = study(tmp_path, "[{kind: wandb, project: peft, entity: lab}, trackio]")
    assert [spec.kind for spec in chosen_trackers(asked, None)] == ["wandb", "trackio"]
    (wandb, tensorboard) = chosen_trackers(asked, ["wandb", "tensorboard"])
    assert (wandb.kind, getattr(wandb, "project", None)) == ("wandb", "peft")
    assert tensorboard.kind == "tensorboard"
    assert chosen_trackers(asked, ["none"]) == []
    assert chosen_trackers(study(tmp_path), None) == []


def test_a_tracker_that_is_none_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        chosen_trackers(study(tmp_path), ["wnadb"])
    assert str(caught.value) == (
        "--track: unknown tracker `wnadb`: did you mean `wandb`?\n  hint: allowed: trackio, wandb, mlflow, tensorboard, or none"
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Which distributions there are, as far as trackers ask."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_a_missing_package_names_the_extra_before_anything_starts(tmp_path: Path, installed: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        api.run(study(tmp_path, "[wandb]"), store=tmp_path / "store", results=tmp_path / "results")
    assert str(caught.value) == (
        "the tracker `wandb` needs the package wandb\n  hint: pip install 'lorascope[wandb]', or go without: --track none"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"study.yaml"}


def test_an_mlflow_that_is_too_old_is_refused_and_its_client_alone_will_do(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    installed["mlflow"] = "2.22.0"
    with pytest.raises(EnvironmentProblem, match=r"needs mlflow 3 or newer; found 2\.22\.0"):
        chosen_trackers(study(tmp_path), ["mlflow"])
    del installed["mlflow"]
    installed["mlflow-skinny"] = "3.17.2"
    assert [spec.kind for spec in chosen_trackers(study(tmp_path), ["mlflow"])] == ["mlflow"]


def test_tracking_is_no_part_of_any_identity(tmp_path: Path) -> None:
    def ids(track: str) -> list[str]:
        graph = api.graph(study(tmp_path, track))
        last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
        assert last is not None
        return [*(step.id for step in graph.steps), last.id]

    assert ids("") == ids("[trackio, {kind: wandb, entity: lab, artifacts: [weights]}]")


def test_results_are_read_without_a_tracker(tmp_path: Path) -> None:
    code = (
        "import sys, lorascope.api, lorascope.cli.study_verbs, lorascope.tracking.feed;"
        "found = {'wandb', 'trackio', 'mlflow', 'tensorboard', 'torch'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_every_step_but_preparation_has_a_phase(tmp_path: Path) -> None:
    graph = api.graph(study(tmp_path))
    unknown = replace(graph.steps[0], kind="of_tomorrow")
    graph = replace(graph, steps=[*graph.steps, unknown], labels={**graph.labels, unknown.id: RunLabel()})
    said: list[Any] = []
    emit = announcing(said.append, lambda: graph)
    for step in graph.steps:
        emit(StepStarted(step=step.id, worker="w"))
    phases = {event.step.partition("-")[0]: event.phase for event in said if event.kind == "step-planned"}
    assert phases == {
        "data": None,
        "tokens": None,
        "baseline": "sanity and baselines",
        "sanity": "sanity and baselines",
        "train": "training",
        "evaluate": "training",
        "of_tomorrow": None,
    }


def test_a_step_is_announced_with_what_completes_it_before_it_starts(tmp_path: Path) -> None:
    graph = api.graph(study(tmp_path))
    train, evaluate = (graph.of_kind(kind)[0] for kind in ("train", "evaluate"))
    said: list[Any] = []
    emit = announcing(said.append, lambda: graph)
    for event in (
        StepStarted(step=train.id, worker="w"),
        StepFinished(step=train.id, seconds=1, worker="w"),
        StepStarted(step=evaluate.id, worker="w"),
        StepStarted(step="analysis-small-00", worker="w"),
    ):
        emit(event)
    assert [(event.kind, event.step) for event in said] == [
        ("step-planned", train.id),
        ("step-planned", evaluate.id),
        ("step-started", train.id),
        ("step-finished", train.id),
        ("step-started", evaluate.id),
        ("step-started", "analysis-small-00"),
    ]
    assert (said[0].phase, said[0].name, said[1].part_of) == ("training", "minilm-l6 / docstrings / full / 1", train.id)
    assert said[0].settings == train.params
    assert said[0].labels == {key: name for key, name in asdict(graph.labels[train.id]).items() if name}
