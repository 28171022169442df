"""How far a study has come, from outside: read from its store and its log alone, by any process that sees both.

What is done lies in the store, who works on what in its locks, how far they are in the log.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorascope.engine.events import CurvePoint, Event, StepProgress, StepStarted
from lorascope.engine.failure import Failure
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.store.lock import Owner, StepLock
from lorascope.plan.graph import Graph
from lorascope.plan.history import History, read_history
from lorascope.plan.labels import RunLabel
from lorascope.plan.phases import PHASES
from lorascope.plan.running import RunningGang, RunningStep
from lorascope.plan.steps.results import analysis_step
from lorascope.plan.time_left import TimeLeft, time_left
from lorascope.tracking.follow import LogFollower
from lorascope.tracking.pace import PaceMeter

State = Literal["done", "running", "failed", "blocked", "missing"]
_LOSS = "train/loss"


@dataclass(frozen=True)
class StudyStatus:
    """One look at a study. graph: as far as its searches have come. states: of every step, in the order of the graph, the
    analysis last once it can be named."""

    graph: Graph
    study: str
    at_s: float
    states: tuple[tuple[Step, RunLabel, State], ...]
    running: tuple[RunningGang, ...]
    left: TimeLeft | None

    @property
    def workers(self) -> list[tuple[str, int]]:
        """(host, process) of everybody who works on the store."""
        return sorted({(gang.host, gang.pid) for gang in self.running})

    def phases(self, chosen: Collection[str] | None = None) -> Mapping[str, Counter[str]]:
        """Phase -> state -> number of steps, of the phases that have any. chosen: ids of the steps that count."""
        kept = [(step.kind, state) for step, _, state in self.states if chosen is None or step.id in chosen]
        found = {phase.name: Counter(state for kind, state in kept if kind in phase.kinds) for phase in PHASES}
        return {name: states for name, states in found.items() if states}

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that could run: all is done, or what is not has failed or waits for what has."""
        states = {state for _, _, state in self.states}
        if not states <= {"done", "failed", "blocked"} or any(gang.is_of_study for gang in self.running):
            return False
        # Between two rounds of a search all there is may be done. A search without an optimum leaves runs waiting for ever.
        is_growing = bool(self.graph.waiting) and not all(search.is_over for search in self.graph.searches)
        return not is_growing or states != {"done"}


@dataclass
class _News:
    """What the log said of a step since it was last begun."""

    meter: PaceMeter = field(default_factory=PaceMeter)
    progress: StepProgress | None = None
    loss: float | None = None


