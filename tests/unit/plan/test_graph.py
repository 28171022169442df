"""The graph of a study: what is a step's identity and what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from small_study import STUDY, write_small_study

from lorascope.data.sources import SourceDescription
from lorascope.engine.step import Resources
from lorascope.plan.graph import build_graph
from lorascope.plan.steps.results import analysis_step
from lorascope.plan.steps.runs import data_step
from lorascope.study.loading.load import load_study
from lorascope.study.methods.base import MethodBase
from lorascope.study.methods.full import FullSpec
from lorascope.study.spec import Study


def ids(path: Path) -> set[str]:
    return {step.id for step in build_graph(load_study(path), data_dir=None).steps}


def test_a_study_has_a_step_for_every_run_and_shares_the_rest(tmp_path: Path) -> None:
    graph = build_graph(load_study(write_small_study(tmp_path)), data_dir=None)
    kinds = Counter(step.kind for step in graph.steps)
    assert kinds == {"data": 1, "tokens": 1, "baseline": 1, "sanity": 2, "train": 4, "evaluate": 4, "drift": 2}
    assert len({step.id for step in graph.steps}) == len(graph.steps)


def test_dependencies_come_before_what_needs_them(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in build_graph(load_study(write_small_study(tmp_path)), data_dir=None).steps:
        assert set(step.deps.values()) <= seen
        seen.add(step.id)


def test_place_and_the_names_of_arms_are_no_part_of_identity(tmp_path: Path) -> None:
    renamed = STUDY.replace("{kind: lora,", "{kind: lora, name: low-rank,").replace(": lora, ", ": low-rank, ")
    here = ids(write_small_study(tmp_path / "here"))
    there = ids(write_small_study(tmp_path / "there", renamed.replace("{kind: low-rank,", "{kind: lora,")))
    assert here == there


def test_no_step_holds_a_path_in_its_params(tmp_path: Path) -> None:
    for step in build_graph(load_study(write_small_study(tmp_path)), data_dir=None).steps:
        assert str(tmp_path) not in repr(step.params)


def test_what_changes_results_changes_identity(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    before = ids(path)
    for override, unchanged in (
        ("train.epochs=5", {"data", "tokens", "baseline"}),
        ("methods.lora.rank=2", {"data", "tokens", "baseline"}),
        ("data.split_seed=1", set()),
        ("train.max_length=16", {"data"}),
    ):
        after = build_graph(load_study(path, overrides=[override]), data_dir=None).steps
        assert {step.kind for step in after if step.id in before} >= unchanged
        assert any(step.kind == "train" and step.id not in before for step in after), override


def test_settings_of_drift_change_drift_alone_and_its_text_may_move(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    for name, content in (("a.txt", "one text"), ("b.txt", "one text"), ("c.txt", "another")):
        (tmp_path / name).write_text(content)
    without, *with_text = (
        {step.id for step in build_graph(load_study(path, overrides=overrides), data_dir=None).steps}
        for overrides in ([], *([f"measure.drift.text={name}"] for name in ("a.txt", "b.txt", "c.txt")))
    )
    assert all(step.startswith("drift-") for step in without ^ with_text[0])
    assert with_text[0] == with_text[1]
    assert with_text[0] != with_text[2]


def test_gangs_are_no_part_of_any_identity(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    known = set()
    for gang in ("auto", "off", "3"):
        graph = build_graph(load_study(path, overrides=[f"train.gang={gang}"]), data_dir=None)
        analysis = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
        assert analysis is not None
        known.add((*(step.id for step in graph.steps), analysis.id))
        assert not any("gang" in repr(step.params) for step in (*graph.steps, analysis))
    assert len(known) == 1


def gangs(path: Path, *overrides: str) -> dict[str, set[Resources]]:
    """What the training steps of each method say of gangs."""
    found: dict[str, set[Resources]] = {}
    graph = build_graph(load_study(path, overrides=overrides), data_dir=None)
    for step in graph.of_kind("train"):
        found.setdefault(graph.labels[step.id].method or "", set()).add(step.resources)
    assert {step.resources for step in graph.steps if step.kind != "train"} == {Resources()}
    return found


@pytest.mark.parametrize(("gang", "limit"), [("auto", None), ("off", 1), ("1", 1), ("12", 12)])
def test_the_studys_gang_is_the_limit_of_its_training_steps(tmp_path: Path, gang: str, limit: int | None) -> None:
    found = gangs(write_small_study(tmp_path), f"train.gang={gang}")
    assert {resources.gang_limit for each in found.values() for resources in each} == {limit}


def test_runs_that_differ_in_what_is_their_own_share_a_gang(tmp_path: Path) -> None:
    path = write_small_study(
        tmp_path, STUDY.replace("  - {kind: full", "  - {kind: lora, name: other}\n  - {kind: full")
    )
    for override in (
        "methods.other.rank=2", "methods.other.alpha=1", "methods.other.dropout=0.5", "methods.other.learning_rate=1",
        "methods.other.train={epochs: 1, warmup: 0, schedule: cosine, weight_decay: 0, gradient_clip: 9}",
    ):  # fmt: skip
        found = gangs(path, override)
        assert len(found["lora"]) == 1, "the seeds of one arm"
        assert found["lora"] == found["other"], override
        assert found["lora"] != found["full"]


def test_runs_that_differ_in_what_a_gang_shares_do_not_share_one(tmp_path: Path) -> None:
    path = write_small_study(
        tmp_path, STUDY.replace("  - {kind: full", "  - {kind: lora, name: other}\n  - {kind: full")
    )
    for override in ("sites=[query]", "train.batch_size=8", "train.micro_batch_size=4"):
        found = gangs(path, f"methods.other.{override}")
        assert found["lora"] != found["other"], override
    assert not set().union(*gangs(path).values()) & set().union(*gangs(path, "train.precision=bf16").values())


def test_a_method_that_cannot_gang_is_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FullSpec, "gangs", MethodBase.gangs)
    found = gangs(write_small_study(tmp_path))
    assert found["full"] == {Resources()}
    assert all(resources.gang_key for resources in found["lora"])


def test_a_changed_file_is_other_data(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    before = ids(path)
    with (tmp_path / "train.csv").open("a") as stream:
        stream.write("the film is good,good\n")
    assert not before & ids(path)


def test_a_method_overrides_training_for_itself(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    study = load_study(path, overrides=["methods.lora.train={weight_decay: 0.5}"])
    decays = {
        step.params["method"]["kind"]: step.params["train"]["weight_decay"]
        for step in build_graph(study, data_dir=None).of_kind("train")
    }
    assert decays == {"full": 0.01, "lora": 0.5}


def test_settings_of_a_task_change_its_own_steps_alone(tmp_path: Path) -> None:
    plain = "\n".join(line for line in STUDY.splitlines() if "drift" not in line)
    other = "  - {name: mood, kind: classification, train: train.csv, text: text, label: label, SETTINGS}\nmethods:"
    with_two = plain.replace("methods:", other)
    before = write_small_study(tmp_path / "a", with_two.replace(", SETTINGS", ""))
    settings = "settings: {max_length: 16, epochs: 2}, methods: {lora: {learning_rate: 1e-4}}"
    after = write_small_study(tmp_path / "b", with_two.replace("SETTINGS", settings))
    graph = build_graph(load_study(after), data_dir=None)
    known = ids(before)
    assert {graph.labels[step.id].task for step in graph.steps if step.id not in known} == {"mood"}
    assert all(step.id in known for step in graph.of_kind("data"))
    of_mood = [step for step in graph.of_kind("train") if graph.labels[step.id].task == "mood"]
    assert {step.params["train"]["epochs"] for step in of_mood} == {2}
    assert {step.params["learning_rate"] for step in of_mood if step.params["method"]["kind"] == "lora"} == {1e-4}
    tokens = {graph.labels[step.id].task: step.params["max_length"] for step in graph.of_kind("tokens")}
    assert tokens == {"sentiment": 32, "mood": 16}


def test_a_named_task_keeps_the_identity_that_it_had() -> None:
    """Its examples do not depend on what a task may set of training, so no key of that may be in the params."""
    study = Study.model_validate(
        {"name": "s", "question": "?", "models": ["minilm-l6"], "tasks": ["rte"], "methods": ["full"]}
    )
    step = data_step(study, study.tasks[0], SourceDescription({"hub": "nyu-mll/glue"}), study.data)
    assert set(step.params) == {"task", "source", "protocol", "data"}
    assert step.params["task"] == {"name": "rte"}
