"""Linear layers whose trained part is stacked over runs, so that several runs go through one frozen base together.

A batch of `runs` runs is their examples concatenated, run by run: [runs * examples, ..., in]. The frozen layer sees one
large batch; the trained part is a batched matrix product in which run k only ever meets its own examples, so gradients
never mix. One run is the ordinary case, runs = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class StackedLoRALinear(nn.Module):
    """y_k = W x_k + b + scaling_k B_k A_k dropout(x_k) for each run k (Hu et al. 2021, eq. 3).

    lora_A: [runs, rank, in], lora_B: [runs, out, rank], scaling: [runs, 1, 1] = alpha / rank. A is Kaiming-uniform
    with a = sqrt(5), B is zero, as in PEFT, so the layer equals its base at initialisation.
    """

    scaling: Tensor

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alphas: Sequence[float],
        dropout: float,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        weight = base.weight
        self.base = base
        self.dropout = dropout
        bound = math.sqrt(6 / ((1 + 5) * base.in_features))
        drawn = [
            torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator) for generator in generators
        ]
        self.lora_A = nn.Parameter(torch.stack(drawn).to(weight.device))
        self.lora_B = nn.Parameter(torch.zeros(len(generators), base.out_features, rank, device=weight.device))
        scaling = torch.tensor([alpha / rank for alpha in alphas], device=weight.device)
        self.register_buffer("scaling", scaling.view(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "*examples in"]) -> Float[Tensor, "*examples out"]:
        y = self.base(x)
        runs, _, width = self.lora_A.shape
        x = nn.functional.dropout(x, self.dropout, self.training)
        hidden = torch.bmm(x.reshape(runs, -1, width), self.lora_A.transpose(1, 2))
        update = torch.bmm(hidden * self.scaling, self.lora_B.transpose(1, 2))
        return y + update.view(y.shape)


class StackedLinear(nn.Module):
    """y_k = W_k x_k + b_k: a fully trained layer with one weight a run, for task heads.

    weight: [runs, out, in], bias: [runs, 1, out] or None. The first run takes the layer's present weights; further
    runs draw theirs from their generator with the same standard deviation.
    """

    def __init__(self, base: nn.Linear, *, generators: Sequence[torch.Generator], std: float) -> None:
        super().__init__()
        first = base.weight.detach()
        others = [torch.empty(first.shape).normal_(0.0, std, generator=g).to(first.device) for g in generators[1:]]
        self.weight = nn.Parameter(torch.stack([first.clone(), *others]))
        bias = torch.zeros(len(generators), 1, base.out_features, device=first.device)
        if base.bias is not None:
            bias[0, 0] = base.bias.detach()
        self.bias = nn.Parameter(bias) if base.bias is not None else None

    def forward(self, x: Float[Tensor, "*examples in"]) -> Float[Tensor, "*examples out"]:
        runs, out, width = self.weight.shape
        y = torch.bmm(x.reshape(runs, -1, width), self.weight.transpose(1, 2))
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], out)

    def linear(self, run: int) -> dict[str, Tensor]:
        """Run `run`'s weight [out, in] and bias [out], as an ordinary linear layer's state."""
        state = {"weight": self.weight[run]}
        if self.bias is not None:
            state["bias"] = self.bias[run, 0]
        return state


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Puts `replacement` where `model` has the submodule `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)
