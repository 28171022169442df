"""The one stream of events: what happens while a study runs, as typed data.

Steps, the training loop and the scheduler emit events; the console, the jsonl log and every tracker only render them.
An event is JSON: it crosses from a worker to the coordinator as one line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

Emit = Callable[["Event"], None]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. step: the id of the step it concerns (None for the study). time_s: Unix time, seconds."""

    kind: ClassVar[str] = "event"
    step: str | None = None
    time_s: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """The event as JSON; `event_from_json` reads it back."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StudyStarted(Event):
    """kinds: kind -> number of the steps that are to be computed."""

    kind: ClassVar[str] = "study-started"
    study: str
    num_steps: int
    num_cached: int
    kinds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyGrew(Event):
    """Steps were planned that could not be before. num_steps: all that are known now. text: what became possible. kinds:
    kind -> number of those that were not in the store when the study started."""

    kind: ClassVar[str] = "study-grew"
    num_steps: int
    text: str
    kinds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyFinished(Event):
    """Everything that could be computed is. seconds: wall-clock time."""

    kind: ClassVar[str] = "study-finished"
    study: str
    num_done: int
    num_cached: int
    num_failed: int
    num_blocked: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ReportWritten(Event):
    """The answer is there. path: the page to open. verdicts: hypothesis -> what was found of it."""

    kind: ClassVar[str] = "report-written"
    path: str
    verdicts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StepPlanned(Event):
    """What a step that is to be computed is in this study, for whoever shows it under a name.

    phase: the part of the study it belongs to; None: preparation, of which there is nothing to show. part_of: the step
    whose result it completes. labels: "model", "task", ... -> name. settings: the step's parameters.
    """

    kind: ClassVar[str] = "step-planned"
    name: str
    phase: str | None
    part_of: str | None
    labels: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepStarted(Event):
    """worker: its name. attempt: counts from 1."""

    kind: ClassVar[str] = "step-started"
    worker: str
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class StepHandedBack(Event):
    """Its worker took up more than it computes together, and leaves this step to whoever is free: it will start again."""

    kind: ClassVar[str] = "step-handed-back"


@dataclass(frozen=True, kw_only=True)
class StepProgress(Event):
    """done / total in `unit` ("update", "example"); `rates` are current figures such as {"tokens/s": 1200.0}.

    is_even: whether what lies between this news and others of its kind took time in proportion to what was done. Not where
    work is only just taken up, for preparation follows, nor amid units that were begun together, for the first bears it all.
    """

    kind: ClassVar[str] = "step-progress"
    done: float
    total: float | None
    unit: str
    rates: Mapping[str, float] = field(default_factory=dict)
    is_even: bool = True


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Event):
    """One measured point of a curve: name ("train/loss"), value, at update `at`."""

    kind: ClassVar[str] = "metric"
    name: str
    value: float
    at: int


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something a person should know: level is "info" or "warning"."""

    kind: ClassVar[str] = "notice"
    level: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    """figures: the numbers in its result ("test/accuracy"), for whoever shows them; the artifact has it whole."""

    kind: ClassVar[str] = "step-finished"
    seconds: float
    worker: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepFailed(Event):
    """error: the class name. text: what a person reads. traceback: for the log; retry: whether it is tried again."""

    kind: ClassVar[str] = "step-failed"
    error: str
    text: str
    traceback: str | None = None
    retry: bool = False


@dataclass(frozen=True, kw_only=True)
class StepBlocked(Event):
    """A step that cannot run because `by` failed."""

    kind: ClassVar[str] = "step-blocked"
    by: str


EVENTS: Mapping[str, type[Event]] = {
    event.kind: event
    for event in (
        StudyStarted, StudyGrew, StudyFinished, ReportWritten, StepPlanned, StepStarted, StepHandedBack, StepProgress,
        CurvePoint, Notice, StepFinished, StepFailed, StepBlocked,
    )
}  # fmt: skip


def fan_out(*sinks: Emit) -> Emit:
    """One Emit that passes every event to every sink. A sink that raises is dropped, and the others are told once: a
    tracker's trouble must not stop a study.
    """
    live = list(sinks)

    def emit(event: Event) -> None:
        troubles = []
        for sink in list(live):
            try:
                sink(event)
            except Exception as error:
                live[:] = [other for other in live if other is not sink]
                name = getattr(sink, "__name__", type(sink).__name__)
                troubles.append(f"events no longer reach {name}: {type(error).__name__}: {error}")
        for text in troubles:
            if live:
                emit(Notice(level="warning", text=text))
            else:
                logging.getLogger("lorascope").warning(text)

    return emit


def event_from_json(data: Mapping[str, Any]) -> Event:
    """The event that `to_json` wrote. Raises KeyError for an unknown kind."""
    fields = dict(data)
    return EVENTS[fields.pop("event")](**fields)
