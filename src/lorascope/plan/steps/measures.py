"""The steps that measure trained runs, as each measure plans its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lorascope.engine.step import Step
from lorascope.measures.measure import known_measures
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.plugins import STAMPS, stamped
from lorascope.registry import MEASURES
from lorascope.study.spec import Study


def measurement_steps(
    study: Study, model: PlannedModel, arms: Sequence[TrainedArms]
) -> Iterator[tuple[Step, RunLabel]]:
    """What the study measures of the runs of one model; the steps of a plug-in's measure say which one it is. Raises
    EnvironmentProblem if it cannot be measured here, or a plug-in that the study asks for is broken."""
    for kind in study.measure.further:
        MEASURES[kind].load()
    for measure in known_measures():
        stamp = stamped(measure=(MEASURES, measure.kind)).get(STAMPS, {})
        for step, label in measure.steps(study, model, arms):
            stamps = {**step.params.get(STAMPS, {}), **stamp}
            yield replace(step, params={**step.params, STAMPS: stamps}) if stamp else step, label
