"""Layers stacked over runs: each run computes and learns what it would alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTForImageClassification
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorascope.methods.base import NotStackable
from lorascope.methods.dropout import DropoutStreams
from lorascope.methods.stacked import (
    StackedLinear,
    StackedLoRALinear,
    StackedRMSNorm,
    replace_module,
    stack_model,
    stacked_names,
    view,
)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def lora(
    base: nn.Linear, *seeds: int, ranks: Sequence[int] | None = None, alphas: Sequence[float] | None = None
) -> StackedLoRALinear:
    ranks, alphas = ranks or [3] * len(seeds), alphas or [6.0] * len(seeds)
    layer = StackedLoRALinear(
        base, ranks=ranks, alphas=alphas, dropouts=[0.0] * len(seeds), generators=generators(*seeds)
    )
    with torch.no_grad():
        for run, (rank, generator) in enumerate(zip(ranks, generators(*seeds), strict=True)):
            layer.lora_B[run, :, :rank] = torch.randn(base.out_features, rank, generator=generator)
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


def test_runs_of_mixed_ranks_equal_each_alone_and_padding_stays_zero() -> None:
    base = nn.Linear(10, 7).requires_grad_(False)
    ranks, alphas = [1, 5, 3], [1.0, 20.0, 6.0]
    together = lora(base, 1, 2, 3, ranks=ranks, alphas=alphas)
    together.dropout.connect(DropoutStreams(3, "cpu"), 0)
    alone = [lora(base, seed, ranks=[ranks[seed - 1]], alphas=[alphas[seed - 1]]) for seed in (1, 2, 3)]
    x = torch.randn(6, 4, 10)
    optimiser = torch.optim.AdamW(together.parameters(), lr=0.1, weight_decay=0.1)
    for update in range(3):
        y = together(x)
        if update == 0:
            torch.testing.assert_close(y, torch.cat([layer(x[2 * k : 2 * k + 2]) for k, layer in enumerate(alone)]))
        optimiser.zero_grad()
        y.square().sum().backward()
        optimiser.step()
    for run, rank in enumerate(ranks):
        assert not together.lora_A[run, rank:].any()
        assert not together.lora_B[run, :, rank:].any()
        assert together.lora_A[run, :rank].all()
        torch.testing.assert_close(together.view(run)(x[2 * run : 2 * run + 2]), together(x)[2 * run : 2 * run + 2])


def test_update_equals_the_formula() -> None:
    base = nn.Linear(10, 7)
    layer = lora(base, 5)
    x = torch.randn(4, 10)
    weight = base.weight + (6.0 / 3) * layer.lora_B[0] @ layer.lora_A[0]
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, base.bias))


def test_initial_a_has_the_range_of_peft() -> None:
    layer = StackedLoRALinear(nn.Linear(64, 8), ranks=[16], alphas=[1.0], dropouts=[0.0], generators=generators(0))
    reference = torch.empty(1000, 64)
    nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert layer.lora_A.abs().max() <= reference.abs().max() * 1.01
    torch.testing.assert_close(layer.lora_A.std(), reference.std(), rtol=0.05, atol=0)
    assert not layer.lora_B.any()


def test_dropout_acts_on_the_update_in_training_only() -> None:
    layer = lora(nn.Linear(10, 7), 1)
    layer.dropout.set_probabilities([0.5])
    layer.dropout.connect(DropoutStreams(1, "cpu"), 0)
    x = torch.randn(4, 10)
    layer.eval()
    plain = layer(x)
    layer.train()
    first = layer(x)
    assert not torch.allclose(first, plain)
    layer.dropout.streams.set([9])
    assert not torch.allclose(layer(x), first)
    with torch.no_grad():
        layer.lora_B.zero_()
    torch.testing.assert_close(layer(x), layer.base(x))


# ------------------------------------------------------------------------------------------- fully trained layers


class Small(nn.Module):
    """Every layer that can be stacked, positions given once for all examples included."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(10, 8)
        self.norm, self.bare = nn.LayerNorm(8), nn.LayerNorm(8, bias=False)
        self.rms, self.gemma = LlamaRMSNorm(8), GemmaRMSNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1]).unsqueeze(0)))
        x = x + self.down(self.up(self.rms(x)).tanh())
        return self.gemma(self.bare(x)).square().mean(dim=1)


