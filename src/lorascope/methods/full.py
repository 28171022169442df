"""Full fine-tuning: every parameter of the model is trained. The arm the others are held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.methods.base import Method

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from lorascope.models.loading import BaseModel


class FullFineTuning(Method):
    shares_base = False
    flops_per_parameter = 6

    def prepare(self, model: PreTrainedModel, *, head: Sequence[str], generators: Sequence[torch.Generator]) -> None:
        del head
        if len(generators) != 1:
            raise ValueError("full fine-tuning trains one run at a time: its runs share no frozen base")
        model.requires_grad_(True)

    def expected_parameters(self, model: PreTrainedModel, *, head: Sequence[str]) -> int:
        del head
        return sum(p.numel() for p in model.parameters())

    def export(self, model: PreTrainedModel, directory: Path, *, base: BaseModel, run: int = 0) -> None:
        del base, run
        model.save_pretrained(directory)

    def reload(self, directory: Path, *, base: BaseModel) -> nn.Module:
        import torch

        return type(base.model).from_pretrained(directory, dtype=torch.float32).eval()
