"""A method: how a base model becomes trainable and how what was trained leaves it again.

Four hooks. `prepare` changes the model in place, `param_groups` says what is trained, `after_step` runs after each
update (rank schedules), `export` writes a checkpoint any tool in the field can read. Everything else (loop, evaluation,
drift, serving) treats methods alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.errors import NotStackable as NotStackable

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from lorascope.models.loading import BaseModel


@dataclass(frozen=True)
class ParamGroup:
    """Parameters under one optimiser setting. decays: whether weight decay applies (not to biases and norms)."""

    parameters: list[nn.Parameter]
    decays: bool


class Method(ABC):
    """One method with its settings. spec: the study's pydantic spec of it.

    shares_base: the base's tensors stay frozen, so runs may share them. flops_per_parameter: training FLOPs a token
    and parameter (Kaplan et al. 2020: 6 for full training; 4 where the base's weight gradients are not computed).
    stacks: `prepare` can give the model the parameters of several runs, stacked along their first axis (methods/stacked).
    """

    shares_base: ClassVar[bool]
    flops_per_parameter: ClassVar[int]
    stacks: ClassVar[bool] = False

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
        drawn already; those of further runs are drawn here before anything else (`models.loading.run_heads`), so each
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

    def after_step(self, model: PreTrainedModel, *, step: int) -> None:
        """Called after every optimiser update; step counts from 1."""
        del model, step

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
