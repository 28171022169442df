"""The steps that a run is made of: data, tokens, the gates before training, and what it trains with. Trials of a search are
made of the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lorascope.data.sources import SourceDescription, task_key
from lorascope.engine.step import Resources, Step, canonical_json
from lorascope.plan.labels import VERSIONS, PlannedModel
from lorascope.plugins import stamped
from lorascope.registry import METHOD_SETTINGS, TASKS
from lorascope.study.methods.base import MethodBase
from lorascope.study.per_task import identity_of
from lorascope.study.spec import DataSpec, Study, TaskSpec, TrainSpec
from lorascope.study.tasks import without_paths


def data_step(study: Study, task: TaskSpec, source: SourceDescription, data: DataSpec) -> Step:
    return Step(
        kind="data",
        version=VERSIONS["data"],
        params={
            "task": without_paths(identity_of(task)),
            "source": dict(source.fingerprint),
            "protocol": task.protocol or study.protocol,
            "data": data.model_dump(mode="json"),
            **({} if task.test_rows is None else {"test_rows": task.test_rows}),
            **stamped(task=(TASKS, task_key(task))),
        },
        slug=task.name,
        locations=dict(source.locations),
    )


def tokens_step(study: Study, model: PlannedModel, data: Step) -> Step:
    return Step(
        kind="tokens",
        version=VERSIONS["tokens"],
        params={"model": model.identity, "max_length": study.train.max_length},
        deps={"data": data.id},
        slug=f"{model.name}-{data.slug}",
        locations=model.locations,
    )


def sanity_step(study: Study, model: PlannedModel, task: str, method: MethodBase, inputs: Mapping[str, str]) -> Step:
    return Step(
        kind="sanity",
        version=VERSIONS["sanity"],
        params=training_params(study, model, method),
        deps=inputs,
        slug=f"{model.name}-{task}-{method.kind}",
        locations=model.locations,
    )


def training_params(study: Study, model: PlannedModel, method: MethodBase) -> dict[str, Any]:
    """What is trained and how, as literals."""
    return {
        "model": model.identity,
        "method": method.model_dump(mode="json", exclude={"name", "train", "learning_rate", "hyperparameters"}),
        "learning_rate": method.learning_rate,
        "train": resolved_training(study, method).model_dump(mode="json", exclude={"gang"}),
        **stamped(method=(METHOD_SETTINGS, method.kind)),
    }


def resolved_training(study: Study, method: MethodBase) -> TrainSpec:
    """The study's training settings with the method's own in their place."""
    overrides = {key: value for key, value in method.train.model_dump().items() if value is not None}
    return TrainSpec.model_validate({**study.train.model_dump(), **overrides})


def gang_resources(model: Mapping[str, Any], method: MethodBase, train: TrainSpec) -> Resources:
    """What a run of `method` shares with those it can be trained together with: the base, what is trained of it, and
    the shape of a batch. What may differ (rank, learning rate, seeds, task, schedule, ...) is left out.
    """
    if not method.gangs:
        return Resources()
    shared = {
        "model": model,
        "method": method.model_dump(mode="json", include=set(method.alike)),
        "train": train.model_dump(mode="json", include={"batch_size", "micro_batch_size", "precision"}),
    }
    limits = {"auto": None, "off": 1}
    return Resources(
        gang_key=hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:16],
        gang_limit=limits[train.gang] if isinstance(train.gang, str) else train.gang,
    )
