"""A method: how a base model becomes trainable and how what was trained leaves it again.

`prepare` changes the model in place, `param_groups` says what is trained, `export` writes a checkpoint that any tool in the
field can read. While a gang trains, `penalty` adds to each run's loss and `before_step` acts between backward and update, both
on the device, as part of what a CUDA graph replays. `record` says what to keep of a run, `change` what became of the base.
Everything else (loop, evaluation, drift, serving) treats methods alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorascope.errors import NotStackable as NotStackable

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lorascope.models.loading import BaseModel


@dataclass(frozen=True)
class ParamGroup:
    """Parameters under one optimiser setting. decays: whether weight decay applies (not to biases and norms)."""

    parameters: list[nn.Parameter]
    decays: bool


@dataclass(frozen=True)
class Moment:
    """Where the runs of a gang are in their training, int64 [runs] on the device. update: the one under way, from 1. total:
    updates of the whole training."""

    update: Tensor
    total: Tensor

    @classmethod
    def of(cls, totals: Sequence[int], *, device: str) -> Moment:
        import torch

        total = torch.tensor(totals, dtype=torch.int64, device=device)
        return cls(torch.ones_like(total), total)

    def set(self, done: Sequence[int]) -> None:
        """done: updates that each run has behind it."""
        import torch

        host = torch.tensor(done, dtype=torch.int64) + 1
        self.update.copy_(host.pin_memory() if self.update.is_cuda else host, non_blocking=True)


class Method(ABC):
    """One method with its settings. spec: the study's pydantic spec of it.

    shares_base: the base's tensors stay frozen, so runs may share them. flops_per_parameter: training FLOPs a token
    and parameter (Kaplan et al. 2020: 6 for full training; 4 where the base's weight gradients are not computed).
    stacks: `prepare` can give the model the parameters of several runs, stacked along their first axis (methods/stacked).
    change: what a run makes of the base: "dense", its export is a whole checkpoint, or "low-rank", it is PEFT's adapter of
    products B A.
    """

    shares_base: ClassVar[bool]
    flops_per_parameter: ClassVar[int]
    stacks: ClassVar[bool] = False
    change: ClassVar[Literal["low-rank", "dense"]] = "dense"

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    @abstractmethod
    def prepare(
        self,
        model: PreTrainedModel,
        *,
        head: Sequence[str],
        generators: Sequence[torch.Generator],
        specs: Sequence[Any] | None = None,
    ) -> None:
        """Makes exactly the method's parameters trainable, in place. At initialisation the outputs equal the base's.

        generators: one CPU generator a run, for what is drawn at initialisation. The model's head is the first run's,
        drawn already; those of further runs are drawn here before anything else (`models.heads.run_heads`), so each
        run gets what it would get alone. specs: one a run (default: `spec` for all), alike in kind and sites. A method
        that does not stack gets one generator and no specs. Raises NotStackable.
        """

    @abstractmethod
    def expected_parameters(self, model: PreTrainedModel, *, head: Sequence[str]) -> int:
        """The number of trainable parameters of one run by formula, from the unprepared base's shapes."""

    def param_groups(self, model: PreTrainedModel) -> list[ParamGroup]:
        """All trainable parameters, split by whether they decay: matrices do, biases and norm scales do not."""
        from lorascope.methods.stacked import stacked_names

        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        stacked = stacked_names(model)
        decaying = [p for name, p in trained if decays(name, p.ndim - (name in stacked))]
        constant = [p for name, p in trained if not decays(name, p.ndim - (name in stacked))]
        return [ParamGroup(ps, d) for ps, d in ((decaying, True), (constant, False)) if ps]

    def penalty(self, model: nn.Module) -> Float[Tensor, " runs"] | None:
        """A term that is added to the loss of each run, once an update; None for none.

        Part of the captured region: no host may wait for the device. What differs between runs (a weight) lies in the
        model's layers, where `prepare` put it. The losses that are recorded are the task's alone.
        """
        del model
        return None

    def before_step(self, model: nn.Module, *, moment: Moment) -> None:
        """Called after backward, before gradients are clipped and the optimiser steps; gradients lie in `parameter.grad`, with
        the run as their first axis. In the captured region, like `penalty`: where runs are is on the device. What it
        remembers from update to update is in `state`."""
        del model, moment

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Tensors beside the trained weights that training goes on from, the run as their first axis: kept in checkpoints,
        and when the gang is built anew. They are changed in place only."""
        del model
        return {}

    def after_step(self, model: PreTrainedModel, *, step: int) -> None:
        """Called after every optimiser update, on the host, with the model of one run; step counts from 1."""
        del model, step

    def record(self, model: nn.Module, run: int) -> dict[str, Any]:
        """What to keep in the record of one run of the gang's model, such as importances: JSON literals."""
        del model, run
        return {}

    @abstractmethod
    def export(self, model: PreTrainedModel, directory: Path, *, base: BaseModel, run: int = 0) -> None:
        """Writes one run: PEFT's adapter format, or a plain checkpoint; the head included. The method is the run's."""

    def view(self, model: PreTrainedModel, run: int) -> PreTrainedModel:
        """An ordinary model of one run over the same tensors, for evaluation and export; nothing is copied."""
        from lorascope.methods.stacked import view

        return view(model, run)

    @abstractmethod
    def reload(self, directory: Path, *, base: BaseModel) -> nn.Module:
        """The exported model, read back by the public library that owns the format (peft or transformers)."""

    def merge(self, reloaded: nn.Module) -> nn.Module | None:
        """The same model with its adapter folded into the base's weights, or None where there is nothing to merge."""
        del reloaded
        return None


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies to a parameter: not to biases and normalisation scales (Loshchilov & Hutter 2019
    practice). ndim: its axes in one run."""
    return not name.endswith("bias") and "norm" not in name.lower() and ndim > 1
