"""Drift as a measure of runs: one step an arm, its distances in the long table, its draws for the intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from lorascope.data.sources import file_checksum
from lorascope.drift.record import PROBE, SEED_V_SEED, Draws, DriftRecord, read_distances, read_references
from lorascope.engine.step import JSON, Step
from lorascope.measures.measure import FinishedSteps, Measure, MeasuredEvidence, ProbedExamples
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.stats.facts.found import NotMeasuredFacts
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.stats.drift.runs import Key


class DriftMeasure(Measure):
    """How far runs are from their base."""

    kind = "drift"
    version = 3

    def steps(self, study: Study, model: PlannedModel, arms: Sequence[TrainedArms]) -> Iterator[tuple[Step, RunLabel]]:
        """One step an arm: all its seeds' runs go through the base together, and are compared with each other too."""
        spec = study.measure.drift
        if spec is None:
            return
        settings = spec.model_dump(mode="json", exclude={"text", "out_of_task", "snapshots"})
        locations, text = dict(model.locations), None
        if spec.text is not None:
            text, locations["text"] = file_checksum(Path(spec.text)), spec.text
        for index, of_task in enumerate(arms):
            others = [arm for arm in (*arms[index + 1 :], *arms[:index]) if arm.is_prepared]
            other = others[0] if spec.out_of_task and others else None
            inputs = {**of_task.inputs, **({f"other_{role}": i for role, i in other.inputs.items()} if other else {})}
            for method in study.methods:
                trained = of_task.trained.get(method.name)
                if trained is None:  # its search goes on
                    continue
                step = Step(
                    kind=self.kind,
                    version=self.version,
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

    def without_places(self, settings: JSON) -> JSON:
        """That a text was read is kept, not where it lies."""
        return settings if settings["text"] is None else {**settings, "text": "text"}

    def rows(self, finished: FinishedSteps) -> Iterator[pd.DataFrame]:
        """Every run's distances to its base, then what they are to be read with, as methods `reference:...`."""
        for label, artifact in finished:
            arm = {key: label[key] for key in ("model", "task", "method")}
            yield read_distances(artifact).assign(**arm, example_id=None)
            references = read_references(artifact)
            is_of_arm = references["reference"] == SEED_V_SEED
            own = references["reference"].where(~is_of_arm, f"{SEED_V_SEED}:{label['method']}")
            yield references.drop(columns="reference").assign(
                run=artifact.id, model=label["model"], task=label["task"], method="reference:" + own, seed="*", unit="1",
                example_id=None,
            )  # fmt: skip

    def examples(self, finished: FinishedSteps) -> Iterator[ProbedExamples]:
        """Those of the in-task probe."""
        for label, artifact in finished:
            probe = DriftRecord.read(artifact).probes[PROBE]
            yield ProbedExamples(label["task"], artifact.id, probe.ids_sha256)

    def add_facts(self, facts: StudyFacts, finished: FinishedSteps) -> StudyFacts:
        """What could not be measured, with the reason."""
        found = tuple(
            NotMeasuredFacts.from_json({**label, "what": what, "why": why})
            for label, artifact in finished
            for what, why in DriftRecord.read(artifact).not_measured.items()
        )
        return replace(facts, not_measured=(*facts.not_measured, *found))

    def add_evidence(
        self, evidence: MeasuredEvidence, finished: FinishedSteps, table: pd.DataFrame
    ) -> MeasuredEvidence:
        """Draws of the bootstrap over examples, by arm."""
        from lorascope.stats.drift.runs import DriftDraws

        found: dict[Key, DriftDraws] = {}
        for label, artifact in finished:
            stored, record = Draws.read(artifact), DriftRecord.read(artifact)
            # Without the residual stream there is no drift in one number, nor a row of it in the measurements.
            summary = np.full(stored.draws.shape[:2], np.nan) if stored.summary is None else stored.summary
            found[cast("Key", (label["model"], label["task"], label["method"]))] = DriftDraws(
                seeds=tuple(stored.seeds.tolist()),
                sites=tuple(stored.sites.tolist()),
                layers=tuple(stored.layers.tolist()),
                draws=stored.draws,
                summary=summary,
                num_examples=record.num_examples,
            )
        return replace(evidence, drift=found)


DRIFT = DriftMeasure()
