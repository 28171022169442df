"""Runs a graph of steps: only what is missing, nothing twice, and a failure stops no more than what depends on it.

The scheduler holds no state that matters: what is done is in the store, who works on what is in its locks. So it can be
killed at any time and started again, and several coordinators on one store share the work.
"""

from __future__ import annotations

import graphlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lorascope.engine.events import Emit, StepBlocked, StepFailed
from lorascope.engine.executor import Completion, Executor
from lorascope.engine.failure import Failure
from lorascope.engine.run import can_gang
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store, StoreProblem
from lorascope.engine.store.lock import StepLock
from lorascope.errors import OutOfMemory

_SMALL_GANG = 4


@dataclass(frozen=True)
class Computed:
    """What became of every step. done: computed by this call. cached: there before, or computed by another process.
    failed: id -> failure. blocked: id -> id of the failed step it waits for. seconds: wall-clock time.
    """

    done: list[str]
    cached: list[str]
    failed: dict[str, Failure]
    blocked: dict[str, str]
    seconds: float


def execute(
    steps: Sequence[Step],
    *,
    store: Store,
    executor: Executor,
    emit: Emit,
    poll_s: float = 0.5,
    more: Callable[[], Sequence[Step]] = tuple,
) -> Computed:
    """Compute the missing ones of `steps` in dependency order, in the order given where that leaves a choice.

    poll_s: how often to look at steps that other processes work on. more: asked whenever steps have ended for those that
    can be planned only now; what it gives may hold known steps. Closes the executor and raises on when interrupted, and for
    a StoreProblem, after which no step could succeed. Raises AssertionError for a graph that is none.
    """
    started = time.monotonic()
    try:
        state = _Scheduling(store, executor, emit)
        state.add(steps)
        while state.grow(more) or state.is_under_way():
            state.submit_ready()
            for completion in executor.poll(emit, timeout_s=poll_s):
                state.settle(completion)
            state.look_at_others(poll_s)
    except BaseException:
        executor.close()
        raise
    seconds = time.monotonic() - started
    return Computed(state.done, state.cached, state.failed, state.blocked, seconds)


def _is_of_its_place(failure: Failure) -> bool:
    """Whether the step may well succeed here, or there once its device is free: where it failed, memory ran short."""
    return isinstance(failure.to_error(), OutOfMemory)


def _likeness(step: Step) -> tuple[str, str | None]:
    """What steps share that may be computed together."""
    return step.kind, step.resources.gang_key


def _assert_complete(graph: dict[str, Step], store: Store) -> None:
    for step in graph.values():
        for role, dep in step.deps.items():
            assert dep in graph or store.has(dep), f"{step.id} needs {dep} as {role}, which is neither given nor stored"
    try:
        graphlib.TopologicalSorter({step.id: step.deps.values() for step in graph.values()}).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"the steps need each other in a circle: {' -> '.join(error.args[1])}") from None


@dataclass
class _Elsewhere:
    """A step that another process works on. before: its failure on record when we found it busy."""

    lock: StepLock
    before: Failure | None


