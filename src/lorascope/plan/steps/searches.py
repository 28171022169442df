"""The searches of a study as steps: as far as what has been found decides which trials come next.

A plan is a graph of literals, and a trial's hyper-parameters are known only when the trials before it have ended. So the
graph grows: it holds the trials proposed so far, and the runs that wait for an optimum are not in it before the optimum is.
Planning again, from the same study and the same store, gives the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorascope.engine.step import Step
from lorascope.plan.labels import SEARCH, VERSIONS, PlannedModel, RunLabel
from lorascope.plan.steps.runs import gang_resources, resolved_training, sanity_step, training_params
from lorascope.search.literals import role, search_params
from lorascope.search.propose import Ask
from lorascope.search.replay import Attempt, Replay, replay, stages
from lorascope.search.space import edges, extended, is_extendable
from lorascope.study.hyperparameters import given_hyperparameters, with_hyperparameters
from lorascope.study.methods.base import MethodBase
from lorascope.study.search import SearchSpec
from lorascope.study.spec import Seeds, Study


class Add(Protocol):
    """Makes a step part of the graph. decided_by: the trials whose scores it waited for to be planned."""

    def __call__(self, step: Step, label: RunLabel, decided_by: Iterable[str] = ()) -> Step: ...


Finished = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Searching:
    """One search of the study. found: how far it has come. steps: the ids of its trials; open_steps: those it waits for.
    extended: whether the searches of its task were given one more round. is_over: that its optimum stands; one that may be
    extended waits for the others.
    """

    label: RunLabel
    method: MethodBase
    found: Replay
    steps: Sequence[str]
    open_steps: Sequence[str]
    extended: bool
    is_over: bool

    @property
    def optimum(self) -> Mapping[str, Any] | None:
        """The hyper-parameters it ended with; None before, and where every trial diverged."""
        best = self.found.best if self.is_over else None
        return None if best is None else best.params


def tuned(study: Study, method: MethodBase, *, model: str, task: str, searches: Sequence[Searching]) -> Any:
    """The method as it is to be compared: as written, with the hyper-parameters of a file, or with its optimum. None while
    its search goes on, and after one without an optimum."""
    if method.hyperparameters is not None:
        return with_hyperparameters(method, given_hyperparameters(study, method, model=model, task=task))
    if study.search is None:
        return method
    optimum = next(search.optimum for search in searches if search.method.name == method.name)
    return None if optimum is None else with_hyperparameters(method, optimum)


def trials_behind(method: str, *, study: Study, searches: Sequence[Searching]) -> Sequence[str]:
    """The trials that the optimum of a method rests on: those of its search, or of all where an edge extends them all."""
    is_joint = study.search is not None and study.search.at_edge == "extend"
    mine = [search for search in searches if search.method.name == method]
    return [step for search in (searches if is_joint and mine else mine) for step in search.steps]


def add_searches(
    study: Study,
    model: PlannedModel,
    task: str,
    inputs: Mapping[str, str],
    *,
    add: Add,
    finished: Finished,
    ask: Ask,
) -> list[Searching]:
    """The searches of a (model, task): adds the trials that are proposed, and the `search` step of each that is over.

    inputs: data and tokens of the trials. ask: proposes a round of trials.
    """
    spec = study.search
    if spec is None:
        return []
    benches = [
        _Bench(study, spec, model, task, method, inputs, finished, ask)
        for method in study.methods
        if method.hyperparameters is None
    ]
    found = [bench.replay() for bench in benches]
    at_edges = [_edges(each) for each in found]
    may_extend = spec.at_edge == "extend"
    are_over = all(each.is_over for each in found)
    is_extended = may_extend and are_over and any(map(is_extendable, [each.space for each in found], at_edges))
    if is_extended:  # one more round for every method of the task: the budget stays equal
        longer = [extended(each.space, at_edge) for each, at_edge in zip(found, at_edges, strict=True)]
        found = [bench.replay(extension=space) for bench, space in zip(benches, longer, strict=True)]
    decided_by = _decided_by(list(zip(benches, found, strict=True)), spec)
    searches = []
    for bench, each in zip(benches, found, strict=True):
        steps = bench.add_trials(each, decided_by, add=add)
        is_over = each.is_over and (are_over or not may_extend)
        if is_over:
            bench.add_summary(each, steps, is_extended=is_extended, add=add)
        waiting = [steps[role(attempt)] for attempt in each.open]
        searches.append(Searching(bench.label, bench.method, each, [*steps.values()], waiting, is_extended, is_over))
    return searches


def _decided_by(searches: Sequence[tuple[_Bench, Replay]], spec: SearchSpec) -> Mapping[str, Sequence[str]]:
    """Trial -> the trials it waits for: those of the stage before it in its search (what confirms the best is the last
    stage); in the round that an edge adds, all of all searches. A trial that is proposed twice waits as it did the first
    time, so none waits for itself."""
    places = {place: number for number, stage in enumerate(stages(spec)) for place in stage}
    num_rounds = -(-spec.trials // spec.at_once)
    staged: dict[tuple[int, int], dict[int, list[str]]] = {}
    for index, (bench, found) in enumerate(searches):
        for attempt in found.attempts:
            place = places.get((attempt.seed, attempt.stops))
            at = (num_rounds + 1, 0) if place is None else (found.trials[attempt.trial].round, place)
            staged.setdefault(at, {}).setdefault(index, []).append(bench.trial(attempt).id)
    waits: dict[str, Sequence[str]] = {}
    last: dict[int, list[str]] = {}
    for at in sorted(staged):
        everything = list(waits) if at == (num_rounds, 0) else None
        for index, trials in staged[at].items():
            for trial in trials:
                waits.setdefault(trial, everything or last.get(index, []))
        last |= staged[at]
    return waits


def _edges(found: Replay) -> list[Any]:
    return edges(found.space, found.best.params) if found.best else []


@dataclass(frozen=True)
class _Bench:
    """Where the trials of one (model, task, method) are made into steps."""

    study: Study
    spec: SearchSpec
    model: PlannedModel
    task: str
    method: MethodBase
    inputs: Mapping[str, str]
    finished: Finished
    ask: Ask

    @property
    def label(self) -> RunLabel:
        return RunLabel(self.model.name, self.task, self.method.name)

    @property
    def sanity(self) -> Step:
        """The gates, passed before any trial is trained, with what the method would be trained with without a search."""
        return sanity_step(self.study, self.model, self.task, self.method, self.inputs)

    def replay(self, *, extension: Any = None) -> Replay:
        space = self.spec.space_of(self.method)
        return replay(
            self.spec,
            space,
            look_up=lambda attempt: self.finished(self.trial(attempt).id),
            extension=extension,
            ask=self.ask,
        )

    def trial(self, attempt: Attempt) -> Step:
        method = with_hyperparameters(self.method, attempt.params)
        return Step(
            kind="trial",
            version=VERSIONS["trial"],
            params={
                **training_params(self.study, self.model, method),
                "seeds": Seeds.model_validate(attempt.seed).model_dump(),
                "seeds_for": self.task,
                "protocol": self.study.protocol,
                "stops": list(attempt.stops),
            },
            deps={**self.inputs, "sanity": self.sanity.id},
            slug=f"{self.model.name}-{self.task}-{method.kind}",
            locations=self.model.locations,
            resources=gang_resources(self.model.identity, method, resolved_training(self.study, method)),
        )

    def add_trials(self, found: Replay, decided_by: Mapping[str, Sequence[str]], *, add: Add) -> Mapping[str, str]:
        """The steps of the trials proposed so far: role -> id."""
        add(self.sanity, RunLabel(self.model.name, self.task, self.method.name, SEARCH))
        steps: dict[str, str] = {}
        for attempt in found.attempts:
            seed = f", seed {attempt.seed}" if len(self.spec.seeds) > 1 or attempt.seed not in self.spec.seeds else ""
            part = f", {attempt.stops[-1]:.0%}" if attempt.stops[-1] < 1 else ""
            label = RunLabel(self.model.name, self.task, self.method.name, f"trial {attempt.trial + 1}{seed}{part}")
            step = self.trial(attempt)
            steps[role(attempt)] = add(step, label, decided_by[step.id]).id
        return steps

    def add_summary(self, found: Replay, steps: Mapping[str, str], *, is_extended: bool, add: Add) -> None:
        summary = Step(
            kind="search",
            version=VERSIONS["search"],
            params={
                "search": self.spec.model_dump(mode="json", exclude={"space"}),
                "extended": is_extended,
                **search_params(found),
            },
            deps=steps,
            slug=f"{self.model.name}-{self.task}-{self.method.kind}",
        )
        add(summary, self.label)
