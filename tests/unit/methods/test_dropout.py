"""Dropout from keys: right in distribution, the same mask wherever a run is computed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lorascope.errors import StudyError
from lorascope.methods.dropout import (
    ATTENTION,
    DropoutStreams,
    StackedDropout,
    attention_forward,
    dropout_key,
    replace_dropouts,
    silence_dropout,
)
from lorascope.methods.stacked import stack_model


def layer(*probabilities: float, keys: list[int] | None = None, site: int = 0) -> StackedDropout:
    streams = DropoutStreams(len(probabilities), "cpu")
    streams.set(keys or [dropout_key(1, 0, run) for run in range(len(probabilities))])
    return StackedDropout(probabilities, streams, site).train()


def kept(shape: tuple[int, ...], *, p: float = 0.5, key: int = 7, site: int = 0) -> np.ndarray:
    """Which elements of one run are kept, as 0 and 1."""
    return (layer(p, keys=[key], site=site)(torch.ones(shape)) != 0).numpy().astype(float)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def deviations(found: np.ndarray, p: float, count: int) -> np.ndarray:
    """Standard deviations between rates found in samples of `count` and the keep rate."""
    return (found - (1 - p)) / math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(16, 64, 128), (8, 4, 32, 128), (512, 256)])
def test_keep_rate_is_binomial_over_everything_rows_and_columns(shape: tuple[int, ...], p: float) -> None:
    mask = kept(shape, p=p).reshape(-1, shape[-1])
    rows, columns = mask.shape
    assert abs(deviations(mask.mean(), p, mask.size)) < 4.5
    for axis, count in ((1, columns), (0, rows)):
        spread = deviations(mask.mean(axis=axis), p, count)
        assert np.abs(spread).max() < 6
        assert abs(spread.var() - 1) < 6 * math.sqrt(2 / len(spread)) + 1 / (p * (1 - p) * count)


def test_keep_rate_is_binomial_over_sites_and_updates() -> None:
    count, p = 32 * 64, 0.1
    over_sites = [kept((4, 8, 64), p=p, site=site).mean() for site in range(200)]
    over_updates = [kept((4, 8, 64), p=p, key=dropout_key(3, update, 0)).mean() for update in range(200)]
    for rates in (over_sites, over_updates):
        spread = deviations(np.array(rates), p, count)
        assert np.abs(spread).max() < 5
        assert 0.6 < spread.var() < 1.5


def test_neighbours_are_uncorrelated() -> None:
    shape = (16, 128, 256)
    mask, bound = kept(shape), 4.5 / math.sqrt(16 * 128 * 256)
    for lag in (1, 2, 3, 4, 8, 16, 64):
        assert abs(correlation(mask[..., lag:], mask[..., :-lag])) < 1.5 * bound, f"features {lag} apart"
        assert abs(correlation(mask[:, lag:], mask[:, :-lag])) < 1.5 * bound, f"tokens {lag} apart"
    assert abs(correlation(mask[1:], mask[:-1])) < 1.5 * bound
    assert abs(correlation(mask, kept(shape, site=1))) < bound
    first = kept(shape, key=dropout_key(5, 0, 0))
    for other in ((5, 1, 0), (5, 0, 1), (6, 0, 0), (0, 5, 0), (0, 0, 5)):
        assert abs(correlation(first, kept(shape, key=dropout_key(*other)))) < bound, other


def test_rectangles_of_the_mask_are_uncorrelated() -> None:
    """A row's and a column's numbers are added: what must not show is that four corners share two of each."""
    signs = 2 * kept((64, 64, 256)).reshape(64 * 64, 256) - 1
    rows = signs[::2] * signs[1::2]
    corners = rows[:, ::2] * rows[:, 1::2]
    assert abs(corners.mean()) < 4.5 / math.sqrt(corners.size)


@pytest.mark.parametrize("shift", [24, 16, 8])
def test_bytes_of_the_hash_are_uniform(shift: int) -> None:
    numbers = layer(0.5)._hash(torch.ones(1, 32, 64, 128)).numpy()
    counts = np.bincount(((numbers >> shift) & 0xFF).ravel(), minlength=256)
    expected = numbers.size / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


def test_neighbouring_keys_differ_in_half_of_their_bits() -> None:
    keys = np.array([[dropout_key(seed, update, 0) for update in range(200)] for seed in range(50)])
    assert len(np.unique(keys)) >= keys.size - 2  # 0.01 chance collisions are expected
    assert keys.min() >= -(2**31)
    assert keys.max() < 2**31
    for a, b in ((keys[:, 1:], keys[:, :-1]), (keys[1:], keys[:-1])):
        differing = np.array([bin(int(x) & 0xFFFFFFFF).count("1") for x in (a ^ b).ravel()])
        assert abs(differing.mean() - 16) < 0.2
    assert dropout_key(1, 2, 3) not in (dropout_key(1, 3, 2), dropout_key(2, 1, 3), dropout_key(3, 2, 1))


@pytest.mark.parametrize("shape", [(6, 40, 16), (6, 3, 40, 40), (6, 40)])
def test_masks_do_not_depend_on_the_padded_length(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    whole = layer(0.3)(x)
    part = (slice(None), *[slice(None)] * (len(shape) == 4), *[slice(0, 25)] * (2 if len(shape) == 4 else 1))
    assert torch.equal(layer(0.3)(x[part]), whole[part])


@pytest.mark.parametrize("shape", [(5, 7, 16), (5, 2, 7, 7), (5, 16)])
def test_each_run_of_a_gang_has_the_masks_it_has_alone(shape: tuple[int, ...]) -> None:
    probabilities, keys = (0.1, 0.0, 0.5), [11, -12, 13]
    x = torch.randn(15, *shape[1:])
    together = layer(*probabilities, keys=keys, site=4)(x)
    for run, (p, key) in enumerate(zip(probabilities, keys, strict=True)):
        alone = layer(p, keys=[key], site=4)(x[5 * run : 5 * run + 5])
        assert torch.equal(together[5 * run : 5 * run + 5], alone)
    assert torch.equal(together[5:10], x[5:10])
    assert not torch.equal(together[:5], x[:5])


def test_one_probability_for_all_runs_equals_each_its_own() -> None:
    x = torch.randn(6, 5, 16, dtype=torch.bfloat16)
    uniform, mixed = layer(0.1, 0.1), layer(0.1, 0.2)
    assert torch.equal(uniform(x)[:3], mixed(x)[:3])
    assert mixed(x).dtype == torch.bfloat16


def test_gradient_is_the_mask_over_the_keep_rate() -> None:
    x = torch.randn(4, 6, 32, requires_grad=True)
    dropout = layer(0.25, 0.5)
    y = dropout(x)
    y.sum().backward()
    scale = torch.tensor([4 / 3, 4 / 3, 2, 2]).view(4, 1, 1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y != 0) * scale)
    torch.testing.assert_close(y, x * x.grad)


def test_dropout_is_the_identity_in_evaluation_and_when_silenced() -> None:
    x = torch.randn(2, 3, 8)
    model = nn.Sequential(layer(0.5))
    assert model.eval()(x) is x
    model.train()
    assert not torch.equal(model(x), x)
    silence_dropout(model)
    assert model(x) is x


def test_view_of_a_run_follows_its_key() -> None:
    dropout = layer(0.2, 0.6)
    x = torch.randn(6, 4, 8)
    one = dropout.view(1)
    dropout.streams.set([5, 6])
    assert torch.equal(one(x[3:]), dropout(x)[3:])


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        StackedDropout([1.0])
    with pytest.raises(ValueError, match="2 dropout probabilities for 3 runs"):
        StackedDropout([0.1, 0.1], DropoutStreams(3, "cpu"))
    with pytest.raises(ValueError, match="at most two axes"):
        layer(0.1)(torch.ones(1, 1, 1, 1, 1))


# --------------------------------------------------------------------------------------------------------- attention


class Attending(nn.Module):
    """What attention_forward asks of an attention module."""

    def __init__(self, *, is_causal: bool, groups: int = 1, dropout: StackedDropout | None = None) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, groups
        if dropout is not None:
            self.stacked_attention_dropout = dropout


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "additive"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_attention_equals_sdpa_when_nothing_is_dropped(
    is_causal: bool, mask: str | None, heads: tuple[int, int]
) -> None:
    query, key, value = (torch.randn(3, count, 9, 8) for count in (heads[0], heads[1], heads[1]))
    attention_mask = None
    if mask is not None:
        attention_mask = torch.ones(3, 1, 9, 9, dtype=torch.bool)
        attention_mask[1, ..., 6:] = False
        if mask == "additive":
            attention_mask = torch.zeros(3, 1, 9, 9).masked_fill(~attention_mask, torch.finfo(torch.float32).min)
    dropout = layer(1e-9)  # drops nothing here, but takes the path in steps
    groups = heads[0] // heads[1]
    found, _ = attention_forward(
        Attending(is_causal=is_causal, groups=groups, dropout=dropout), query, key, value, attention_mask, dropout=0.1
    )
    expected, _ = sdpa_attention_forward(
        Attending(is_causal=is_causal, groups=groups), query, key, value, attention_mask
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    dropout.eval()
    still, _ = attention_forward(
        Attending(is_causal=is_causal, groups=groups, dropout=dropout), query, key, value, attention_mask, dropout=0.1
    )
    assert torch.equal(still, expected)


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 30}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL, attention_dropout=0.1, pad_token_id=0)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(n_layers=2, n_heads=2, dim=16, hidden_dim=16, vocab_size=30)
    ),
    "vit": lambda: ViTForImageClassification(
        ViTConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=16, intermediate_size=16, image_size=8,
            patch_size=4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture", MODELS)
def test_a_model_draws_nothing_from_torchs_generator(architecture: str, tmp_path: Path) -> None:
    model = MODELS[architecture]().train()
    inputs = (
        {"pixel_values": torch.randn(4, 3, 8, 8)} if architecture == "vit" else {"input_ids": torch.ones(4, 6).long()}
    )
    streams = DropoutStreams(2, "cpu")
    replace_dropouts(model, streams)
    layers = [module for module in model.modules() if isinstance(module, StackedDropout)]
    assert len({module.site for module in layers}) == len(layers) > 0
    assert not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    assert model.config._attn_implementation == ATTENTION
    before = torch.get_rng_state()
    streams.set([1, 2])
    first = model(**inputs).logits
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(**inputs).logits, first)
    streams.set([1, 3])
    second = model(**inputs).logits
    torch.testing.assert_close(second[:2], first[:2])
    assert not torch.allclose(second[2:], first[2:])
    model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
    assert ATTENTION not in str(model.config.to_dict())


def test_attention_that_draws_by_itself_is_refused() -> None:
    model = BertForSequenceClassification(BertConfig(**SMALL, attn_implementation="eager"))
    with pytest.raises(StudyError, match="dropout on its attention, which cannot be drawn"):
        replace_dropouts(model, DropoutStreams(1, "cpu"))


def test_a_gang_compiles_into_one_graph_that_reads_the_keys_anew() -> None:
    model = MODELS["bert"]().train()
    stack_model(model, 2)
    streams = DropoutStreams(2, "cpu")
    replace_dropouts(model, streams)
    ids = torch.randint(0, 30, (4, 6))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    outputs = []
    for keys in ([1, 2], [3, 4]):
        streams.set(keys)
        outputs.append(compiled(input_ids=ids).logits)
        torch.testing.assert_close(outputs[-1], model(input_ids=ids).logits)
    assert not torch.allclose(*outputs)


def test_the_hash_reads_places_from_memory() -> None:
    """Where a length is free, a compiled kernel counts places in 64 bits, in which the hash would not wrap."""
    layer = StackedDropout([0.1, 0.1], DropoutStreams(2, "cpu")).train()
    traced = make_fx(lambda x: layer._hash(x))(torch.ones(2, 3, 5, 8))
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert any("mul" in target for target in targets)
    assert not [target for target in targets if "arange" in target or "iota" in target]
