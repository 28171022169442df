"""How far a study has come, folded from its events: what both renderers read.

The estimate of the time left says what it rests on: the pace of each step that runs, and for those that wait what steps
of their own kind took. No kind stands in for another: of steps about which nothing is known it says how many there are.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from lorascope.engine.events import (
    Event,
    StepBlocked,
    StepFailed,
    StepFinished,
    StepHandedBack,
    StepProgress,
    StepStarted,
    StudyGrew,
    StudyStarted,
)
from lorascope.tracking.pace import PaceMeter

LONG_KINDS = ("train", "trial", "serving", "calibration")
"""The steps that take most of a study's time."""


@dataclass
class StepUnderWay:
    """A step under way, or several that one worker computes together. name: its id, or what theirs have in common.
    since: seconds on the clock of the `StudyProgress` it belongs to.
    """

    name: str
    worker: str
    since: float
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    rates: Mapping[str, float] = field(default_factory=dict)
    meter: PaceMeter = field(default_factory=PaceMeter)

    def hear(self, news: StepProgress, *, now: float) -> None:
        self.done, self.total, self.unit, self.rates = news.done, news.total, news.unit, news.rates
        self.meter.hear(news, at_s=now)

    @property
    def seconds_left(self) -> float | None:
        """By its own pace; None while it has none."""
        pace = self.meter.pace
        return None if pace is None or self.total is None else max(0.0, self.total - self.done) / pace

    def describe(self) -> str:
        """ "120/300 updates, 1,200 tokens/s"; without a rate before there is one."""
        if not self.unit:
            return ""
        amount = f"{self.done:,.0f}/{self.total:,.0f}" if self.total else f"{self.done:,.0f}"
        known = {name: value for name, value in self.rates.items() if value > 0}
        rates = [f"{value:,.0f} {name}" if value >= 10 else f"{value:.2f} {name}" for name, value in known.items()]
        return ", ".join([f"{amount} {self.unit}s", *rates])


@dataclass(frozen=True)
class RemainingTime:
    """seconds left, and what that rests on, for people. num_unknown: steps about which nothing is known, not in it."""

    seconds: float
    basis: str
    num_unknown: int = 0

    def __str__(self) -> str:
        """ "about 2 min 30 s left (from 2 finished train steps)"."""
        if not self.num_unknown:
            return f"about {in_words(self.seconds)} left (from {self.basis})"
        others = f"{self.num_unknown} other step{'s' if self.num_unknown > 1 else ''}"
        return f"at least {in_words(self.seconds)} left (from {self.basis}; nothing known of {others})"


