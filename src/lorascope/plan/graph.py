"""From a study to its graph of steps: the whole computation as data, before anything runs.

    data -> tokens -> baseline
                   -> sanity -> train -> evaluate        (one a run)
                                     -> drift            (one an arm, where the study measures it)
                                     -> serving          (one a model, likewise)
    everything -> analysis

Runs that share a model and a task stand next to each other, so a worker keeps the base and the tokens loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.data.sources import describe_source
from lorascope.engine.step import Resources, Step, canonical_json
from lorascope.models.catalog import describe_model
from lorascope.plan.labels import VERSIONS, PlannedModel, RunLabel, TrainedArms
from lorascope.plan.measurements import measurement_steps
from lorascope.study.spec import AnyMethodSpec, ModelSpec, Study, TaskSpec, TrainSpec


@dataclass(frozen=True)
class Graph:
    """steps: in dependency order, the analysis not among them. labels: step id -> what it is in this study."""

    study: Study
    steps: list[Step]
    labels: Mapping[str, RunLabel]

    def of_kind(self, kind: str) -> list[Step]:
        return [step for step in self.steps if step.kind == kind]


def build_graph(study: Study, *, data_dir: Path | None) -> Graph:
    """Every step of the study but the analysis. Looks at the sources it names (checksums, versions), computes nothing.

    Raises StudyError, DataError or EnvironmentProblem for a model or task that is not there.
    """
    steps: dict[str, Step] = {}
    labels: dict[str, RunLabel] = {}

    def add(step: Step, label: RunLabel) -> Step:
        steps.setdefault(step.id, step)
        labels.setdefault(step.id, label)
        return step

    models = [_described(spec) for spec in study.models]
    data = {task.name: add(_data_step(study, task, data_dir), RunLabel(task=task.name)) for task in study.tasks}
    for model in models:
        arms = [_add_arms(study, model, task.name, data[task.name], add) for task in study.tasks]
        for step, label in measurement_steps(study, model, arms):
            add(step, label)
    return Graph(study, list(steps.values()), labels)


def gang_resources(model: Mapping[str, Any], method: AnyMethodSpec, train: TrainSpec) -> Resources:
    """What a run of `method` shares with those it can be trained together with: the base, what is trained of it, and
    the shape of a batch. What may differ (rank, learning rate, seeds, task, schedule, ...) is left out.
    """
    if not method.gangs:
        return Resources()
    shared = {
        "model": model,
        "method": method.model_dump(mode="json", include={"kind", "sites"}),
        "train": train.model_dump(mode="json", include={"batch_size", "micro_batch_size", "precision"}),
    }
    limits = {"auto": None, "off": 1}
    return Resources(
        gang_key=hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:16],
        gang_limit=limits[train.gang] if isinstance(train.gang, str) else train.gang,
    )


def _described(spec: ModelSpec) -> PlannedModel:
    identity, locations = describe_model(spec)
    return PlannedModel(spec.name, identity, locations)


def _data_step(study: Study, task: TaskSpec, data_dir: Path | None) -> Step:
    source = describe_source(task, data_dir=data_dir, protocol=study.protocol)
    return Step(
        kind="data",
        version=VERSIONS["data"],
        params={
            "task": without_paths(task.model_dump(mode="json")),
            "source": dict(source.fingerprint),
            "protocol": study.protocol,
            "data": study.data.model_dump(mode="json"),
        },
        slug=task.name,
        locations=dict(source.locations),
    )


def without_paths(task: dict[str, Any]) -> dict[str, Any]:
    """A file task's spec with each path replaced by its role: where a file lies is no part of what is computed."""
    return {key: (key if key in ("train", "validation", "test") and value else value) for key, value in task.items()}


def _add_arms(study: Study, model: PlannedModel, task: str, data: Step, add: Any) -> TrainedArms:
    tokens = add(
        Step(
            kind="tokens",
            version=VERSIONS["tokens"],
            params={"model": model.identity, "max_length": study.train.max_length},
            deps={"data": data.id},
            slug=f"{model.name}-{task}",
            locations=model.locations,
        ),
        RunLabel(model.name, task),
    )
    inputs = {"data": data.id, "tokens": tokens.id}
    add(_baseline_step(study, model, task, inputs), RunLabel(model.name, task))
    # Every arm is checked before any is trained: a rank that does not fit must not come out after hours.
    checks = {
        method.name: add(_sanity_step(study, model, task, method, inputs), RunLabel(model.name, task, method.name))
        for method in study.methods
    }
    trained: dict[str, list[Step]] = {method.name: [] for method in study.methods}
    for method in study.methods:
        sanity = checks[method.name]
        resources = gang_resources(model.identity, method, resolved_training(study, method))
        for seeds in study.seeds:
            label = RunLabel(model.name, task, method.name, seeds.label)
            params = {**sanity.params, "seeds": seeds.model_dump(), "protocol": study.protocol, **_snapshots(study)}
            slug = f"{model.name}-{task}-{method.kind}-{seeds.label}"
            train = add(
                Step(
                    kind="train", version=VERSIONS["train"], params=params, deps={**inputs, "sanity": sanity.id},
                    slug=slug, locations=model.locations, resources=resources,
                ),
                label,
            )  # fmt: skip
            trained[method.name].append(train)
            add(
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

    return TrainedArms(task, inputs, trained)


def _snapshots(study: Study) -> dict[str, Any]:
    """What a training step has to know to look at drift on its way; nothing where the study takes no snapshots."""
    drift = study.measure.drift
    if drift is None or drift.snapshots is None:
        return {}
    return {"snapshots": {"count": drift.snapshots, **drift.model_dump(include={"examples", "pooling"})}}


def _baseline_step(study: Study, model: PlannedModel, task: str, inputs: dict[str, str]) -> Step:
    return Step(
        kind="baseline",
        version=VERSIONS["baseline"],
        params={"model": model.identity, "precision": study.train.precision},
        deps=inputs,
        slug=f"{model.name}-{task}",
        locations=model.locations,
    )


def _sanity_step(study: Study, model: PlannedModel, task: str, method: AnyMethodSpec, inputs: dict[str, str]) -> Step:
    return Step(
        kind="sanity",
        version=VERSIONS["sanity"],
        params={
            "model": model.identity,
            "method": method.model_dump(mode="json", exclude={"name", "train", "learning_rate"}),
            "learning_rate": method.learning_rate,
            "train": resolved_training(study, method).model_dump(mode="json", exclude={"gang"}),
        },
        deps=inputs,
        slug=f"{model.name}-{task}-{method.kind}",
        locations=model.locations,
    )


def resolved_training(study: Study, method: AnyMethodSpec) -> TrainSpec:
    """The study's training settings with the method's own in their place."""
    overrides = {key: value for key, value in method.train.model_dump().items() if value is not None}
    return TrainSpec.model_validate({**study.train.model_dump(), **overrides})
