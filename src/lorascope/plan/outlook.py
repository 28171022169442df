"""A study's plan: every step with its estimate, summed by kind and phase, laid out on machines, with what it could see.

All of it follows from the graph and the records of one store; nothing runs. What is unknown stays unknown: sums say how
many steps they lack.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path

from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.plan.allocation import Job, Schedule, allocate
from lorascope.plan.data_checks import DataFindings
from lorascope.plan.deciding import Deciding, deciding
from lorascope.plan.estimate import Estimate, estimate_step, worker_start_seconds
from lorascope.plan.graph import Graph
from lorascope.plan.guess import Guesses
from lorascope.plan.history import History
from lorascope.plan.labels import RunLabel
from lorascope.plan.phases import PHASES
from lorascope.plan.power import Detectable, detectable_differences
from lorascope.plan.steps.results import analysis_step
from lorascope.stats.analysis import Analysis
from lorascope.training.gang_decision import GangDecision

CACHED = Estimate(0.0, None, None, "finished", "in the store")
_SMALL_SHARE = 0.1
_TRIED_MACHINES = (1, 2, 3, 4, 8, 16)


@dataclass(frozen=True)
class PlannedStep:
    """One step and what it will take. is_cached: it is in the store, and takes nothing."""

    step: Step
    label: RunLabel
    is_cached: bool
    estimate: Estimate


@dataclass(frozen=True)
class Sum:
    """Of several steps. seconds, disk_bytes: of the steps to run whose figure is known; num_unknown, num_disk_unknown: those
    whose time is not, whose disk is not; num_guessed: those whose time is guessed. memory_bytes: the largest known. bases:
    what the figures rest on."""

    name: str
    total: int
    cached: int
    to_run: int
    seconds: float
    num_unknown: int
    memory_bytes: int | None
    disk_bytes: int
    num_disk_unknown: int
    bases: tuple[str, ...]
    num_guessed: int = 0


@dataclass(frozen=True)
class Machines:
    """Where the plan is laid out: machines, the workers on each, the device they have, and how many share one."""

    count: int
    workers_each: int
    device: str
    sharing: int = 1

    @property
    def workers(self) -> int:
        return self.count * self.workers_each

    def name(self, worker: int) -> str:
        """ "machine 2, GPU 1"; "machine 2" where each has one worker."""
        machine, place = divmod(worker, self.workers_each)
        return f"machine {machine + 1}" + (f", {self.unit} {place + 1}" if self.workers_each > 1 else "")

    @property
    def unit(self) -> str:
        """What a machine has `workers_each` of."""
        return "worker" if self.device == "cpu" or self.sharing > 1 else "GPU"


@dataclass(frozen=True)
class StudyPlan:
    """schedule: of the steps whose time is known. worker_start_seconds: before a worker's first step, in the schedule not
    counted (None: never measured). by_machines: number of machines -> makespan. measured_on: what the devices behind the
    estimates are called. free_bytes: where the store lies. undecided: runs that may train together or not, as a timing on
    this machine is still to tell, their memory being that of as many as were measured. in_turns_seconds: the makespan if the
    workers that share a device took turns on it (None: they share none, or were timed with as many as will run). deciding:
    how likely the claims are to be decided (None: not known before the data are prepared)."""

    graph: Graph
    steps: tuple[PlannedStep, ...]
    machines: Machines
    schedule: Schedule
    worker_start_seconds: float | None
    by_machines: Mapping[int, float]
    power: tuple[Detectable, ...]
    measured_on: tuple[str, ...]
    free_bytes: int
    undecided: tuple[PlannedStep, ...] = ()
    in_turns_seconds: float | None = None
    deciding: Deciding | None = None

    @property
    def to_run(self) -> list[PlannedStep]:
        return [planned for planned in self.steps if not planned.is_cached]

    @property
    def total(self) -> Sum:
        return summed("total", self.steps)

    @property
    def makespan_seconds(self) -> float:
        """From the start of the study to its end: the schedule, and what its workers take to start."""
        return self.schedule.makespan + (self.worker_start_seconds or 0.0 if self.schedule.placed else 0.0)

    def kinds(self) -> list[Sum]:
        """One a kind, in the order of the graph."""
        kinds = dict.fromkeys(planned.step.kind for planned in self.steps)
        return [summed(kind, [p for p in self.steps if p.step.kind == kind]) for kind in kinds]

    def phases(self) -> list[Sum]:
        """One a phase that has steps."""
        found = [summed(phase.name, [p for p in self.steps if p.step.kind in phase.kinds]) for phase in PHASES]
        return [phase for phase in found if phase.total]


def plan_study(
    graph: Graph, store: Store, history: History, *, machines: Machines, like: tuple[str, Analysis] | None = None
) -> StudyPlan:
    """The plan of what the store lacks. like: finished runs and what they are called, whose effects and variances say how
    likely claims are to be decided."""
    name, analysis = like or ("", None)
    last = analysis_step(graph, finished=[step.id for step in graph.steps], failures={})
    steps = [*graph.steps, *([last] if last else [])]
    labels = {**graph.labels, **({last.id: RunLabel()} if last else {})}
    there = store.present(step.id for step in steps)
    guesses = None if history.observations else Guesses(graph, device=machines.device)
    planned = tuple(_planned(step, labels[step.id], step.id in there, history, guesses) for step in steps)
    jobs = jobs_of(planned, graph.decided_by)
    schedule = allocate(jobs, workers=machines.workers)
    tried = sorted({*_TRIED_MACHINES, machines.count})
    in_turns = None
    if _are_of_fewer(planned, machines.sharing):
        in_turns = allocate(jobs, workers=machines.workers // machines.sharing).makespan
    power = tuple(detectable_differences(graph, history.results))
    return StudyPlan(
        graph=graph,
        steps=planned,
        machines=machines,
        schedule=schedule,
        worker_start_seconds=worker_start_seconds(history),
        by_machines={n: allocate(jobs, workers=n * machines.workers_each).makespan for n in tried} if jobs else {},
        power=power,
        measured_on=tuple(history.machines),
        free_bytes=shutil.disk_usage(_existing(store.root)).free,
        undecided=tuple(_undecided(planned, store, device=machines.device)),
        in_turns_seconds=in_turns,
        deciding=deciding(graph.study, power, like=analysis, name=name),
    )


def with_chances(plan: StudyPlan, data: DataFindings, *, like: tuple[str, Analysis] | None = None) -> StudyPlan:
    """The plan with the chances of its claims, where only the files say how large the test sets will be."""
    name, analysis = like or ("", None)
    seen = {task.task: task for task in data.tasks if task.metrics}
    power = [
        replace(found, metric=seen[found.task].metrics[0], num_examples=seen[found.task].num_examples["test"])
        if found.num_examples is None and found.task in seen
        else found
        for found in plan.power
    ]
    return replace(plan, deciding=deciding(plan.graph.study, power, like=analysis, name=name))


def _are_of_fewer(planned: Sequence[PlannedStep], sharing: int) -> bool:
    """Whether times that matter were measured with fewer workers than are to share a device."""
    estimates = [p.estimate for p in planned if not p.is_cached and p.estimate.seconds is not None]
    seconds = [(e.seconds or 0.0, e.workers_on_device < sharing) for e in estimates]
    return sum(s for s, is_of_fewer in seconds if is_of_fewer) > _SMALL_SHARE * sum(s for s, _ in seconds)


def _undecided(planned: Sequence[PlannedStep], store: Store, *, device: str) -> Iterator[PlannedStep]:
    """The runs of known memory that could train together, if `train.gang: auto` found here that it pays."""
    if device == "cuda":
        return
    alike: dict[tuple[str, str, str], list[PlannedStep]] = {}
    for p in planned:
        resources, is_known = p.step.resources, p.estimate.memory_bytes is not None
        if resources.gang_key and resources.gang_limit is None and is_known:
            alike.setdefault((p.step.kind, resources.gang_key, p.step.deps["tokens"]), []).append(p)
    for (_, gang_key, tokens), runs in alike.items():
        decision = GangDecision.of(store.root / "cache", gang_key=gang_key, tokens=[tokens], device=device)
        if len(runs) > 1 and decision.read() is None:
            yield from runs


def jobs_of(planned: Sequence[PlannedStep], decided_by: Mapping[str, frozenset[str]]) -> list[Job]:
    """The steps that are to run as jobs of one worker: runs of one arm and of its like that share their inputs are computed
    together, as many at a time as was observed. A step of unknown time counts as none.

    decided_by: of the graph. A job waits for these trials as for what its steps depend on, and trials of different rounds
    are never one job.
    """
    to_run = [p for p in planned if not p.is_cached]
    rounds = _rounds(decided_by)
    groups: dict[tuple[str, ...], list[PlannedStep]] = {}
    for p in to_run:
        key = p.step.resources.gang_key
        inputs = [p.step.deps[role] for role in ("data", "tokens") if role in p.step.deps]
        place = str(rounds.get(p.step.id, 0))
        groups.setdefault((p.step.kind, key, place, *inputs) if key else (p.step.id,), []).append(p)
    chunks = [chunk for group in groups.values() for chunk in _chunks(group)]
    owner = {p.step.id: chunk[0].step.id for chunk in chunks for p in chunk}
    return [
        Job(
            name=chunk[0].step.id,
            steps=tuple(p.step.id for p in chunk),
            seconds=sum(p.estimate.seconds or 0.0 for p in chunk),
            after=frozenset(
                owner[i] for p in chunk for i in (*p.step.deps.values(), *decided_by.get(p.step.id, ())) if i in owner
            ),
            alone=chunk[0].step.resources.alone,
        )
        for chunk in chunks
    ]


def _rounds(decided_by: Mapping[str, frozenset[str]]) -> Mapping[str, int]:
    """Step -> how many times something had to be trained and scored before it could be planned."""
    rounds: dict[str, int] = {}
    for step_id in TopologicalSorter(decided_by).static_order():
        rounds[step_id] = 1 + max((rounds[i] for i in decided_by.get(step_id, ())), default=-1)
    return rounds


def _chunks(group: Sequence[PlannedStep]) -> list[list[PlannedStep]]:
    """As few chunks of at most the gang's size as possible, as equal as possible."""
    limit = group[0].step.resources.gang_limit
    observed = max((p.estimate.gang for p in group if p.estimate.seconds is not None), default=len(group))
    size = max(1, min(observed, limit or observed))
    count = -(-len(group) // size)
    return [list(group[i * len(group) // count : (i + 1) * len(group) // count]) for i in range(count)]


def _planned(step: Step, label: RunLabel, is_cached: bool, history: History, guesses: Guesses | None) -> PlannedStep:
    """guesses: where nothing was ever timed."""
    if is_cached:
        return PlannedStep(step, label, True, CACHED)
    estimate = estimate_step(step, history)
    guess = guesses.of(step) if guesses and estimate.seconds is None else None
    return PlannedStep(step, label, False, guess or estimate)


def summed(name: str, steps: Sequence[PlannedStep]) -> Sum:
    """The sum of some steps of a plan."""
    to_run = [p for p in steps if not p.is_cached]
    memory = [p.estimate.memory_bytes for p in to_run if p.estimate.memory_bytes is not None]
    return Sum(
        name=name,
        total=len(steps),
        cached=len(steps) - len(to_run),
        to_run=len(to_run),
        seconds=sum(p.estimate.seconds or 0.0 for p in to_run),
        num_unknown=sum(p.estimate.seconds is None for p in to_run),
        num_guessed=sum(p.estimate.source == "guess" for p in to_run),
        memory_bytes=max(memory) if memory else None,
        disk_bytes=sum(p.estimate.disk_bytes or 0 for p in to_run),
        num_disk_unknown=sum(p.estimate.disk_bytes is None for p in to_run),
        bases=tuple(dict.fromkeys(p.estimate.basis for p in to_run)),
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