class StudyProgress:
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
        self.running: dict[str, StepUnderWay] = {}
        self._planned: Mapping[str, int] = {}
        self._ended: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = {}
        self._most_at_once: Counter[str] = Counter()

    @property
    def settled(self) -> int:
        """Steps that need no more work: cached, finished, failed or blocked."""
        return self.cached + self.finished + len(self.failed) + len(self.blocked)

    @property
    def total(self) -> int:
        """The steps announced, and those that became known later (the analysis depends on what gets finished)."""
        return max(self._announced, self.settled + len(self.running))

    @property
    def elapsed(self) -> float:
        """Seconds since the study started."""
        return self.clock() - self.started

    @property
    def running_by_worker(self) -> list[StepUnderWay]:
        """What each worker does now."""
        return [gang[0] if len(gang) == 1 else _together(gang) for gang in self._gangs.values()]

    @property
    def _gangs(self) -> dict[tuple[str, str], list[StepUnderWay]]:
        """(worker, kind) -> the steps it holds."""
        gangs: dict[tuple[str, str], list[StepUnderWay]] = {}
        for step_id, step in self.running.items():
            gangs.setdefault((step.worker, kind_of(step_id)), []).append(step)
        return gangs

    def _begin(self, event: StudyStarted) -> None:
        """Count from nothing: what was heard before is of other steps, and only tells what a kind takes."""
        self.study, self._announced, self.cached = event.study, event.num_steps, event.num_cached
        self._planned = event.kinds
        self.finished = 0
        for told in (self.failed, self.blocked, self.running, self._ended):
            told.clear()

    def apply(self, event: Event) -> None:
        """Take in what an event says."""
        if isinstance(event, StudyStarted):
            self._begin(event)
        elif isinstance(event, StudyGrew):
            self._announced, self._planned = event.num_steps, event.kinds
        elif isinstance(event, StepStarted) and event.step:
            self.failed.pop(event.step, None)
            self.running[event.step] = StepUnderWay(event.step, event.worker, self.clock())
            self._most_at_once |= Counter(kind for _, kind in self._gangs)  # a worker may yet hand back all but one
        elif isinstance(event, StepHandedBack) and event.step:
            self.running.pop(event.step, None)
        elif isinstance(event, StepProgress) and event.step in self.running:
            self.running[event.step].hear(event, now=self.clock())
            self._most_at_once |= Counter(kind_of(step_id) for step_id in self.running)
        elif isinstance(event, StepFinished) and event.step:
            self.running.pop(event.step, None)
            self._seconds.setdefault(kind_of(event.step), []).append(event.seconds)
            self._ended[kind_of(event.step)] += 1
            self.finished += 1
        elif isinstance(event, StepFailed) and event.step:
            self.running.pop(event.step, None)
            if not event.retry:
                self.failed[event.step] = event.text
                self._ended[kind_of(event.step)] += 1
        elif isinstance(event, StepBlocked) and event.step:
            self.blocked[event.step] = event.by
            self._ended[kind_of(event.step)] += 1

    def remaining(self) -> RemainingTime | None:
        """The time left, or None while little supports an estimate: where nothing is known of the steps that take long,
        there is no figure rather than one that will grow. One kind after another, each as many at a time as it
        was seen to run at most."""
        running: dict[str, list[StepUnderWay]] = {kind: [] for kind in self._waiting}
        for step_id, step in self.running.items():
            running.setdefault(kind_of(step_id), []).append(step)
        seconds, known, bases = 0.0, 0, []
        for kind, steps in running.items():
            finished = self._seconds.get(kind, [])
            left = [self._left(step, finished) for step in steps]
            found = [own for own in left if own is not None]
            each = mean(finished) if finished else self._each(steps)
            waiting = self._waiting.get(kind, 0) if each is not None else 0
            if not found and not waiting:
                continue
            seconds += (sum(found) + waiting * (each or 0.0)) / max(1, self._most_at_once[kind])
            known += len(found) + waiting
            bases += _bases(kind, num_finished=len(finished), paces=[step.meter.pace for step in steps])
        if not known or self._has_unknown_work(running):
            return None
        return RemainingTime(seconds, " and ".join(bases), self.total - self.settled - known)

    def _has_unknown_work(self, running: Mapping[str, Sequence[StepUnderWay]]) -> bool:
        """Whether nothing is known yet of steps that take most of a study's time: a sum without them would mislead."""
        return any(
            (steps or self._waiting.get(kind)) and not self._seconds.get(kind) and self._each(steps) is None
            for kind, steps in running.items()
            if kind in LONG_KINDS
        )

    @property
    def _waiting(self) -> Mapping[str, int]:
        """Kind -> number of the steps that have not begun, of the kinds that were announced."""
        under_way = Counter(kind_of(step_id) for step_id in self.running)
        return {kind: max(0, count - self._ended[kind] - under_way[kind]) for kind, count in self._planned.items()}

    def _left(self, step: StepUnderWay, finished: Sequence[float]) -> float | None:
        """By its pace, or by what others of its kind took."""
        if step.seconds_left is not None or not finished:
            return step.seconds_left
        return max(0.0, mean(finished) - (self.clock() - step.since))

    def _each(self, steps: Iterable[StepUnderWay]) -> float | None:
        """What one step takes, by those that run and have a pace."""
        wholes = [self.clock() - step.since + step.seconds_left for step in steps if step.seconds_left is not None]
        return mean(wholes) if wholes else None


def _bases(kind: str, *, num_finished: int, paces: Sequence[float | None]) -> list[str]:
    """ "2 finished train steps", "the pace of the running train step"."""
    found = [f"{num_finished} finished {kind} step{'s' if num_finished > 1 else ''}"] if num_finished else []
    num_paced = sum(pace is not None for pace in paces)
    if num_paced:
        found.append(f"the pace of the running {kind} step{'s' if num_paced > 1 else ''}")
    return found


def _together(gang: Sequence[StepUnderWay]) -> StepUnderWay:
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
