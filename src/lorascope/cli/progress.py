"""How far a study has come, folded from its events: what both renderers read.

The estimate of the time left says what it rests on: the mean time of the finished steps of the kinds that are running
now, or, before one has finished, how fast the running ones advance.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from lorascope.engine.events import (
    Event,
    StepBlocked,
    StepFailed,
    StepFinished,
    StepProgress,
    StepStarted,
    StudyGrew,
    StudyStarted,
)


@dataclass
class RunningStep:
    """A step under way, or several that one worker computes together. name: its id, or what theirs have in common.
    since: seconds on the clock of the `Progress` it belongs to.
    """

    name: str
    worker: str
    since: float
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """ "120/300 updates, 1,200 tokens/s"."""
        if not self.unit:
            return ""
        amount = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        rates = [f"{value:,.0f} {name}" if value >= 10 else f"{value:.2f} {name}" for name, value in self.rates.items()]
        return ", ".join([f"{amount} {self.unit}s", *rates])


@dataclass(frozen=True)
class Estimate:
    """seconds left, and what that rests on, for people."""

    seconds: float
    basis: str


class Progress:
    """The state of one study. clock: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.study = ""
        self._announced = 0
        self.cached = 0
        self.finished = 0
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.running: dict[str, RunningStep] = {}
        self._seconds: dict[str, list[float]] = {}
        self._workers: set[str] = set()

    @property
    def settled(self) -> int:
        """Steps that need no more work: cached, finished, failed or blocked."""
        return self.cached + self.finished + len(self.failed) + len(self.blocked)

    @property
    def total(self) -> int:
        """The steps announced, and those that came to light later (the analysis depends on what gets finished)."""
        return max(self._announced, self.settled + len(self.running))

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    @property
    def running_by_worker(self) -> list[RunningStep]:
        """What each worker does now."""
        gangs: dict[tuple[str, str], list[RunningStep]] = {}
        for step_id, step in self.running.items():
            gangs.setdefault((step.worker, kind_of(step_id)), []).append(step)
        return [gang[0] if len(gang) == 1 else _together(gang) for gang in gangs.values()]

    def apply(self, event: Event) -> None:
        if isinstance(event, StudyStarted):
            self.study, self._announced, self.cached = event.study, event.num_steps, event.num_cached
        elif isinstance(event, StudyGrew):
            self._announced = event.num_steps
        elif isinstance(event, StepStarted) and event.step:
            self._workers.add(event.worker)
            self.failed.pop(event.step, None)
            self.running[event.step] = RunningStep(event.step, event.worker, self.clock())
        elif isinstance(event, StepProgress) and event.step in self.running:
            step = self.running[event.step]
            step.done, step.total, step.unit, step.rates = event.done, event.total, event.unit, event.rates
        elif isinstance(event, StepFinished) and event.step:
            self.running.pop(event.step, None)
            self._seconds.setdefault(kind_of(event.step), []).append(event.seconds)
            self.finished += 1
        elif isinstance(event, StepFailed) and event.step:
            self.running.pop(event.step, None)
            if not event.retry:
                self.failed[event.step] = event.text
        elif isinstance(event, StepBlocked) and event.step:
            self.blocked[event.step] = event.by

    def remaining(self) -> Estimate | None:
        """The time left, or None while nothing supports an estimate."""
        pending = self.total - self.settled
        if pending <= 0:
            return None
        kinds = {kind_of(step_id) for step_id in self.running}
        measured = [seconds for kind in kinds for seconds in self._seconds.get(kind, [])]
        of = " and ".join(sorted(kinds))
        if measured:
            pace, basis = mean(measured), f"{len(measured)} finished {of} step{'s' if len(measured) > 1 else ''}"
        else:
            advancing = [
                (self.clock() - step.since) * step.total / step.done
                for step in self.running.values()
                if step.total and step.done
            ]
            if not advancing:
                return None
            pace, basis = mean(advancing), f"the pace of the running {of} step{'s' if len(advancing) > 1 else ''}"
        spent = sum(min(self.clock() - step.since, pace) for step in self.running.values())
        at_once = max(1, len(self._workers), len(self.running))
        return Estimate(max(0.0, pending * pace - spent) / at_once, basis)


def _together(gang: Sequence[RunningStep]) -> RunningStep:
    """Several steps as one, as far as the one that has most left to do, with the sum of their rates."""
    words = zip(*(step.name.split("-") for step in gang), strict=False)
    name = "-".join(same[0] for same in itertools.takewhile(lambda word: len(set(word)) == 1, words))
    last = max(gang, key=lambda step: (step.total or 0.0) - step.done)
    rates: Counter[str] = Counter()
    for step in gang:
        rates.update(step.rates)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return replace(last, name=f"{name} · {len(gang)} together", since=min(step.since for step in gang), rates=rates)


def kind_of(step_id: str) -> str:
    """A step's id begins with its kind."""
    return step_id.partition("-")[0]


def in_words(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
