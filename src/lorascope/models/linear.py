"""Linear layers, of whatever class: torch's, and the Conv1D of GPT-2, which keeps its weight as [in, out]."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes W x + b."""
    from torch import nn

    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is [in, out] (PEFT: `fan_in_fan_out`)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def linear_weight(layer: nn.Module) -> Tensor:
    """The layer's weight as [out, in], a view."""
    weight = layer.get_parameter("weight")
    return weight.t() if is_transposed(layer) else weight


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs)."""
    out, inputs = linear_weight(layer).shape
    return out, inputs


def linear_at(model: nn.Module, name: str) -> nn.Module:
    """The linear layer called `name`."""
    layer = model.get_submodule(name)
    assert is_linear(layer), f"{name} is a {type(layer).__name__}, not a linear layer"
    return layer
