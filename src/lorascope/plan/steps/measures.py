"""The steps that measure trained runs: drift, one an arm; serving, one a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorascope.data.sources import file_checksum
from lorascope.engine.step import Resources, Step
from lorascope.plan.labels import VERSIONS, PlannedModel, RunLabel, TrainedArms
from lorascope.serving.interpreter import engine_identity, tables_identity
from lorascope.study.checks.serving import served_method
from lorascope.study.measure import DriftSpec, ServingSpec
from lorascope.study.spec import Study


def measurement_steps(
    study: Study, model: PlannedModel, arms: Sequence[TrainedArms]
) -> Iterator[tuple[Step, RunLabel]]:
    """What the study measures of the runs of one model. Raises EnvironmentProblem if it cannot be measured here."""
    if study.measure.drift is not None:
        yield from _drift_steps(study, study.measure.drift, model, arms)
    trained = all(method.name in of_task.trained for of_task in arms for method in study.methods)
    if study.measure.serving is not None and trained:
        yield _serving_step(study, study.measure.serving, model, arms), RunLabel(model.name)


def _drift_steps(
    study: Study, spec: DriftSpec, model: PlannedModel, arms: Sequence[TrainedArms]
) -> Iterator[tuple[Step, RunLabel]]:
    """One step an arm: all its seeds' runs go through the base together, and are compared with each other too."""
    settings = spec.model_dump(mode="json", exclude={"text", "out_of_task", "snapshots"})
    locations, text = dict(model.locations), None
    if spec.text is not None:
        text, locations["text"] = file_checksum(Path(spec.text)), spec.text
    for index, of_task in enumerate(arms):
        other = arms[(index + 1) % len(arms)] if spec.out_of_task and len(arms) > 1 else None
        inputs = {**of_task.inputs, **({f"other_{role}": i for role, i in other.inputs.items()} if other else {})}
        for method in study.methods:
            trained = of_task.trained.get(method.name)
            if trained is None:  # its search goes on
                continue
            step = Step(
                kind="drift",
                version=VERSIONS["drift"],
                params={
                    "model": model.identity,
                    "method": trained[0].params["method"],
                    "drift": {**settings, "text_sha256": text},
                    "other_task": other.task if other else None,
                },
                deps={**inputs, **{f"train:{step.id}": step.id for step in trained}},
                slug=f"{model.name}-{of_task.task}-{method.kind}",
                locations=locations,
            )
            yield step, RunLabel(model.name, of_task.task, method.name)


def _serving_step(study: Study, spec: ServingSpec, model: PlannedModel, arms: Sequence[TrainedArms]) -> Step:
    """One step a model, alone on its machine. The first adapter is the one that is merged; the next are of other tasks,
    then of other seeds, so that those side by side do different work. The full run is the first adapter's counterpart."""
    method = served_method(study, spec)
    deps: dict[str, str] = {}
    methods: dict[str, Any] = {}
    if method is not None and (spec.most_adapters or "merged" in spec.arms):
        wanted = max(spec.most_adapters, 1)
        trained = [of_task.trained[method.name][index] for index in range(len(study.seeds)) for of_task in arms]
        deps |= {f"adapter:{place}": step.id for place, step in enumerate(trained[:wanted])}
        methods["adapter"] = trained[0].params["method"]
    if "full" in spec.arms:
        full = next(m for m in study.methods if m.trains_everything)
        run = arms[0].trained[full.name][0]
        deps["full"] = run.id
        methods["full"] = run.params["method"]
    served = arms[: max(1, spec.most_adapters)]  # the tasks whose adapters are served
    deps |= {f"{role}:{of_task.task}": step_id for of_task in served for role, step_id in of_task.inputs.items()}
    engine, locations = engine_identity(spec)
    tables, where_tables_lie = tables_identity(spec)
    return Step(
        kind="serving",
        version=VERSIONS["serving"],
        params={
            "model": model.identity,
            "methods": methods,
            "serving": spec.model_dump(mode="json", exclude={"python", "method", "engine", "kernel_tables"}),
            "engine": engine,
            "kernel_tables": tables,
            "tasks": [of_task.task for of_task in served],
        },
        deps=deps,
        slug=model.name,
        locations={**model.locations, **locations, **where_tables_lie},
        resources=Resources(alone=True),
    )