def small(seed: int) -> Small:
    torch.manual_seed(seed)
    model = Small()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def in_one_buffer(model: nn.Module, runs: int) -> torch.Tensor:
    """Rebinds every parameter to its part of one [runs, parameters] tensor, as the optimiser has them."""
    named = list(model.named_parameters())
    flat = torch.cat([p.detach().reshape(runs, -1) for _, p in named], dim=1)
    start = 0
    for name, parameter in named:
        width = parameter[0].numel()
        part = flat[:, start : start + width].unflatten(1, parameter.shape[1:])
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, nn.Parameter(part))
        start += width
    return flat


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stacked_model_equals_each_of_its_runs(precision: str, flat: bool) -> None:
    alone = [small(seed) for seed in range(3)]
    together = small(9)
    stack_model(together, 3)
    with torch.no_grad():
        for name, parameter in together.named_parameters():
            parameter.copy_(torch.stack([model.get_parameter(name) for model in alone]))
    if flat:
        in_one_buffer(together, 3)
    ids = torch.randint(0, 20, (12, 7))
    ids[:, 5:] = 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        y = together(ids)
        expected = torch.cat([model(ids[4 * run : 4 * run + 4]) for run, model in enumerate(alone)])
    assert y.dtype == expected.dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(y, expected, **tolerance)
    y.float().sum().backward()
    expected.float().sum().backward()
    for name, parameter in together.named_parameters():
        gradients = torch.stack([model.get_parameter(name).grad for model in alone])
        scale = float(gradients.abs().max())
        torch.testing.assert_close(parameter.grad / scale, gradients / scale, **tolerance, msg=name)
    assert not together.words.weight.grad[:, 0].any()
    for run, model in enumerate(alone):
        one = view(together, run)
        assert {name: p.shape for name, p in one.named_parameters()} == {
            name: p.shape for name, p in model.named_parameters()
        }
        assert [type(module) for module in one.modules()] == [type(module) for module in model.modules()]
        torch.testing.assert_close(one(ids), model(ids))


def test_view_of_a_run_follows_the_stacked_weights() -> None:
    model = nn.Sequential(StackedLinear(nn.Linear(6, 2), runs=2))
    one = view(model, 1)
    x = torch.randn(3, 6)
    before = one(x)
    with torch.no_grad():
        model[0].weight[1].add_(1)
    torch.testing.assert_close(one(x), before + x.sum(dim=1, keepdim=True))
    assert one[0].weight.data_ptr() == model[0].weight[1].data_ptr()


def test_names_of_stacked_parameters_are_those_of_the_plain_model() -> None:
    model, plain = small(0), small(0)
    stack_model(model, 2)
    assert stacked_names(model) == {name for name, _ in plain.named_parameters()}
    assert stacked_names(plain) == set()


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 2), nn.BatchNorm1d(3), nn.Embedding(4, 3, max_norm=1.0)])
def test_layers_without_a_stacked_form_are_named(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer))
    with pytest.raises(NotStackable, match=f"1.0 is a {type(layer).__name__}, which cannot be stacked"):
        stack_model(model, 2)
    assert type(model[0]) is nn.Linear


def test_models_with_shared_or_bare_parameters_are_refused() -> None:
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    with pytest.raises(NotStackable, match="is shared between layers of BertForMaskedLM"):
        stack_model(BertForMaskedLM(BertConfig(**shape, vocab_size=10)), 2)
    with pytest.raises(NotStackable, match="embeddings is a ViTEmbeddings"):
        stack_model(ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)), 2)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm])
def test_rms_norm_keeps_the_dtypes_of_the_original(kind: type[nn.Module]) -> None:
    plain = kind(8)
    stacked = StackedRMSNorm(plain, runs=2)
    x = torch.randn(4, 3, 2, 8, dtype=torch.bfloat16)
    assert stacked(x).dtype == plain(x).dtype
    assert torch.equal(stacked(x), plain(x))


def test_replacing_a_module_that_is_the_models_own_child() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    replace_module(model, "0", nn.Identity())
    assert isinstance(model[0], nn.Identity)
