"""Events and their sinks: nothing is lost on the way, and no sink can stop a study."""

from __future__ import annotations

import json
import logging

import pytest

from lorascope.engine.events import (
    EVENTS,
    CurvePoint,
    Notice,
    StepFailed,
    StepProgress,
    StudyStarted,
    event_from_json,
    fan_out,
)
from lorascope.tracking.jsonl import JsonlSink


@pytest.mark.parametrize(
    "event",
    [
        StudyStarted(study="s", num_steps=3, num_cached=1, kinds={"train": 2}),
        StepProgress(step="train-x", done=3, total=None, unit="update", rates={"tokens/s": 12.5}),
        StepFailed(step="train-x", error="ValueError", text="wrong", traceback="..."),
        CurvePoint(step="train-x", name="train/loss", value=0.5, at=7),
    ],
)
def test_an_event_survives_the_way_through_json(event):
    assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


def test_every_event_has_its_own_name():
    assert len({event.kind for event in EVENTS.values()}) == len(EVENTS)


def test_every_sink_gets_every_event_in_order():
    first, second = [], []
    emit = fan_out(first.append, second.append)
    events = [CurvePoint(name="m", value=float(n), at=n) for n in range(5)]
    for event in events:
        emit(event)
    assert first == second == events


def test_a_failing_sink_is_dropped_and_the_others_are_told_once():
    heard = []

    def broken(event):
        raise ConnectionError("the tracker is away")

    emit = fan_out(broken, heard.append)
    events = [CurvePoint(name="m", value=0.0, at=n) for n in range(3)]
    for event in events:
        emit(event)
    notices = [event for event in heard if isinstance(event, Notice)]
    assert [notice.text for notice in notices] == [
        "events no longer reach broken: ConnectionError: the tracker is away"
    ]
    assert [event for event in heard if not isinstance(event, Notice)] == events


def test_two_failing_sinks_leave_the_third_at_work():
    heard = []

    def broken(event):
        raise OSError("full")

    def broken_too(event):
        raise OSError("full")

    emit = fan_out(broken, broken_too, heard.append)
    emit(CurvePoint(name="m", value=0.0, at=0))
    assert sum(isinstance(event, Notice) for event in heard) == 2
    assert sum(isinstance(event, CurvePoint) for event in heard) == 1


def test_the_last_sink_to_fail_is_reported_in_the_log(caplog):
    def broken(event):
        raise OSError("full")

    emit = fan_out(broken)
    with caplog.at_level(logging.WARNING, logger="lorascope"):
        for n in range(3):
            emit(CurvePoint(name="m", value=0.0, at=n))
    assert [record.getMessage() for record in caplog.records] == ["events no longer reach broken: OSError: full"]


def test_the_jsonl_sink_appends_one_line_an_event_and_flushes_each(tmp_path):
    path = tmp_path / "logs" / "events.jsonl"
    events = [CurvePoint(name="train/loss", value=1.0, at=1), Notice(level="info", text="zwei\nZeilen")]
    for event in events:
        with JsonlSink(path) as sink:
            sink(event)
            assert path.read_text().endswith("}\n"), "readable before the sink is closed"
    assert [event_from_json(json.loads(line)) for line in path.read_text().splitlines()] == events


def test_a_jsonl_sink_without_events_leaves_no_file(tmp_path):
    with JsonlSink(tmp_path / "events.jsonl"):
        pass
    assert not (tmp_path / "events.jsonl").exists()
