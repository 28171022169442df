"""A tracker's process: what goes wrong in it stays in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tracked_fixture import TRAIN, scoring, training, whole_study

from lorascope.engine.events import CurvePoint, Event, Notice, StepStarted, StudyStarted
from lorascope.study.track import Attached, TrackioSpec
from lorascope.tracking.feed import Patience, TrackerFeed


class Fed:
    """A feed to one of `broken_trackers`, and what it said."""

    def __init__(
        self, directory: Path, tracker: str, *, artifacts: tuple[Attached, ...] = (), **patience: Patience
    ) -> None:
        self.said: list[Notice] = []
        self.directory = directory
        self.feed = TrackerFeed(
            TrackioSpec(kind="trackio", artifacts=artifacts), study="small", directory=directory, store=directory / "store",
            tell=self._hear, place=f"broken_trackers:{tracker}", **patience,
        )  # fmt: skip

    def _hear(self, event: Event) -> None:
        assert isinstance(event, Notice)
        self.said.append(event)

    def told(self) -> list[list[Any]]:
        path = self.directory / "told.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_event_reaches_the_tracker_before_the_feed_is_closed(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "Writes")
    with fed.feed:
        for event in whole_study(tmp_path / "report.html"):
            fed.feed(event)
    told = fed.told()
    assert sum(line[1] == "log" for line in told) == 4 + 2, "four points of the run, two of the study"
    closed = [line[0] for line in told if line[1:] == ["close", "finished"]]
    assert closed == ["training: tiny / mrpc / lora / 1", "study: small"]
    assert fed.said == []


def test_a_tracker_that_raises_is_named_once_with_its_reason_and_log(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "Raises")
    with fed.feed:
        for event in [*training(), *scoring()]:
            fed.feed(event)
    (notice,) = fed.said
    assert notice.level == "warning"
    assert notice.text.startswith("trackio: ValueError: the server said no; the study goes on without it")
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_tracker_whose_process_dies_is_named_once(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "Dies")
    with fed.feed:
        for event in training():
            fed.feed(event)
    (notice,) = fed.said
    assert "ended with exit code 9; the study goes on without it" in notice.text


def test_a_tracker_that_hangs_does_not_hold_up_the_study(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "Hangs", patience=Patience(1.0, most_waiting=1000))
    for event in training():
        fed.feed(event)
    for at in range(100_000):  # far more than a pipe and the queue hold
        fed.feed(CurvePoint(step=TRAIN, name="train/loss", value=1.0, at=at))
    fed.feed.close()  # the tracker would hang for an hour
    texts = [notice.text for notice in fed.said]
    assert "trackio: gave no sign for 1 s and was stopped" in texts[0]
    assert "did not keep up" in texts[1] and len(texts) == 2


def test_what_a_slow_tracker_misses_is_points_of_curves_and_no_step(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "IsSlow", patience=Patience(most_waiting=100))
    with fed.feed:
        fed.feed(training()[0])
        fed.feed(StepStarted(step=TRAIN, worker="w"))
        for at in range(20_000):
            fed.feed(CurvePoint(step=TRAIN, name="train/loss", value=1.0, at=at))
        for event in [*training()[2:], *scoring()]:
            fed.feed(event)
    told = fed.told()
    assert told[-1][1:] == ["close", "finished"]
    assert sum(line[1] == "log" for line in told) < 20_000
    (notice,) = fed.said
    assert "points of curves are missing there" in notice.text


def study_with_report(directory: Path) -> list[Event]:
    (directory / "results").mkdir()
    (directory / "results" / "report.html").write_text("what was found")
    return whole_study(directory / "results" / "report.html")


@pytest.mark.parametrize("tracker", ["UploadsSlowly", "WaitsForFilesAtTheEnd"])
def test_an_upload_that_takes_longer_than_the_patience_is_waited_for(tmp_path: Path, tracker: str) -> None:
    fed = Fed(tmp_path, tracker, artifacts=("report",), patience=Patience(2.0))
    with fed.feed:
        for event in study_with_report(tmp_path):
            fed.feed(event)
    assert ["study: small", "attach", "report", ["report.html"]] in fed.told()
    assert fed.told()[-1] == ["study: small", "close", "finished"]
    assert fed.said == []


def test_an_upload_that_never_ends_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "UploadsForEver", artifacts=("report",), patience=Patience(2.0, longest_upload_s=3.0))
    with fed.feed:
        for event in study_with_report(tmp_path):
            fed.feed(event)
    (notice,) = fed.said
    assert "gave no sign for 2 s and was stopped" in notice.text


def test_a_slow_end_without_files_is_no_upload(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "WaitsForFilesAtTheEnd", patience=Patience(2.0))
    with fed.feed:
        for event in study_with_report(tmp_path)[:3]:
            fed.feed(event)
        fed.feed(StepStarted(step=TRAIN, worker="w"))
    (notice,) = fed.said
    assert "gave no sign for 2 s" in notice.text


def test_an_interrupt_waits_for_no_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorascope.tracking.feed._PATIENCE_IF_INTERRUPTED_S", 2.0)
    fed = Fed(tmp_path, "UploadsForEver", artifacts=("report",))
    with pytest.raises(KeyboardInterrupt), fed.feed:
        for event in study_with_report(tmp_path):
            fed.feed(event)
        raise KeyboardInterrupt
    (notice,) = fed.said
    assert "gave no sign for 2 s and was stopped" in notice.text


def test_a_study_that_computes_nothing_starts_no_tracker(tmp_path: Path) -> None:
    fed = Fed(tmp_path / "tracking", "Writes")
    with fed.feed:
        fed.feed(StudyStarted(study="small", num_steps=2, num_cached=2))
    assert not (tmp_path / "tracking").exists()


def test_an_interrupt_does_not_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorascope.tracking.feed._PATIENCE_IF_INTERRUPTED_S", 0.5)
    fed = Fed(tmp_path, "Hangs")
    with pytest.raises(KeyboardInterrupt), fed.feed:
        for event in training():
            fed.feed(event)
        raise KeyboardInterrupt
    (notice,) = fed.said
    assert "gave no sign for 0.5 s and was stopped" in notice.text
