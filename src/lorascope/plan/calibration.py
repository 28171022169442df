"""Which steps a calibration consists of: the study's own preparation and gates, a few updates of every arm, and what is
measured of runs, once, on those few updates.

The first are needed anyway and stay in the store. The others are steps of their own, apart from the study's: nothing of the
study depends on them, and a plan reads what they took. They belong to one machine, since another is as fast as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.engine.step import Step
from lorascope.plan.graph import Graph
from lorascope.plan.labels import VERSIONS

PREPARATION = ("data", "tokens", "sanity")


def preparation_steps(graph: Graph) -> list[Step]:
    """The study's own steps that a calibration begins with, in the order of the graph."""
    return [step for step in graph.steps if step.kind in PREPARATION]


def calibration_steps(
    graph: Graph, *, machine: Mapping[str, str], results: Mapping[str, Mapping[str, Any]]
) -> list[Step]:
    """Those that follow, each after what it needs. machine: what tells this one from others. results: of the finished
    steps, by id: the shortest task of each model stands for the others where an arm is measured once."""
    runs = {step.id: calibration_of(step, machine=machine) for step in graph.of_kind("train")}
    shortest = _shortest_tasks(graph, results)
    return [
        *runs.values(),
        *(s for s in graph.of_kind("baseline") if graph.labels[s.id].task == shortest[graph.labels[s.id].model]),
        *_measurements(graph, runs, shortest),
    ]


def calibration_of(train: Step, *, machine: Mapping[str, str]) -> Step:
    """The calibration of a run: a few of its updates."""
    return Step(
        kind="calibration",
        version=VERSIONS["calibration"],
        params={**train.params, "machine": dict(machine)},
        deps=train.deps,
        slug=train.slug,
        locations=train.locations,
        resources=train.resources,
    )


def _measurements(graph: Graph, runs: Mapping[str, Step], shortest: Mapping[str | None, str]) -> Iterator[Step]:
    """One evaluation and one drift step a (model, method), on the calibrations."""
    seen: set[tuple[str, str | None, str | None]] = set()
    for step in graph.steps:
        label = graph.labels[step.id]
        key = (step.kind, label.model, label.method)
        if step.kind not in ("evaluate", "drift") or key in seen or label.task != shortest[label.model]:
            continue
        seen.add(key)
        yield Step(
            kind=step.kind,
            version=step.version,
            params=step.params,
            deps={role: runs[dep].id if dep in runs else dep for role, dep in step.deps.items()},
            slug=f"calibration-{step.slug}",
            locations=step.locations,
            resources=step.resources,
        )


def _shortest_tasks(graph: Graph, results: Mapping[str, Mapping[str, Any]]) -> Mapping[str | None, str]:
    """Model -> the task with the fewest tokens to read."""
    found: dict[str | None, tuple[int, str]] = {}
    for step in graph.of_kind("tokens"):
        label = graph.labels[step.id]
        assert label.task is not None
        size = sum(results[step.id]["num_tokens"].values())
        found[label.model] = min(found.get(label.model, (size, label.task)), (size, label.task))
    return {model: task for model, (_, task) in found.items()}
