"""Full fine-tuning: every parameter of the model is trained. The arm the others are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.methods.base import Method
from lorascope.models.architectures import known_architecture
from lorascope.models.heads import run_heads

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from lorascope.models.loading import BaseModel


class FullFineTuning(Method):
    shares_base = False
    flops_per_parameter = 6
    stacks = True

    def prepare(
        self,
        model: PreTrainedModel,
        *,
        head: Sequence[str],
        generators: Sequence[torch.Generator],
        specs: Sequence[Any] | None = None,
    ) -> None:
        """One run keeps the plain layers; several get every weight stacked."""
        from lorascope.methods.stacked import set_run, stack_model

        del specs
        if len(generators) > 1:
            heads = run_heads(model, head, generators)
            stack_model(model, len(generators))
            for run, weights in enumerate(heads):
                set_run(model, run, weights)
        model.requires_grad_(True)
        for parameter in _unused(model):
            parameter.requires_grad_(False)

    def expected_parameters(self, model: PreTrainedModel, *, head: Sequence[str]) -> int:
        del head
        return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in _unused(model))

    def export(self, model: PreTrainedModel, directory: Path, *, base: BaseModel, run: int = 0) -> None:
        del base
        self.view(model, run).save_pretrained(directory)

    def reload(self, directory: Path, *, base: BaseModel) -> nn.Module:
        import torch

        return type(base.model).from_pretrained(directory, dtype=torch.float32).eval()


def _unused(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters that the model never reads for a task, so they have no gradient."""
    architecture = known_architecture(model.config.model_type)
    there = dict(model.base_model.named_parameters()) if architecture is not None and architecture.unused else {}
    return [there[name] for name in (architecture.unused if architecture is not None else ()) if name in there]
