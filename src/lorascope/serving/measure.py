"""Serving as a measure of runs: one step a model, its figures in the long table, what was checked and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorascope.engine.step import JSON, Resources, Step
from lorascope.measures.measure import FinishedSteps, Measure, MeasuredEvidence
from lorascope.measures.planned import KnownEngine, PlannedModel, RunLabel, TrainedArms
from lorascope.serving.interpreter import tables_identity
from lorascope.serving.record import read_serving
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.checks.serving import served_method
from lorascope.study.measure import ServingSpec
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd


class ServingMeasure(Measure):
    """What requests cost on the base, fully fine-tuned, merged, and with adapters side by side."""

    kind = "serving"
    version = 4

    def steps(self, study: Study, model: PlannedModel, arms: Sequence[TrainedArms]) -> Iterator[tuple[Step, RunLabel]]:
        """One step a model, once the runs of all its arms are planned and its engine is known."""
        trained = all(method.name in of_task.trained for of_task in arms for method in study.methods)
        if study.measure.serving is not None and trained and model.engine is not None:
            yield self._step(study, study.measure.serving, model, arms, model.engine), RunLabel(model.name)

    def _step(
        self, study: Study, spec: ServingSpec, model: PlannedModel, arms: Sequence[TrainedArms], engine: KnownEngine
    ) -> Step:
        """Alone on its machine. The first adapter is the one that is merged; the next are of other tasks, then of other
        seeds, so that those side by side do different work. The full run is the first adapter's counterpart."""
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
        tables, where_tables_lie = tables_identity(spec)
        return Step(
            kind=self.kind,
            version=self.version,
            params={
                "model": model.identity,
                "methods": methods,
                "serving": spec.model_dump(mode="json", exclude={"python", "method", "engine", "kernel_tables"}),
                "engine": engine.identity,
                "kernel_tables": tables,
                "tasks": [of_task.task for of_task in served],
            },
            deps=deps,
            slug=model.name,
            locations={**model.locations, **engine.locations, **where_tables_lie},
            resources=Resources(alone=True),
        )

    def without_places(self, settings: JSON) -> JSON:
        """Where the engine's interpreter lies is left out."""
        return {**settings, "python": None}

    def rows(self, finished: FinishedSteps) -> Iterator[pd.DataFrame]:
        """The figures of every engine process."""
        from lorascope.stats.serving.table import served_rows

        for label, artifact in finished:
            record = read_serving([(label, artifact)])
            if record is not None:
                yield served_rows(record.figures, run=artifact.id)

    def add_facts(self, facts: StudyFacts, finished: FinishedSteps) -> StudyFacts:
        """Gates, engines, failures, the settings tried, and what merging changes."""
        record = read_serving(finished)
        return facts if record is None else replace(facts, serving=record.facts)

    def add_evidence(
        self, evidence: MeasuredEvidence, finished: FinishedSteps, table: pd.DataFrame
    ) -> MeasuredEvidence:
        """The analysis of the figures that the table holds, without those of arms that failed a gate."""
        from lorascope.stats.serving.analyse import analyse_serving
        from lorascope.stats.serving.table import served_figures

        record = read_serving(finished)
        if record is None:
            return evidence
        facts = [*record.engines, *record.failures]
        return replace(evidence, serving=analyse_serving(served_figures(table), gates=record.gates, facts=facts))


SERVING = ServingMeasure()
