"""What every kind of method has: its settings, and what the rest of lorascope has to know of it without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from lorascope.study.base import Name, Spec
from lorascope.study.ranges import Range, Values
from lorascope.study.train import TrainOverrides

Ranges = Mapping[str, Range | Values]


class MethodBase(Spec):
    """Shared by every kind. A kind adds `kind`, `learning_rate` and its own settings, each with a sentence.

    learning_rate belongs to the method because the optimum does: LoRA's is about ten times that of full fine-tuning.
    title: the literature's spelling. trains: what is trained, in words; settings in braces. ranges: of each preset
    ("published", "wide"), where its settings are searched. gangs: whether runs of this kind can be trained together in
    one process; alike: settings in which they must then be equal. has_adapter: whether what is trained stays apart from
    the base, so that it can be served beside it or merged into it; served_by: the engines that serve it so.
    trains_everything: whether every weight of the base is trained: what others are compared with.
    """

    title: ClassVar[str] = ""
    trains: ClassVar[str] = ""
    ranges: ClassVar[Mapping[str, Ranges]] = {}
    gangs: ClassVar[bool] = False
    alike: ClassVar[tuple[str, ...]] = ("kind",)
    has_adapter: ClassVar[bool] = False
    served_by: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "vllm-server")
    trains_everything: ClassVar[bool] = False

    if TYPE_CHECKING:  # each kind has its own, after these
        kind: str
        learning_rate: float

    name: Name = Field(
        description="How hypotheses and report call it. Default: its kind; needed where two methods are of one kind."
    )
    train: TrainOverrides = Field(
        default=TrainOverrides(), description="Fields of the study's `train` that this method sets for itself."
    )
    hyperparameters: str | None = Field(
        default=None,
        description="What an earlier search found, relative to the study file: a directory with `TASK_METHOD.yaml` for each "
        "task, such as `results/STUDY/optimal`, or one such file for all tasks. The method is then not searched.",
    )

    def searched(self, ranges: Ranges) -> Ranges:
        """The ranges of a preset as they are searched for this method, given how it is written."""
        return ranges

    def settled(self) -> Self:
        """The method with what follows from its other settings."""
        return self
