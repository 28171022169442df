"""From events to runs in a tracker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken_trackers import Writes
from tracked_fixture import EVALUATE, NAME, TRAIN, planned, scoring, training, whole_study

from lorascope.engine.events import CurvePoint, Event, StepBlocked, StepFailed, StepFinished, StepStarted, StudyStarted
from lorascope.engine.figures import figures_in
from lorascope.tracking.recorder import Recorder
from lorascope.tracking.tracker import TrackingPlace

RUN = f"training: {NAME}"


def recorded(directory: Path, events: list[Event], *, artifacts: tuple[str, ...] = ()) -> list[list[Any]]:
    """What a tracker was told of these events, by a recorder that then comes to its end."""
    (directory / "told.jsonl").unlink(missing_ok=True)
    tracker = Writes(None, TrackingPlace("small", directory, lambda text: None))
    recorder = Recorder(
        tracker,
        ledger=directory / "runs.jsonl",
        artifacts=artifacts,
        find_artifact=lambda step: directory / "store" / step,
    )
    for event in events:
        recorder(event)
    recorder.close()
    told = directory / "told.jsonl"
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def test_a_run_is_open_from_its_first_update_to_its_score(tmp_path: Path) -> None:
    told = recorded(tmp_path, [*training(), *scoring()])
    assert [line[1] for line in told] == ["open", "log", "log", "log", "log", "summarise", "summarise", "close"]
    config = {"model": "tiny", "task": "mrpc", "method": "lora", "seed": "1", "step": TRAIN}
    settings = {"learning_rate": 0.01, "method": {"rank": 4, "sites": ["query"]}}
    assert told[0] == [RUN, "open", "train", {**config, "settings": settings}, None]
    assert told[5:7] == [
        [RUN, "summarise", {"trainable_parameters": 1090.0, "seconds": 3.0}],
        [RUN, "summarise", {"test/accuracy": 0.75}],
    ]
    assert told[-1] == [RUN, "close", "finished"]


def test_the_points_of_one_update_are_logged_together(tmp_path: Path) -> None:
    logged = [line[2:] for line in recorded(tmp_path, training()) if line[1] == "log"]
    assert logged[0] == [10, {"train/loss": 0.8, "learning_rate": 0.01}]
    assert logged[-1] == [40, {"train/loss": 0.2, "learning_rate": 0.0025, "tokens_per_second": 1200.0}]
    assert [at for at, _ in logged] == [10, 20, 30, 40]


def test_runs_of_a_gang_are_kept_apart(tmp_path: Path) -> None:
    other = replace(planned("train-tiny-mrpc-lora-2-00"), name="second")
    events: list[Event] = [planned(TRAIN), other]
    for at in (1, 2):
        events += [
            CurvePoint(step=step, name="train/loss", value=value, at=at)
            for step, value in ((TRAIN, 1.0), ("train-tiny-mrpc-lora-2-00", 2.0))
        ]
    logged = [line for line in recorded(tmp_path, events) if line[1] == "log"]
    assert sorted(logged) == [
        ["training: second", "log", 1, {"train/loss": 2.0}],
        ["training: second", "log", 2, {"train/loss": 2.0}],
        [RUN, "log", 1, {"train/loss": 1.0}],
        [RUN, "log", 2, {"train/loss": 1.0}],
    ]


def test_a_failed_step_closes_its_run_as_failed_with_the_reason(tmp_path: Path) -> None:
    events = training()[:3] + [StepFailed(step=TRAIN, error="GateFailure", text="the loss became nan")]
    told = recorded(tmp_path, events)
    assert told[-2:] == [[RUN, "summarise", {"failure": "the loss became nan"}], [RUN, "close", "failed"]]


def test_a_step_that_is_tried_again_has_not_failed(tmp_path: Path) -> None:
    events = training()[:3] + [StepFailed(step=TRAIN, error="Lost", text="worker lost", retry=True)]
    assert recorded(tmp_path, events)[-1] == [RUN, "close", "interrupted"]


def test_a_run_whose_score_cannot_come_is_closed(tmp_path: Path) -> None:
    told = recorded(tmp_path, [*training(), StepBlocked(step=EVALUATE, by="data-mrpc-00")])
    assert told[-1] == [RUN, "close", "finished"]


def test_a_study_that_goes_on_goes_on_in_the_same_run(tmp_path: Path) -> None:
    assert recorded(tmp_path, training()[:5])[-1] == [RUN, "close", "interrupted"]
    again = recorded(tmp_path, [*training(), *scoring()])
    assert again[0][-1] == RUN
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1


def test_a_score_finds_the_run_that_an_earlier_process_trained(tmp_path: Path) -> None:
    recorded(tmp_path, training())
    told = recorded(tmp_path, [planned(TRAIN), planned(EVALUATE, part_of=TRAIN), *scoring()])
    assert [line[1] for line in told] == ["open", "summarise", "close"]
    assert told[0][-1] == RUN and told[-1] == [RUN, "close", "finished"]


def test_preparation_is_no_run(tmp_path: Path) -> None:
    step = "tokens-tiny-mrpc-00"
    events = [
        planned(step, phase=None),
        StepStarted(step=step, worker="w"),
        StepFinished(step=step, seconds=1, worker="w"),
    ]
    assert recorded(tmp_path, events) == []


def test_the_study_is_a_run_with_its_verdicts(tmp_path: Path) -> None:
    told = [line for line in recorded(tmp_path, whole_study(tmp_path / "report.html")) if line[0] == "study: small"]
    assert [line[1] for line in told] == ["open", "log", "log", "summarise", "summarise", "close"]
    assert told[2] == ["study: small", "log", 2, {"steps/done": 2.0, "steps/failed": 0.0}]
    assert told[4] == ["study: small", "summarise", {"verdict/H1": "supported"}]
    assert told[5] == ["study: small", "close", "finished"]


def test_report_and_weights_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    results, export = tmp_path / "results", tmp_path / "store" / TRAIN / "export"
    for file in ("report.html", "figures/forest.png", "tracking/wandb/log.txt", "events.jsonl"):
        (results / file).parent.mkdir(parents=True, exist_ok=True)
        (results / file).write_text("x")
    export.mkdir(parents=True)
    (export / "adapter.safetensors").write_text("x")
    told = recorded(tmp_path, whole_study(results / "report.html"), artifacts=("report", "weights"))
    assert [line[1:] for line in told if line[1] == "attach"] == [
        ["attach", "weights", ["adapter.safetensors"]],
        ["attach", "report", ["figures/forest.png", "report.html"]],
    ]
    assert not [line for line in recorded(tmp_path, whole_study(results / "report.html")) if line[1] == "attach"]


def test_a_study_without_steps_is_still_shown(tmp_path: Path) -> None:
    told = recorded(tmp_path, [StudyStarted(study="small", num_steps=0, num_cached=0)])
    assert [line[1] for line in told] == ["open", "close"]


@pytest.mark.parametrize(
    ("result", "figures"),
    [
        ({"test": {"accuracy": 0.5, "f1": 1}, "note": "text"}, {"test/accuracy": 0.5, "test/f1": 1.0}),
        ({"gates": [{"gate": "census", "passed": True}]}, {"gates/census/passed": 1.0}),
        ({"scores": [{"name": "random", "f1": 0.1}, {"name": "random", "f1": 0.2}]},
         {"scores/random/f1": 0.1, "scores/random 2/f1": 0.2}),
        ({"layers": [1, 2, 3], "energy": None, "loss": float("nan")}, {}),
    ],
)  # fmt: skip
def test_figures_are_the_numbers_of_a_result(result: dict[str, Any], figures: dict[str, float]) -> None:
    assert figures_in(result) == figures
