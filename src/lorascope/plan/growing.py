"""A plan that grows while it is carried out: what a search has found decides which steps come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.engine.step import Step
from lorascope.errors import StudyError
from lorascope.measures.planned import KnownEngine
from lorascope.plan.graph import Graph, build_graph, describe_sources, with_engine
from lorascope.plan.labels import RunLabel
from lorascope.plan.proposals import Proposals
from lorascope.serving.interpreter import foreseen_engine, known_engine

if TYPE_CHECKING:
    from lorascope.engine.failure import Failure
    from lorascope.engine.store.directory import Store
    from lorascope.study.spec import Study


class Planner:
    """The graph of a study over a store. The models and tasks are looked at once, results read once.

    only: a glob on step ids and "kind: label"; what they need is part of the plan too, a search included. keeps_proposals:
    whether what is proposed is kept in the store, as who trains it must. engine: what serves the models, for who has asked
    it; None: as it was last seen from this store. Failures on record count, but for who trains: there they are tried again.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        *,
        data_dir: Path | None,
        only: str | None = None,
        keeps_proposals: bool = False,
        engine: KnownEngine | None = None,
    ) -> None:
        self._study, self._store, self._only = study, store, only
        serving = study.measure.serving
        if engine is None and serving is not None:
            engine = known_engine(serving, store)
        self._sources = describe_sources(study, data_dir=data_dir, engine=engine)
        self._results: dict[str, Mapping[str, Any]] = {}
        self._ask = Proposals(store, keeps=keeps_proposals)
        self._tries_again = keeps_proposals
        self._failures_before: dict[str, Failure | None] = {}
        self._preparations: dict[str, bool] = {}
        self.graph = self._plan()
        self.steps: Sequence[Step] = chosen(self.graph, only)

    @property
    def proposals(self) -> list[str]:
        """The ids of the artifacts, apart from the steps, that the plan was made from."""
        return self._ask.found

    def more(self) -> Sequence[Step]:
        """The steps again, if some search has all that it waited for, or a task could not be prepared that another needed;
        else none."""
        is_due = any(
            search.found.open and all(self._finished(step_id) is not None for step_id in search.open_steps)
            for search in self.graph.searches
        )
        is_due = is_due or any(self._failed(step_id) != failed for step_id, failed in self._preparations.items())
        if not is_due:
            return ()
        self.graph = self._plan()
        self.steps = chosen(self.graph, self._only)
        return self.steps

    def current(self) -> Graph:
        """The graph as far as the searches have come now."""
        self.more()
        return self.graph

    def outlook(self) -> Graph:
        """The whole study as it would be if all trials still to come scored alike: for what it will take, not for ids, which
        what is found decides."""
        serving = self._study.measure.serving
        known = self._sources.models[0].engine
        engine = None if serving is None else known or foreseen_engine(serving, self._store)
        if self._study.search is None and engine is known and not any(self._preparations.values()):
            return self.graph  # nothing is still to be decided
        alike = {"value": 0.0, "loss": 0.0, "diverged": None}
        return build_graph(
            self._study,
            sources=with_engine(self._sources, engine),
            finished=lambda step_id: self._finished(step_id) or alike,
            ask=Proposals(self._store, keeps=False),
        )

    def _plan(self) -> Graph:
        drift = self._study.measure.drift
        is_shared = drift is not None and drift.out_of_task and len(self._study.tasks) > 1
        self._preparations.clear()
        return build_graph(
            self._study,
            sources=self._sources,
            finished=self._finished,
            ask=self._ask,
            failed=self._note_failed if is_shared else lambda step_id: False,
        )

    def _note_failed(self, step_id: str) -> bool:
        """Whether a step failed that prepares a task which others are measured on too."""
        self._preparations[step_id] = self._failed(step_id)
        return self._preparations[step_id]

    def _failed(self, step_id: str) -> bool:
        """Whether the step failed, for who trains: since this plan was first made."""
        if self._finished(step_id) is not None:
            return False
        failure = self._store.failure(step_id)
        before = self._failures_before.setdefault(step_id, failure if self._tries_again else None)
        return failure is not None and failure != before

    def _finished(self, step_id: str) -> Mapping[str, Any] | None:
        if step_id not in self._results and self._store.has(step_id):
            self._results[step_id] = self._store.artifact(step_id).result
        return self._results.get(step_id)


def news(before: Graph, after: Graph) -> str:
    """What has become possible between two plans, for people."""
    proposed = sum(len(search.open_steps) for search in after.searches) - sum(
        len(set(was.open_steps) & set(now.open_steps)) for was, now in zip(before.searches, after.searches, strict=True)
    )
    over = [
        f"{now.label} ended"
        for was, now in zip(before.searches, after.searches, strict=True)
        if now.is_over > was.is_over
    ]
    waiting = sum(search.found.to_propose for search in after.searches)
    trials = [f"{proposed} more trials, {waiting} still to propose"] if proposed else []
    return "; ".join([*over, *trials])


def chosen(graph: Graph, only: str | None) -> list[Step]:
    """The steps that match a glob, and what they need. A search is needed by the runs that wait for it. Raises StudyError if
    nothing matches."""
    if only is None:
        return graph.steps
    wanted = {step.id for step in graph.steps if _matches(only, step.kind, graph.labels[step.id], step.id)}
    waiting = [label for kind, label in graph.waiting if _matches(only, kind, label)]
    spec = graph.study.search
    if spec is not None and spec.at_edge == "extend":  # then a search is over with all others of its task
        waiting = [replace(label, method=None) for label in waiting]
    for search in graph.searches:
        if any(_waits_for(label, search.label) for label in waiting):
            wanted |= set(search.steps)
    if not wanted and not waiting:
        raise StudyError(
            f"no step matches --only {only}", hint="`lorascope plan STUDY` lists the steps; globs as in a shell"
        )
    for step in reversed(graph.steps):
        if step.id in wanted:
            wanted |= set(step.deps.values())
    return [step for step in graph.steps if step.id in wanted]


def _matches(only: str, kind: str, label: RunLabel, step_id: str | None = None) -> bool:
    return any(fnmatch(name, only) for name in (step_id, f"{kind}: {label}") if name is not None)


def _waits_for(label: RunLabel, search: RunLabel) -> bool:
    """Whether a step of this label needs that search: a serving step needs those of all tasks and methods."""
    pairs = ((label.model, search.model), (label.task, search.task), (label.method, search.method))
    return all(mine is None or mine == theirs for mine, theirs in pairs)
