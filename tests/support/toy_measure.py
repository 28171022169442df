"""A third measure of runs, whole: its step counts the weights of each exported run that are exactly 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from safetensors.numpy import load_file

from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.measures.measure import FinishedSteps, Measure
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.stats.facts.study import MeasureFacts, StudyFacts
from lorascope.stats.measurements import measurement_rows
from lorascope.study.spec import Study

FILE = "zeros.parquet"


def count_zeros(context: StepContext) -> dict[str, Any]:
    """deps: train:ID."""
    rows = []
    for artifact in context.deps.values():
        weights = [w for path in artifact.file("export").glob("*.safetensors") for w in load_file(path).values()]
        rows.append({"run": artifact.id, "zeros": sum(int((weight == 0).sum()) for weight in weights)})
    pd.DataFrame(rows).to_parquet(context.out / FILE)
    return {"num_runs": len(rows)}


class ZerosMeasure(Measure):
    kind = "zeros"
    version = 1

    def steps(self, study: Study, model: PlannedModel, arms: Sequence[TrainedArms]) -> Iterator[tuple[Step, RunLabel]]:
        if self.kind in study.measure.further:
            for of_task in arms:
                for method, trained in of_task.trained.items():
                    deps = {f"train:{step.id}": step.id for step in trained}
                    yield Step(self.kind, self.version, {}, deps), RunLabel(model.name, of_task.task, method)

    def rows(self, finished: FinishedSteps) -> Iterator[pd.DataFrame]:
        for label, artifact in finished:
            found = pd.read_parquet(artifact.file(FILE))
            shared = {**label, "seed": "*", "metric": "zero_weights", "unit": "1"}
            yield measurement_rows(shared, {"run": found["run"], "value": found["zeros"]})

    def gates(self, finished: FinishedSteps) -> Iterator[dict[str, Any]]:
        for label, artifact in finished:
            passed = artifact.result["num_runs"] > 0
            yield {**label, "gate": "has runs", "passed": passed, "value": None, "threshold": None, "detail": ""}

    def add_facts(self, facts: StudyFacts, finished: FinishedSteps) -> StudyFacts:
        if not finished:
            return facts
        runs = sum(artifact.result["num_runs"] for _, artifact in finished)
        stated = MeasureFacts(title="Zero weights", sentences=(f"The zeros of {runs} runs were counted.",))
        return replace(facts, measures={**facts.measures, self.kind: stated})


ZEROS = ZerosMeasure()
