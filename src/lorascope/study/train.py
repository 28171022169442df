"""How runs are trained: the study's settings, and those of them that a method may set for itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorascope.registry import nearest
from lorascope.study.base import Spec
from lorascope.study.units import Fraction


class EarlyStopping(Spec):
    """Stop after `patience` evaluations without a better validation score."""

    patience: Annotated[int, Field(ge=1)] = 3


def _check_gang(value: Any) -> Any:
    if value in ("auto", "off") or (type(value) is int and value >= 1):
        return value
    match = nearest(str(value), ("auto", "off"))
    meant = f": did you mean `{match}`?" if match else ""
    raise ValueError(f"must be auto, off or a whole number of runs, at least 1; found {value!r}{meant}")


Gang = Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=1)], BeforeValidator(_check_gang)]


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSpec(Spec):
    """How every run of the study is trained. A method may override single fields (`methods[].train`).

    batch_size: examples an update. micro_batch_size: examples a forward pass (None: the whole batch); the rest is
    gradient accumulation. max_length: tokens. warmup: fraction of all updates. evaluations_per_epoch: how often the
    validation score is taken. gang: the most runs trained together in one process; it changes no result and is no part
    of a run's identity.
    """

    epochs: Annotated[float, Field(gt=0)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 16
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 384
    precision: Literal["fp32", "bf16"] = "fp32"
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 1
    early_stopping: EarlyStopping | None = EarlyStopping()
    gang: Gang = "auto"

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainSpec:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class TrainOverrides(Spec):
    """The fields of `train` that a method may set for itself; what is absent stays the study's."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    schedule: Literal["linear", "cosine", "constant"] | None = None
    warmup: Fraction | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
