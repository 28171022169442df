"""From a study to its graph of steps: the whole computation as data, before anything runs.

    data -> tokens -> baseline
                   -> sanity -> trial -> search          (where the study searches; its optimum decides what follows)
                   -> sanity -> train -> evaluate        (one a run)
                                     -> drift            (one an arm, where the study measures it)
                                     -> serving          (one a model, likewise)
    everything -> analysis

Runs that share a model and a task stand next to each other, so a worker keeps the base and the tokens loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.data.sources import describe_source
from lorascope.engine.step import Step
from lorascope.measures.planned import KnownEngine
from lorascope.models.catalog import describe_model
from lorascope.plan.labels import SEARCH, VERSIONS, PlannedModel, RunLabel, TrainedArms
from lorascope.plan.steps.measures import measurement_steps
from lorascope.plan.steps.runs import (
    data_step,
    gang_resources,
    resolved_training,
    sanity_step,
    tokens_step,
)
from lorascope.plan.steps.searches import Finished, Searching, add_searches, trials_behind, tuned
from lorascope.search.propose import Ask, ask_sampler
from lorascope.serving.interpreter import known_engine
from lorascope.study.methods.base import MethodBase
from lorascope.study.per_task import study_for
from lorascope.study.spec import ModelSpec, Study, TaskSpec


@dataclass(frozen=True)
class Graph:
    """steps: in dependency order, the analysis not among them. labels: step id -> what it is in this study. searches: how far
    each has come. waiting: the steps that are planned once a search has ended, as (kind, label). decided_by: step id
    -> the trials, apart from its deps, whose scores it had to wait for to be planned at all."""

    study: Study
    steps: list[Step]
    labels: Mapping[str, RunLabel]
    searches: Sequence[Searching] = ()
    waiting: Sequence[tuple[str, RunLabel]] = ()
    decided_by: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Step]:
        return [step for step in self.steps if step.kind == kind]


@dataclass(frozen=True)
class Sources:
    """What a study's models and tasks are on this machine; looked at once for any number of plans."""

    models: Sequence[PlannedModel]
    tasks: Mapping[str, Any]


def describe_sources(study: Study, *, data_dir: Path | None, engine: KnownEngine | None = None) -> Sources:
    """Checksums and versions. engine: what serves the models, as far as it is known. Raises StudyError, DataError or
    EnvironmentProblem for a model or task that is not there."""
    tasks = {
        task.name: describe_source(task, data_dir=data_dir, protocol=task.protocol or study.protocol)
        for task in study.tasks
    }
    return Sources([_described(spec, engine) for spec in study.models], tasks)


def with_engine(sources: Sources, engine: KnownEngine | None) -> Sources:
    """The same sources, served by another engine."""
    return replace(sources, models=[replace(model, engine=engine) for model in sources.models])


def build_graph(
    study: Study,
    *,
    data_dir: Path | None = None,
    sources: Sources | None = None,
    finished: Finished | None = None,
    ask: Ask = ask_sampler,
    failed: Callable[[str], bool] = lambda step_id: False,
) -> Graph:
    """Every step of the study but the analysis, as far as its searches have come. Computes nothing.

    sources: default: looked at now, with lorascope's own engine. finished: the result of a step that is in the store, else
    None; default: nothing is. ask: proposes a round of a search; default: the sampler as it is installed. failed: whether a
    step failed that prepares a task; default: none did.
    Raises StudyError, DataError or EnvironmentProblem for a model or task that is not there.
    """
    serving = study.measure.serving
    sources = sources or describe_sources(
        study, data_dir=data_dir, engine=None if serving is None else known_engine(serving, None)
    )
    return _Growing(study, sources, finished or (lambda step_id: None), ask, failed).graph()


def _described(spec: ModelSpec, engine: KnownEngine | None) -> PlannedModel:
    identity, locations = describe_model(spec)
    return PlannedModel(spec.name, identity, locations, engine)


