"""Which worker runs what, and when: list scheduling over the graph of steps, and a bound that no schedule can beat.

Whenever a worker is free it takes the ready job from which the longest chain of work still hangs. Steps that are computed
together stay one job. Where nothing has to be alone, any such schedule ends before work / workers + longest chain (Graham
1969), that is within twice the bound. A job that must be alone waits until the others have ended, with workers idle
meanwhile, and the proof does not hold; how far a schedule really is from the bound is computed, not believed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Job:
    """Steps that one worker computes together. after: names of the jobs it waits for. alone: nothing else may run
    meanwhile, on any worker."""

    name: str
    steps: tuple[str, ...]
    seconds: float
    after: frozenset[str] = frozenset()
    alone: bool = False


@dataclass(frozen=True)
class Placed:
    """A job on a worker, in seconds from the start of the study."""

    job: Job
    worker: int
    start: float

    @property
    def end(self) -> float:
        return self.start + self.job.seconds


@dataclass(frozen=True)
class Schedule:
    """bound: seconds that no schedule on so many workers can beat, and which of the two limits sets it: the work shared
    out evenly, or the longest chain of steps that wait for each other."""

    placed: tuple[Placed, ...]
    workers: int
    makespan: float
    bound: float
    limit: Literal["work", "chain"]

    @property
    def gap(self) -> float:
        """How far above the bound it ends, as a fraction of it."""
        return self.makespan / self.bound - 1 if self.bound > 0 else 0.0

    @property
    def busy_fraction(self) -> float:
        """Share of the workers' time in which they work."""
        total = self.workers * self.makespan
        return sum(placed.job.seconds for placed in self.placed) / total if total else 0.0


def allocate(jobs: Sequence[Job], *, workers: int) -> Schedule:
    """The shortest of three list schedules: by the longest chain that hangs from a job, by its own length, in the order
    given. Raises AssertionError for jobs that wait for what is not there, or for each other.
    """
    assert workers >= 1, "a schedule needs a worker"
    tails = longest_chains(jobs)
    order = {job.name: place for place, job in enumerate(jobs)}
    rules: tuple[Callable[[Job], tuple[float, ...]], ...] = (
        lambda job: (-tails[job.name], -job.seconds, order[job.name]),
        lambda job: (-job.seconds, -tails[job.name], order[job.name]),
        lambda job: (order[job.name],),
    )
    schedules = [_list_schedule(jobs, workers=workers, rank=rule) for rule in rules]
    placed = min(schedules, key=lambda found: max((p.end for p in found), default=0.0))
    bound, limit = lower_bound(jobs, workers=workers)
    return Schedule(tuple(placed), workers, max((p.end for p in placed), default=0.0), bound, limit)


def lower_bound(jobs: Sequence[Job], *, workers: int) -> tuple[float, Literal["work", "chain"]]:
    """Seconds that every schedule takes: the work shared out evenly (what must be alone holds all workers), or the longest
    chain, whichever is more."""
    shared = sum(job.seconds for job in jobs if not job.alone)
    work = shared / workers + sum(job.seconds for job in jobs if job.alone)
    chain = max(longest_chains(jobs).values(), default=0.0)
    return (chain, "chain") if chain > work else (work, "work")


def longest_chains(jobs: Sequence[Job]) -> Mapping[str, float]:
    """Job -> seconds of the longest chain of jobs that starts with it."""
    by_name = {job.name: job for job in jobs}
    dependents: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for name in job.after:
            assert name in by_name, f"{job.name} waits for {name}, which is not there"
            dependents[name].append(job.name)
    waiting = {job.name: len(dependents[job.name]) for job in jobs}
    ends = [name for name, count in waiting.items() if count == 0]
    chains: dict[str, float] = {}
    while ends:
        job = by_name[ends.pop()]
        chains[job.name] = job.seconds + max((chains[other] for other in dependents[job.name]), default=0.0)
        for name in job.after:
            waiting[name] -= 1
            if waiting[name] == 0:
                ends.append(name)
    assert len(chains) == len(by_name), "the jobs wait for each other in a circle"
    return chains


def _list_schedule(jobs: Sequence[Job], *, workers: int, rank: Callable[[Job], tuple[float, ...]]) -> list[Placed]:
    """Never leaves a worker idle while a job is ready that may run; a job that must be alone waits until nothing else is
    ready or runs, as the scheduler of the engine has it."""
    by_name = {job.name: job for job in jobs}
    dependents: dict[str, list[str]] = {job.name: [] for job in jobs}
    missing = {job.name: len(job.after) for job in jobs}
    for job in jobs:
        for name in job.after:
            dependents[name].append(job.name)
    ready = _Ready(rank)
    for job in jobs:
        if not job.after:
            ready.add(job)
    free, running, placed, now = list(range(workers)), [], [], 0.0
    while ready or running:
        while free and (job := ready.take(is_idle=not running)) is not None:
            place = Placed(job, heapq.heappop(free), now)
            placed.append(place)
            heapq.heappush(running, (place.end, place.worker, job.name))
            if job.alone:
                break
        now = running[0][0]
        while running and running[0][0] <= now:
            _, worker, name = heapq.heappop(running)
            heapq.heappush(free, worker)
            for other in dependents[name]:
                missing[other] -= 1
                if missing[other] == 0:
                    ready.add(by_name[other])
    return placed


class _Ready:
    """The jobs that may start, the first by rank first; of equal rank, that which was ready first."""

    def __init__(self, rank: Callable[[Job], tuple[float, ...]]) -> None:
        self._rank = rank
        self._shared: list[tuple[tuple[float, ...], int, Job]] = []
        self._alone: list[tuple[tuple[float, ...], int, Job]] = []
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._shared) + len(self._alone)

    def add(self, job: Job) -> None:
        self._num_added += 1
        heapq.heappush(self._alone if job.alone else self._shared, (self._rank(job), self._num_added, job))

    def take(self, *, is_idle: bool) -> Job | None:
        """The next to start. One that must be alone comes when no other is ready or runs."""
        if self._shared:
            return heapq.heappop(self._shared)[2]
        return heapq.heappop(self._alone)[2] if self._alone and is_idle else None
