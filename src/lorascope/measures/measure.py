"""A measure: one way of looking at finished runs (drift, serving), from its steps to what the analysis takes from them.

The analysis step knows no measure by name. It asks each one in `registry.MEASURES` for rows of the long table, for gates,
for what it states besides numbers, and for what the statistics need beyond the table. A new measure is a folder with its
step, a record that alone knows the files and result keys of that step, and one subclass of `Measure`; it has a line in
`registry.STEP_KINDS` and one in `registry.MEASURES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lorascope.engine.step import JSON, Step
from lorascope.engine.store.artifact import Artifact
from lorascope.measures.planned import PlannedModel, RunLabel, TrainedArms
from lorascope.registry import MEASURES
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.stats.drift.runs import DriftDraws, Key
    from lorascope.stats.serving.analysis import ServingAnalysis

FinishedSteps = Sequence[tuple[Mapping[str, str | None], Artifact]]
"""Finished steps of one measure: (label, artifact). A label has the keys model, task, method and seed."""


class ProbedExamples(NamedTuple):
    """The examples that a finished step looked at: of which task, and the SHA-256 of their ids."""

    task: str | None
    step: str
    ids_sha256: str


@dataclass(frozen=True)
class MeasuredEvidence:
    """What the statistics need of measures beyond the long table. drift: draws of the bootstrap, by (model, task, method).
    serving: None where nothing was served."""

    drift: Mapping[Key, DriftDraws] = field(default_factory=dict)
    serving: ServingAnalysis | None = None


class Measure(ABC):
    """kind: of its steps. version: of its steps; raised when the code behind them changes its results."""

    kind: ClassVar[str]
    version: ClassVar[int]

    @abstractmethod
    def steps(self, study: Study, model: PlannedModel, arms: Sequence[TrainedArms]) -> Iterator[tuple[Step, RunLabel]]:
        """The steps for the runs of one model; none where the study does not measure this. Raises EnvironmentProblem where
        it cannot be measured here."""

    @abstractmethod
    def rows(self, finished: FinishedSteps) -> Iterable[pd.DataFrame]:
        """What the finished steps measured, as rows of the long table (`stats.measurements.COLUMNS`)."""

    def without_places(self, settings: JSON) -> JSON:
        """The measure's settings in a study without what only says where things lie, which is no part of an identity."""
        return settings

    def examples(self, finished: FinishedSteps) -> Iterable[ProbedExamples]:
        """The examples that steps looked at. Those of one task must be the same for all of its arms."""
        return ()

    def gates(self, finished: FinishedSteps) -> Iterable[JSON]:
        """Checks that the steps have passed or not: gate, passed, model, task, method, seed, value, threshold, detail."""
        return ()

    def add_facts(self, facts: StudyFacts, finished: FinishedSteps) -> StudyFacts:
        """The facts of the study with what this measure states besides numbers."""
        return facts

    def add_evidence(
        self, evidence: MeasuredEvidence, finished: FinishedSteps, table: pd.DataFrame
    ) -> MeasuredEvidence:
        """The evidence with what the statistics need of this measure. table: the whole long table."""
        return evidence


def known_measures() -> list[Measure]:
    """Every measure there is, in the order of the table; one of a plug-in that is broken is named and left out."""
    return list(MEASURES.loaded().values())