@dataclass
class StatusReader:
    """Looks at one study again and again. plan: its steps as they are known at that time. clock: Unix time (an argument for
    tests)."""

    plan: Callable[[], Graph]
    store: Store
    log: Path
    clock: Callable[[], float] = time.time
    _locks: dict[str, StepLock] = field(default_factory=dict)
    _news: dict[str, _News] = field(default_factory=dict)
    _history: tuple[int, History] | None = None
    _done: set[str] = field(default_factory=set)
    _failures: dict[str, Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.plan()
        self._follower = LogFollower(self.log)

    def read(self) -> StudyStatus:
        """How the study stands now."""
        self.graph = self.plan()
        for event in self._follower.new_events():
            self._hear(event)
        owners = self._owners()
        ids = [step.id for step in self.graph.steps]
        self._done, self._failures = self.store.present(ids), self.store.failures(ids)
        states = self._states(owners)
        running = self._gangs(owners)
        return StudyStatus(
            self.graph, self.graph.study.name, self.clock(), tuple(states), tuple(running),
            self._time_left(states, running),
        )  # fmt: skip

    def _hear(self, event: Event) -> None:
        if event.step is None:
            return
        if isinstance(event, StepStarted):
            self._news[event.step] = _News()
        elif isinstance(event, StepProgress):
            news = self._news.setdefault(event.step, _News())
            news.progress = event
            news.meter.hear(event, at_s=event.time_s)
        elif isinstance(event, CurvePoint) and event.name == _LOSS:
            self._news.setdefault(event.step, _News()).loss = event.value

    def _owners(self) -> Mapping[str, tuple[Owner, float]]:
        """Step -> who holds its lock and since when, of every lock of the store that is held."""
        found = {}
        with self.store.guard():
            for step_id in self.store.locked():
                lock = self._locks.setdefault(step_id, self.store.lock(step_id))
                owner, since = lock.holder(), lock.changed_hands_at()
                if owner is not None and since is not None and not self.store.has(step_id):
                    found[step_id] = owner, since
        return found

    def _states(self, owners: Mapping[str, object]) -> list[tuple[Step, RunLabel, State]]:
        states: dict[str, State] = {}
        for step in self.graph.steps:
            states[step.id] = self._state(step, owners, states)
        found: list[tuple[Step, RunLabel, State]] = [
            (step, self.graph.labels[step.id], states[step.id]) for step in self.graph.steps
        ]
        if all(state in ("done", "failed", "blocked") for state in states.values()):
            failures = {i: self._failures[i] for i in states if states[i] == "failed"}
            done = [step_id for step_id, state in states.items() if state == "done"]
            last = analysis_step(self.graph, finished=done, failures=failures)
            if last is not None:
                self._done |= self.store.present([last.id])
                self._failures.update(self.store.failures([last.id]))
                found.append((last, RunLabel(), self._state(last, owners, states)))
        return found

    def _state(self, step: Step, owners: Mapping[str, object], states: Mapping[str, State]) -> State:
        if step.id in self._done:
            return "done"
        if step.id in owners:
            return "running"
        if step.id in self._failures:
            return "failed"
        if step.kind != "analysis" and any(states.get(dep) in ("failed", "blocked") for dep in step.deps.values()):
            return "blocked"
        return "missing"

    def _gangs(self, owners: Mapping[str, tuple[Owner, float]]) -> list[RunningGang]:
        groups: dict[tuple[str, int, str], list[str]] = {}
        for step_id, (owner, _) in owners.items():
            groups.setdefault((owner.host, owner.pid, step_id.partition("-")[0]), []).append(step_id)
        order = {step.id: place for place, step in enumerate(self.graph.steps)}
        return [
            RunningGang(
                kind=kind,
                host=host,
                pid=pid,
                since_s=min(owners[step_id][1] for step_id in members),
                members=tuple(self._running(i) for i in sorted(members, key=lambda i: (order.get(i, len(order)), i))),
            )
            for (host, pid, kind), members in sorted(groups.items())
        ]

    def _running(self, step_id: str) -> RunningStep:
        news = self._news.get(step_id, _News())
        label = str(self.graph.labels[step_id]) if step_id in self.graph.labels else None
        if step_id.startswith("analysis-"):
            label = "all runs"
        if news.progress is None:
            return RunningStep(step_id, label, loss=news.loss)
        told = news.progress
        return RunningStep(step_id, label, told.done, told.total, told.unit, news.loss, told.time_s, news.meter.pace)

    def _time_left(
        self, states: Sequence[tuple[Step, RunLabel, State]], running: Sequence[RunningGang]
    ) -> TimeLeft | None:
        missing = [(step, label) for step, label, state in states if state == "missing"]
        ours = [gang for gang in running if gang.is_of_study]
        if not missing and not ours:
            return None
        return time_left(
            self.graph,
            missing=missing,
            running=ours,
            steps={step.id: step for step, _, _ in states},
            history=self._read_history(done=sum(state == "done" for _, _, state in states)),
            now_s=self.clock(),
        )

    def _read_history(self, *, done: int) -> History:
        if self._history is None or self._history[0] != done:
            device = self._history[1].device if self._history else "cuda"
            self._history = done, read_history(self.store, device=device)
        return self._history[1]