@dataclass
class _Scheduling:
    """The state of one `execute`: each step is waiting, ready, running, elsewhere, or settled (one of the outcomes)."""

    store: Store
    executor: Executor
    emit: Emit
    graph: dict[str, Step] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order: dict[str, int] = {}
        self._generation: dict[str, int] = {}  # the number of the addition that brought a step
        self._num_additions = 0
        self._ready: list[str] = []
        self._running: dict[str, list[Step]] = {}  # step -> the gang it is in, as far as it was not handed back
        self._elsewhere: dict[str, _Elsewhere] = {}
        self._looked_at = 0.0
        self._most_together: dict[tuple[str, str | None], int] = {}  # likeness -> how many are worth giving
        self._missing_deps: dict[str, set[str]] = {}
        self._dependents: dict[str, list[str]] = {}
        self._num_asked = -1

    def add(self, steps: Sequence[Step]) -> None:
        """Take in those steps that are not known yet."""
        added = {step.id: step for step in steps if step.id not in self.graph}
        if not added:
            return
        self.graph.update(added)
        self._num_additions += 1
        self._generation.update(dict.fromkeys(added, self._num_additions))
        _assert_complete(self.graph, self.store)
        self._order = {step_id: place for place, step_id in enumerate(self.graph)}
        with self.store.guard():
            there = self.store.present(added)
        self.cached += [step_id for step_id in added if step_id in there]
        present = {*self.cached, *self.done}
        missing = [step for step in added.values() if step.id not in present]
        if missing and not self._missing_deps:
            with self.store.guard():
                self.store.sweep()
        self.store.save_steps(missing)
        for step in missing:
            self._missing_deps[step.id] = {
                dep for dep in step.deps.values() if dep in self.graph and dep not in present
            }
            for dep in self._missing_deps[step.id]:
                self._dependents.setdefault(dep, []).append(step.id)
            if not self._missing_deps[step.id]:
                self._ready.append(step.id)
        self._ready.sort(key=self._order.__getitem__)
        for step_id in list(added):
            for dep in self._missing_deps.get(step_id, ()):
                if dep in self.failed or dep in self.blocked:
                    self._block(step_id, by=self.blocked.get(dep, dep))

    def grow(self, more: Callable[[], Sequence[Step]]) -> bool:
        """Take in what can be planned since the last success or failure; whether that was anything."""
        num_ended, known = len(self.done) + len(self.cached) + len(self.failed), len(self.graph)
        if num_ended != self._num_asked:
            self.add(more())
            self._num_asked = num_ended
        return len(self.graph) > known

    def is_under_way(self) -> bool:
        return bool(self._ready or self._running or self._elsewhere)

    def submit_ready(self) -> None:
        """Give every free worker the ready step it is warmest for, and those that can be computed together with it."""
        while (step := self._warmest()) is not None:
            companions, share = self._companions(step)
            gang = list(itertools.islice((other for other in companions if self._claim(other.id)), share))
            if gang:
                self._running.update({member.id: gang for member in gang})
                self.executor.submit(gang)

    def settle(self, completion: Completion) -> None:
        step_id = completion.step_id
        gang = self._running.pop(step_id)
        if completion.outcome == "busy":
            self._leave_to_others(step_id)
        elif completion.outcome == "handed back":
            self._take_back(step_id, gang)
        elif completion.outcome == "failed":
            assert completion.failure is not None
            self._settle_failure(completion.failure)
        else:
            self._note_kept(gang)
            self._settle_success(step_id, self.done if completion.outcome == "done" else self.cached)

    def look_at_others(self, poll_s: float) -> None:
        """See which steps of other processes are committed, failed, or free again because their process is gone."""
        if not self._elsewhere:
            return
        poll_s = max(poll_s, self.store.look_every_s)
        if not self._running and not self._allowed():
            time.sleep(poll_s)  # the executor had nothing to wait for
        elif time.monotonic() - self._looked_at < poll_s:
            return
        self._looked_at = time.monotonic()
        for step_id, other in list(self._elsewhere.items()):
            with self.store.guard():
                is_free = other.lock.reap()  # asked before `has`: a commit comes before its release
            if self.store.has(step_id):
                del self._elsewhere[step_id]
                self._settle_success(step_id, self.cached)
            elif is_free:
                del self._elsewhere[step_id]
                failure = self.store.failure(step_id)
                if failure is not None and failure != other.before and not _is_of_its_place(failure):
                    self._settle_failure(failure)
                else:
                    self._make_ready(step_id)

    def _warmest(self) -> Step | None:
        """Of the ready steps that could start now those known the longest, of these the one that a worker is warmest for:
        else the rounds of one search would follow each other on a warm worker while another search has yet to begin."""
        best: tuple[int, int, Step] | None = None
        for step_id, warmth in self._warmths():
            found = -self._generation[step_id], warmth
            if best is None or found > best[:2]:
                best = *found, self.graph[step_id]
        return best[2] if best else None

    def _warmths(self) -> Iterator[tuple[str, int]]:
        """The ready steps that could start now, in order, with their warmth. A worker that became free while we asked could
        take those that we asked about before as well, and these come first."""
        warmths = {step_id: self.executor.warmth(self.graph[step_id]) for step_id in self._allowed()}
        is_one_free = any(warmth is not None for warmth in warmths.values())
        for step_id, warmth in warmths.items():
            if warmth is None and is_one_free:
                warmth = self.executor.warmth(self.graph[step_id])
            if warmth is not None:
                yield step_id, warmth

    def _allowed(self) -> list[str]:
        """The ready steps that may start beside what runs: one that must be alone waits until nothing else is left to run
        or runs, here or in another process on this store; while it runs, nothing starts."""
        if any(self.graph[step_id].resources.alone for step_id in self._running):
            return []
        shared = [step_id for step_id in self._ready if not self.graph[step_id].resources.alone]
        return shared if shared or self._running or self._elsewhere else self._ready[:1]

    def _companions(self, step: Step) -> tuple[list[Step], int]:
        """The ready steps that may run together with `step`, itself first; and how many of them one worker takes, so
        that those free now share the work.

        Those with inputs in common with `step` go together. Others are taken only to fill a small gang: a worker would
        compute them one after the other while the rest stand idle.
        """
        resources = step.resources
        if resources.gang_key is None or not can_gang(step.kind):
            return [step], 1
        ready = (self.graph[step_id] for step_id in self._ready)
        alike = [other for other in ready if _likeness(other) == _likeness(step)]
        inputs = set(step.deps.values())
        common = {other.id: len(inputs & set(other.deps.values())) for other in alike}
        alike.sort(key=lambda other: (other is not step, -common[other.id]))
        related = sum(common[other.id] > 0 or set(other.deps.values()) == inputs for other in alike)
        alike = alike[: max(_SMALL_GANG, related)]
        share = math.ceil(len(alike) / max(1, self.executor.num_free(step)))
        most = resources.gang_limit, self._most_together.get(_likeness(step))
        return alike, min([share, *(limit for limit in most if limit is not None)])

    def _claim(self, step_id: str) -> bool:
        """Take a step off the ready ones. False if it is committed already, or another process is at it."""
        self._ready.remove(step_id)
        if self.store.has(step_id):
            self._settle_success(step_id, self.cached)
        elif self._is_held(step_id):
            self._leave_to_others(step_id)
        else:
            return True
        return False

    def _is_held(self, step_id: str) -> bool:
        with self.store.guard():
            return self.store.lock(step_id).holder() is not None

    def _leave_to_others(self, step_id: str) -> None:
        self._elsewhere[step_id] = _Elsewhere(self.store.lock(step_id), self.store.failure(step_id))

    def _take_back(self, step_id: str, gang: list[Step]) -> None:
        """Ready again. Next time a worker gets twice what this one kept: it may have room for more then."""
        step = self.graph[step_id]
        gang.remove(step)
        self._most_together[_likeness(step)] = 2 * len(gang)
        self._make_ready(step_id)

    def _note_kept(self, gang: list[Step]) -> None:
        """A worker that kept all it may be given could have taken more."""
        key = _likeness(gang[0])
        if key in self._most_together:
            self._most_together[key] = max(self._most_together[key], 2 * len(gang))

    def _make_ready(self, step_id: str) -> None:
        self._ready.append(step_id)
        self._ready.sort(key=self._order.__getitem__)

    def _settle_success(self, step_id: str, outcome: list[str]) -> None:
        outcome.append(step_id)
        for dependent in self._dependents.get(step_id, ()):
            self._missing_deps[dependent].discard(step_id)
            if not self._missing_deps[dependent] and dependent not in self.blocked:
                self._make_ready(dependent)

    def _settle_failure(self, failure: Failure) -> None:
        error = failure.to_error()
        if isinstance(error, StoreProblem):
            raise error
        self.failed[failure.step_id] = failure
        self.emit(
            StepFailed(step=failure.step_id, error=failure.error_name, text=failure.text, traceback=failure.traceback)
        )
        for step_id in self._dependents.get(failure.step_id, ()):
            self._block(step_id, by=failure.step_id)

    def _block(self, step_id: str, *, by: str) -> None:
        """A step that cannot run, and all that wait for it."""
        waiting = [step_id]
        while waiting:
            step_id = waiting.pop(0)
            if step_id not in self.blocked:
                self.blocked[step_id] = by
                self.emit(StepBlocked(step=step_id, by=by))
                waiting += self._dependents.get(step_id, ())
