"""One run of a study by what people call it: its arm, task and seed, or the best of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorascope.engine.step import Step
from lorascope.errors import StudyError
from lorascope.metrics.quality import quality
from lorascope.plan.graph import Graph
from lorascope.plan.labels import RunLabel
from lorascope.plan.listing import primary_metric_of
from lorascope.registry import nearest

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store

_OPTIONS: Mapping[str, str] = {"model": "--model", "task": "--task", "method": "--arm", "seed": "--seed"}
Named = tuple[RunLabel, Step]


def choose_run(graph: Graph, store: Store, wanted: RunLabel, *, best: bool = False) -> str:
    """The id of the finished run of that name. wanted: what is None may be anything. best: of several, the one that scored
    best on validation; the test set chooses nothing.

    Raises StudyError for a name that the study does not have, a run that is not finished, and a choice among several.
    """
    matching = [(graph.labels[step.id], step) for step in graph.of_kind("train")]
    for key, option in _OPTIONS.items():
        if (name := getattr(wanted, key)) is not None:
            matching = _of_name(matching, key, name, known=_names(graph, key), option=option)
    there = store.present(step.id for _, step in matching)
    finished = [(label, step) for label, step in matching if step.id in there]
    if not finished:
        which = str(matching[0][0]) if len(matching) == 1 else f"{len(matching)} runs of that name"
        raise StudyError(f"{which}: not finished in {store.place}", hint="run the study first, with the same --store")
    if best:
        return _best(finished, store)
    if len(finished) > 1:
        raise StudyError(f"{len(finished)} finished runs are of that name", hint=_how_to_choose(finished))
    return finished[0][1].id


def _names(graph: Graph, key: str) -> list[str]:
    return list(dict.fromkeys(str(getattr(graph.labels[step.id], key)) for step in graph.of_kind("train")))


def _of_name(runs: Sequence[Named], key: str, name: str, *, known: Sequence[str], option: str) -> list[Named]:
    if name in known:
        return [(label, step) for label, step in runs if getattr(label, key) == name]
    match = nearest(name, known)
    raise StudyError(
        f"{option}: the study has no run of the {option.removeprefix('--')} `{name}`"
        + (f": did you mean `{match}`?" if match else ""),
        hint=f"there: {', '.join(known)}" if known else "its runs are planned when its searches have ended",
    )


def _how_to_choose(runs: Sequence[Named]) -> str:
    ways = []
    for key, option in _OPTIONS.items():
        names = list(dict.fromkeys(str(getattr(label, key)) for label, _ in runs))
        if len(names) > 1:
            ways.append(f"{option} ({', '.join(names)})")
    return f"choose with {' and '.join(ways)}; of one model and task, --best takes the best on validation"


def _best(runs: Sequence[Named], store: Store) -> str:
    """Scores of different models or tasks are not compared."""
    if len({(label.model, label.task) for label, _ in runs}) > 1:
        text = "--best: the runs are of several models or tasks, whose scores cannot be compared"
        raise StudyError(text, hint=_how_to_choose(runs))
    metric = quality(primary_metric_of(store.artifact(runs[0][1].deps["data"]).result))
    scores = {step.id: store.artifact(step.id).result["validation"][metric.name] for _, step in runs}
    choose = max if metric.direction == "higher" else min
    return choose(scores, key=lambda step_id: scores[step_id])
