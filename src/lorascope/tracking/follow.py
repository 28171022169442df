"""Reading the log of a study while others write it: what is new since the last look, and never half a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorascope.engine.events import CurvePoint, Event, StepProgress, event_from_json


def _is_sound(event: Event) -> bool:
    """Whether what is counted with is a number: a log may have been edited."""
    numbers: list[Any] = [event.time_s]
    if isinstance(event, StepProgress):
        numbers += [event.done, 0 if event.total is None else event.total]
    if isinstance(event, CurvePoint):
        numbers.append(event.value)
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers) and (
        event.step is None or isinstance(event.step, str)
    )


class LogFollower:
    """Follows the events of `path`, which need not exist yet. A log that was replaced by a shorter one is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def new_events(self) -> Iterator[Event]:
        """The events whose lines were completed since the last call. What is no event of this lorascope is passed over."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                text = file.read()
        except FileNotFoundError:
            return
        complete = text.rfind(b"\n") + 1
        self._position += complete
        for line in text[:complete].splitlines():
            try:
                event = event_from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill, or of another version
                continue
            if _is_sound(event):
                yield event
