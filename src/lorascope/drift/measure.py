"""Drift as a measure of runs: one step an arm, its distances in the long table, its draws for the intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from lorascope.data.sources import file_checksum
from lorascope.drift.record import PROBE, SEED_V_SEED, Draws, DriftRecord, read_distances, read_references
from lorascope.engine.step import JSON, Step
from lorascope.measures.measure import FinishedSteps, Measure, MeasuredEvidence, ProbedExamples
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.stats.drift.health import LEAST_EFFECTIVE_RANK
from lorascope.stats.facts.found import DriftDefinition, NotMeasuredFacts
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.engine.store.artifact import Artifact
    from lorascope.stats.drift.runs import DriftDraws, Key


class DriftMeasure(Measure):
    """How far runs are from their base."""

    kind = "drift"
    version = 4

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
        """By which definition drift was measured, and what could not be measured, with the reason."""
        found = tuple(
            NotMeasuredFacts.from_json({**label, "what": what, "why": why})
            for label, artifact in finished
            for what, why in DriftRecord.read(artifact).not_measured.items()
        )
        definitions = {(label["model"], label["task"]): _definition(label, artifact) for label, artifact in finished}
        return replace(facts, not_measured=(*facts.not_measured, *found), drift=tuple(definitions.values()))

    def add_evidence(
        self, evidence: MeasuredEvidence, finished: FinishedSteps, table: pd.DataFrame
    ) -> MeasuredEvidence:
        """Draws of the bootstrap over examples, by arm."""
        found = {
            cast("Key", (label["model"], label["task"], label["method"])): _draws(artifact)
            for label, artifact in finished
        }
        return replace(evidence, drift=found)


def _definition(label: Mapping[str, str | None], artifact: Artifact) -> DriftDefinition:
    """What the drift in one number of this (model, task) is, and which other poolings there are."""
    record = DriftRecord.read(artifact)
    blocks = [layer for layer in record.layers.get("residual", ()) if layer > 0]
    poolings = [record.pooling] if record.poolings is None else record.poolings
    unhealthy = {
        pooling: sorted(
            layer for site, layer in record.left_out_of_averages(pooling) if site == "residual" and layer > 0
        )
        for pooling in poolings
    }
    return DriftDefinition.from_json(
        {
            "model": label["model"],
            "task": label["task"],
            "pooling": record.pooling,
            "poolings": list(poolings),
            "num_layers": len(blocks),
            "left_out": unhealthy,
            "least_effective_rank": None if record.unhealthy is None else LEAST_EFFECTIVE_RANK,
        }
    )


def _draws(artifact: Artifact) -> DriftDraws:
    """By the primary pooling, with those by the others."""
    from lorascope.stats.drift.runs import DriftDraws

    stored, record = Draws.read(artifact), DriftRecord.read(artifact)
    poolings = [record.pooling] if record.poolings is None else record.poolings
    of_points = np.full(len(stored.sites), record.pooling) if stored.poolings is None else stored.poolings
    found = []
    for pooling in poolings:
        chosen = of_points == pooling
        sites, layers = tuple(stored.sites[chosen].tolist()), tuple(stored.layers[chosen].tolist())
        points = list(zip(sites, layers, strict=True))
        unhealthy = record.left_out_of_averages(pooling) & set(points)
        draws = stored.draws[:, :, chosen]
        counted = [site == "residual" and layer > 0 and (site, layer) not in unhealthy for site, layer in points]
        # Where nothing is counted there is no drift in one number, nor a row of it in the measurements.
        none = np.full(draws.shape[:2], np.nan)
        summary = draws[:, :, counted].mean(axis=2) if any(counted) else none
        if pooling == record.pooling:
            summary = none if stored.summary is None else stored.summary
        found.append(
            DriftDraws(
                seeds=tuple(stored.seeds.tolist()),
                sites=sites,
                layers=layers,
                draws=draws,
                summary=summary,
                num_examples=record.num_examples,
                pooling=pooling,
                unhealthy=unhealthy,
            )
        )
    return replace(found[0], others=tuple(found[1:]))


DRIFT = DriftMeasure()
