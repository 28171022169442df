"""The time that is left of a study under way: a schedule of what remains on the workers that are at it now.

A running gang is measured by its own pace, which counts only what it did since it was begun or taken up again; before it
has one, and for all that has not begun, estimates stand in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorascope.engine.step import Step
from lorascope.plan.allocation import Job, allocate
from lorascope.plan.estimate import Estimate, estimate_step
from lorascope.plan.graph import Graph
from lorascope.plan.history import History
from lorascope.plan.labels import RunLabel
from lorascope.plan.outlook import PlannedStep, jobs_of
from lorascope.plan.running import RunningGang, RunningStep
from lorascope.tracking.progress import LONG_KINDS


@dataclass(frozen=True)
class TimeLeft:
    """seconds, and what that rests on; is_least: some steps' time is unknown and not in it. is_rough: some runs wait in a
    gang that trains in turns, and are taken to be like those at work."""

    seconds: float
    basis: str
    is_least: bool
    is_rough: bool = False


def time_left(
    graph: Graph,
    *,
    missing: Sequence[tuple[Step, RunLabel]],
    running: Sequence[RunningGang],
    steps: Mapping[str, Step],
    history: History,
    now_s: float,
) -> TimeLeft | None:
    """missing: the steps that nobody works on. running: gangs of this study. steps: id -> step, of the study. now_s: Unix
    time, of the store's clock. On one worker where none is at work; None while nothing is known of those that take
    long."""
    left = {gang: _seconds_left(gang, steps, history, now_s=now_s) for gang in running}
    paces = {gang.kind: each for gang in running if (each := _seconds_each(gang, steps)) is not None}
    planned = [PlannedStep(step, label, False, _estimate(step, history, paces)) for step, label in missing]
    unknown = sum(p.estimate.seconds is None for p in planned) + sum(seconds is None for seconds in left.values())
    lacking = {p.step.kind for p in planned if p.estimate.seconds is None}
    lacking |= {gang.kind for gang, seconds in left.items() if seconds is None}
    if unknown == len(planned) + len(left) or lacking & set(LONG_KINDS):
        return None
    workers = max(1, len({(gang.host, gang.pid) for gang in running}))
    found = Counter(p.estimate.source for p in planned if p.estimate.seconds is not None)
    is_measured = any(seconds is not None for seconds in left.values())
    return TimeLeft(
        allocate(_jobs(graph, planned, left, steps), workers=workers).makespan,
        _basis(found, is_measured=is_measured, workers=workers),
        is_least=unknown > 0 or bool(graph.waiting),
        is_rough=any(len(gang.at_work) < len(gang.members) for gang in running),
    )


def _jobs(
    graph: Graph,
    planned: Sequence[PlannedStep],
    left: Mapping[RunningGang, float | None],
    steps: Mapping[str, Step],
) -> list[Job]:
    """What runs, then what waits for it and for each other."""
    names = {gang: f"{gang.kind} {gang.host} {gang.pid}" for gang, seconds in left.items() if seconds is not None}
    jobs = [Job(name, (), left[gang] or 0.0) for gang, name in names.items()]
    holders = {member.step_id: name for gang, name in names.items() for member in gang.members}
    for job in jobs_of(planned, graph.decided_by):
        needed = {dep for i in job.steps for dep in steps[i].deps.values()}
        running = frozenset(holders[dep] for dep in needed if dep in holders)
        jobs.append(Job(job.name, job.steps, job.seconds, job.after | running, job.alone))
    return jobs


def _seconds_left(gang: RunningGang, steps: Mapping[str, Step], history: History, *, now_s: float) -> float | None:
    """Of those at work the longest, then the others by as many at a time; without a pace, the estimates of what remains."""
    pace = gang.update_seconds
    if pace is not None:
        longest = max(_remaining(member) for member in gang.at_work)
        typical = max(member.total or 0.0 for member in gang.at_work)
        waiting = [m for m in gang.members if m not in gang.at_work]
        updates = sum(_remaining(m) if m.total else typical for m in waiting)
        return pace * (longest + updates / len(gang.at_work))
    wholes = [
        (member, estimate_step(steps[member.step_id], history).seconds)
        for member in gang.members
        if member.step_id in steps
    ]
    if not wholes or any(seconds is None for _, seconds in wholes):
        return None
    if all(member.total is None for member, _ in wholes):
        return max(0.0, sum(seconds or 0.0 for _, seconds in wholes) - (now_s - gang.since_s))
    return sum(
        (seconds or 0.0) * (_remaining(member) / _own_updates(member, steps[member.step_id]) if member.total else 1.0)
        for member, seconds in wholes
    )


def _seconds_each(gang: RunningGang, steps: Mapping[str, Step]) -> float | None:
    """What one run of a gang takes as its share, from its beginning or, of a trial, from the stage before."""
    pace = gang.update_seconds
    known = [_own_updates(m, steps[m.step_id]) for m in gang.at_work if m.step_id in steps]
    return None if pace is None or not known else pace * max(known) / len(gang.at_work)


def _remaining(member: RunningStep) -> float:
    return max(0.0, (member.total or 0.0) - (member.done or 0.0))


def _own_updates(member: RunningStep, step: Step) -> float:
    """The updates of a step alone: of a trial's stage, those after the stage before."""
    stops = step.params.get("stops", (1.0,))
    before = stops[-2] / stops[-1] if len(stops) > 1 else 0.0
    return (member.total or 0.0) * (1 - before)


def _estimate(step: Step, history: History, paces: Mapping[str, float]) -> Estimate:
    found = estimate_step(step, history)
    if found.seconds is None and step.kind in paces:
        return Estimate(paces[step.kind], None, None, "scaled", "the pace of those that run")
    return found


def _basis(sources: Counter[str], *, is_measured: bool, workers: int) -> str:
    """ "8 steps by finished ones, 2 by a calibration, and the pace of what runs; 1 worker"."""
    words = {"finished": "finished ones", "calibration": "a calibration", "scaled": "others scaled"}
    parts = [f"{count} step{'s' if count > 1 else ''} by {words[source]}" for source, count in sources.items()]
    if is_measured:
        parts.append("the pace of what runs")
    return f"{' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}; {workers} worker{'s' if workers > 1 else ''}"
