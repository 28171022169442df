"""The steps that measure trained runs, as each measure plans its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorascope.engine.step import Step
from lorascope.measures.measure import known_measures
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.study.spec import Study


def measurement_steps(
    study: Study, model: PlannedModel, arms: Sequence[TrainedArms]
) -> Iterator[tuple[Step, RunLabel]]:
    """What the study measures of the runs of one model. Raises EnvironmentProblem if it cannot be measured here."""
    for measure in known_measures():
        yield from measure.steps(study, model, arms)
