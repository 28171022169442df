"""A run that is set up to train."""

from __future__ import annotations

from dataclasses import dataclass

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.models.loading import BaseModel
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.member import Member
from lorascope.training.reading import Reading
from lorascope.training.sizing import UpdateCost


@dataclass(eq=False)
class Run:
    """One run to train, and where it belongs. started: when its gang began. alone: what an update costs without a
    gang, where that was measured."""

    index: int
    context: StepContext
    member: Member
    base: BaseModel
    validation: ColumnStore
    checkpointer: Checkpointer
    started: float = 0.0
    alone: UpdateCost | None = None

    @property
    def reading(self) -> Reading:
        """How the run's examples are read."""
        return self.member.reading