class _Growing:
    """A graph in the making."""

    def __init__(
        self, study: Study, sources: Sources, finished: Finished, ask: Ask, failed: Callable[[str], bool]
    ) -> None:
        self.study, self.sources, self.finished, self.ask, self.failed = study, sources, finished, ask, failed
        self.steps: dict[str, Step] = {}
        self.labels: dict[str, RunLabel] = {}
        self.searches: list[Searching] = []
        self.waiting: list[tuple[str, RunLabel]] = []
        self.decided_by: dict[str, frozenset[str]] = {}

    def graph(self) -> Graph:
        study = self.study
        data = {task.name: self._add_data(task) for task in study.tasks}
        for model in self.sources.models:
            arms = [self._add_arms(model, task, data[task.name]) for task in study.tasks]
            for step, label in measurement_steps(study, model, arms):
                self.add(step, label)
            self._wait_for_measurements(model, arms)
        return Graph(study, list(self.steps.values()), self.labels, self.searches, self.waiting, self.decided_by)

    def add(self, step: Step, label: RunLabel, decided_by: Iterable[str] = ()) -> Step:
        """The first name of a step stays, but for one that a search gave to what turns out to be a run's own; so does what
        first decided it."""
        if step.id not in self.steps:
            self.steps[step.id] = step
            if trials := frozenset(decided_by):
                self.decided_by[step.id] = trials
        if step.id not in self.labels or self.labels[step.id].seed == SEARCH:
            self.labels[step.id] = label
        return step

    def _add_data(self, task: TaskSpec) -> Step:
        step = data_step(self.study, task, self.sources.tasks[task.name], self.study.data)
        return self.add(step, RunLabel(task=task.name))

    def _add_arms(self, model: PlannedModel, task: TaskSpec, data: Step) -> TrainedArms:
        study = study_for(self.study, task)
        tokens = self.add(tokens_step(study, model, data), RunLabel(model.name, task.name))
        inputs = {"data": data.id, "tokens": tokens.id}
        self.add(_baseline_step(study, model, task.name, inputs), RunLabel(model.name, task.name))
        searches = self._add_searches(study, model, task, inputs)
        methods = {
            method.name: tuned(study, method, model=model.name, task=task.name, searches=searches)
            for method in study.methods
        }
        trials = {name: trials_behind(name, study=study, searches=searches) for name in methods}
        # Every arm is checked before any is trained: a rank that does not fit must not come out after hours.
        checks = {
            name: self.add(
                sanity_step(study, model, task.name, method, inputs),
                RunLabel(model.name, task.name, name),
                trials[name],
            )
            for name, method in methods.items()
            if method is not None
        }
        trained: dict[str, list[Step]] = {}
        for name, method in methods.items():
            if method is None:
                self._wait_for_runs(RunLabel(model.name, task.name, name))
            else:
                trained[name] = self._add_runs(
                    study, model, task.name, method, sanity=checks[name], inputs=inputs, trials=trials[name]
                )
        failures = [
            self.failed(step_id) for step_id in inputs.values()
        ]  # each is asked about, so that a change is noticed
        return TrainedArms(task.name, inputs, trained, is_prepared=not any(failures))

    def _add_searches(
        self, study: Study, model: PlannedModel, task: TaskSpec, inputs: Mapping[str, str]
    ) -> list[Searching]:
        """The searches of a (model, task), on data of their own where the search has a cap on examples. study: as it is for
        the task."""
        if study.search is None:
            return []
        if study.search.train_examples is not None:
            capped = study.data.model_copy(update={"train_examples": study.search.train_examples})
            step = data_step(study, task, self.sources.tasks[task.name], capped)
            data = self.add(step, RunLabel(task=task.name, seed=SEARCH))
            tokens = self.add(tokens_step(study, model, data), RunLabel(model.name, task.name, seed=SEARCH))
            inputs = {"data": data.id, "tokens": tokens.id}
        found = add_searches(study, model, task.name, inputs, add=self.add, finished=self.finished, ask=self.ask)
        self.searches += found
        self.waiting += [("search", search.label) for search in found if not search.is_over]
        return found

    def _add_runs(
        self,
        study: Study,
        model: PlannedModel,
        task: str,
        method: MethodBase,
        *,
        sanity: Step,
        inputs: Mapping[str, str],
        trials: Iterable[str],
    ) -> list[Step]:
        """The runs of an arm, one a seed. study: as it is for the task."""
        trained = []
        resources = gang_resources(model.identity, method, resolved_training(study, method))
        for seeds in study.seeds:
            label = RunLabel(model.name, task, method.name, seeds.label)
            params = {
                **sanity.params,
                "seeds": seeds.model_dump(),
                "seeds_for": task,
                "protocol": study.protocol,
                **_snapshots(study),
            }
            slug = f"{model.name}-{task}-{method.kind}-{seeds.label}"
            train = self.add(
                Step(
                    kind="train", version=VERSIONS["train"], params=params, deps={**inputs, "sanity": sanity.id},
                    slug=slug, locations=model.locations, resources=resources,
                ),
                label,
                trials,
            )  # fmt: skip
            trained.append(train)
            self.add(
                Step(
                    kind="evaluate",
                    version=VERSIONS["evaluate"],
                    params={key: sanity.params[key] for key in ("model", "method")}
                    | {"precision": study.train.precision},
                    deps={**inputs, "train": train.id},
                    slug=slug,
                    locations=model.locations,
                ),
                label,
            )
        return trained

    def _wait_for_runs(self, arm: RunLabel) -> None:
        for seeds in self.study.seeds:
            label = RunLabel(arm.model, arm.task, arm.method, seeds.label)
            self.waiting += [("train", label), ("evaluate", label)]
        self.waiting.append(("sanity", arm))
        if self.study.measure.drift is not None:
            self.waiting.append(("drift", arm))

    def _wait_for_measurements(self, model: PlannedModel, arms: Sequence[TrainedArms]) -> None:
        trained = all(method.name in of_task.trained for of_task in arms for method in self.study.methods)
        if self.study.measure.serving is not None and not (trained and model.engine):
            self.waiting.append(("serving", RunLabel(model.name)))


def _snapshots(study: Study) -> dict[str, Any]:
    """What a training step has to know to look at drift on its way; nothing where the study takes no snapshots."""
    drift = study.measure.drift
    if drift is None or drift.snapshots is None:
        return {}
    # One pooling is written as a word: what it computes has not changed since a study could name several.
    pooling = drift.pooling[0] if len(drift.pooling) == 1 else list(drift.pooling)
    return {"snapshots": {"count": drift.snapshots, "examples": drift.examples, "pooling": pooling}}


def _baseline_step(study: Study, model: PlannedModel, task: str, inputs: Mapping[str, str]) -> Step:
    return Step(
        kind="baseline",
        version=VERSIONS["baseline"],
        params={"model": model.identity, "precision": study.train.precision},
        deps=inputs,
        slug=f"{model.name}-{task}",
        locations=model.locations,
    )
