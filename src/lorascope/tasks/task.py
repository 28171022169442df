"""A task: where its examples come from, what they become, what is predicted and how that is scored.

A source and three contracts: `Inputs` (what an example becomes), `Head` (which output of which model is the prediction)
and `Scoring` (loss, predictions, metrics). The loop, gangs, evaluation, drift, serving and the report know a task only
through them. Nothing outside `tasks/` may ask which task it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Columns
from lorascope.models.heads import Head
from lorascope.study.tasks.base import TaskSettings
from lorascope.tasks.inputs import EXAMPLE, SIZE_BEFORE, Inputs, TextInputs
from lorascope.tasks.scoring import Scoring

if TYPE_CHECKING:
    from lorascope.data.raw import RawExamples
    from lorascope.data.sources import SourceDescription


class Task(ABC):
    """One task. Built from what the `data` step recorded, so it is the same in every step.

    name: as the study calls it. settings: of a kind that a study describes (`kind: classification`); None for a task that
    a study names. reads: the class of its inputs, known before there are any data. metric_choices: the metrics that its
    per-example columns can make, on which a study may declare a claim; None: not known before its data are read.
    """

    settings: ClassVar[type[TaskSettings] | None] = None
    reads: ClassVar[type[Inputs]] = TextInputs
    metric_choices: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, name: str, *, inputs: Inputs, head: Head, scoring: Scoring) -> None:
        self.name, self.inputs, self.head, self.scoring = name, inputs, head, scoring

    # --------------------------------------------------------------------------------------------------------- source

    @classmethod
    def describe(cls, spec: Any, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        """The source's fingerprint and locations. Cheap: no examples are read."""
        raise NotImplementedError(f"{cls.__name__} has no source of its own")

    @classmethod
    def read(cls, spec: Any, *, source: SourceDescription, protocol: str) -> RawExamples:
        """The examples of a source that `describe` described."""
        raise NotImplementedError(f"{cls.__name__} has no source of its own")

    @classmethod
    @abstractmethod
    def from_description(cls, description: Mapping[str, Any]) -> Task:
        """The task of a source, from `RawExamples.task` and its "name"."""

    def published(self) -> list[dict[str, Any]]:
        """Figures from the literature: {"model", "method", "metric", "value", "citation", "setting"}; may be empty."""
        return []

    # ------------------------------------------------------------------------------------------------------ the contract

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics it reports, the primary one first."""
        return self.scoring.metric_names

    @property
    def primary_metric(self) -> str:
        return self.metric_names[0]

    @property
    def uses(self) -> tuple[ColumnUse, ...]:
        """The columns of a batch: those for the model, then those for the loss."""
        return (*self.inputs.uses, *self.scoring.targets)

    @property
    def target_keys(self) -> frozenset[str]:
        """What of a batch is for the loss and not for the model."""
        return frozenset(use.key for use in self.scoring.targets)

    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        """Columns of one array a row; rows of one example stand together. `EXAMPLE` is always there."""
        columns = self.inputs.encode(examples, processor, max_length=max_length)
        columns.setdefault(EXAMPLE, [np.asarray(index, dtype=np.int64) for index in range(len(examples))])
        sizes = {name: columns.pop(name) for name in (SIZE_BEFORE,) if name in columns}
        return {**columns, **self.scoring.encode(examples, columns, processor), **sizes}
