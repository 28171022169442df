"""A log that somebody edited, or that a kill tore, says what it still can."""

from __future__ import annotations

import json
from pathlib import Path

from lorascope.engine.events import CurvePoint, StepProgress
from lorascope.tracking.follow import LogFollower


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    good = StepProgress(step="train-x", done=1, total=2, unit="update").to_json()
    bad = [
        b"\xff\xfe", b"[", b"[" * 50_000, b"5", b'"text"', b"{}", b'{"event": "of tomorrow"}',
        json.dumps({**good, "done": "many"}).encode(), json.dumps({**good, "time_s": None}).encode(),
        json.dumps({**good, "total": [1]}).encode(), json.dumps({**good, "step": 5}).encode(),
        json.dumps(CurvePoint(step="train-x", name="train/loss", value=float("nan"), at=1).to_json()).encode(),
    ]  # fmt: skip
    log = tmp_path / "events.jsonl"
    log.write_bytes(b"\n".join([*bad, json.dumps(good).encode(), b'{"event": "step-st']))
    assert [event.to_json() for event in LogFollower(log).new_events()] == [good]
