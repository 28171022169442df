"""Layers stacked over runs: each run computes and learns what it would alone."""

from __future__ import annotations

import torch
from torch import nn

from lorascope.methods.stacked import StackedLinear, StackedLoRALinear


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def lora(base: nn.Linear, *seeds: int) -> StackedLoRALinear:
    layer = StackedLoRALinear(base, rank=3, alphas=[6.0] * len(seeds), dropout=0.0, generators=generators(*seeds))
    with torch.no_grad():
        for run, generator in enumerate(generators(*seeds)):
            layer.lora_B[run] = torch.randn(layer.lora_B[run].shape, generator=generator)
    return layer


def test_two_runs_together_equal_each_alone_forward_and_backward() -> None:
    base = nn.Linear(10, 7)
    base.requires_grad_(False)
    together, first, second = lora(base, 1, 2), lora(base, 1), lora(base, 2)
    x = torch.randn(8, 5, 10)
    y = together(x)
    torch.testing.assert_close(y[:4], first(x[:4]))
    torch.testing.assert_close(y[4:], second(x[4:]))
    y.square().sum().backward()
    first(x[:4]).square().sum().backward()
    second(x[4:]).square().sum().backward()
    for name in ("lora_A", "lora_B"):
        expected = torch.cat([getattr(first, name).grad, getattr(second, name).grad])
        torch.testing.assert_close(getattr(together, name).grad, expected)


def test_update_equals_the_formula() -> None:
    base = nn.Linear(10, 7)
    layer = lora(base, 5)
    x = torch.randn(4, 10)
    weight = base.weight + (6.0 / 3) * layer.lora_B[0] @ layer.lora_A[0]
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, base.bias))


def test_initial_a_has_the_range_of_peft() -> None:
    layer = StackedLoRALinear(nn.Linear(64, 8), rank=16, alphas=[1.0], dropout=0.0, generators=generators(0))
    reference = torch.empty(1000, 64)
    nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert layer.lora_A.abs().max() <= reference.abs().max() * 1.01
    torch.testing.assert_close(layer.lora_A.std(), reference.std(), rtol=0.05, atol=0)
    assert not layer.lora_B.any()


def test_dropout_acts_in_training_only() -> None:
    layer = lora(nn.Linear(10, 7), 1)
    layer.dropout = 0.5
    x = torch.randn(4, 10)
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x))
    layer.train()
    assert not torch.allclose(layer(x), layer(x))


def test_heads_keep_their_own_weights_a_run() -> None:
    base = nn.Linear(6, 2)
    stacked = StackedLinear(base, generators=generators(0, 1), std=0.02)
    x = torch.randn(6, 6)
    y = stacked(x)
    torch.testing.assert_close(y[:3], base(x[:3]))
    assert not torch.allclose(stacked.weight[0], stacked.weight[1])
    state = stacked.linear(1)
    torch.testing.assert_close(y[3:], nn.functional.linear(x[3:], state["weight"], state["bias"]))
