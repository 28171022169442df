"""Attention patterns: how widely each head looks, and how far fine-tuning moved where it looks.

The forward pass runs with PyTorch's scaled_dot_product_attention as ever, so the features are the model's own; beside it
each attention module hands over its queries and keys. The base's are kept for one batch, which is linear in its length;
the distributions themselves, quadratic in it, exist for one layer at a time, and only their summaries stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorascope.data.batches import MASK
from lorascope.drift.extraction import evaluating, run_backbone
from lorascope.errors import StudyError
from lorascope.models.blocks import attention_modules, find_blocks, plain_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorascope.data.columns import Examples
    from lorascope.training.reading import Reading

PATTERN_EXAMPLES = 64
_READER = "_pattern_reader"
_NAME = "lorascope_patterns"
_WEIGHTS_A_BATCH = {"cpu": 2**22, "cuda": 2**26, "mps": 2**24}
# What some architectures do to scores beyond scaling and masking.
_UNREADABLE = ("position_bias", "softcap", "s_aux", "head_mask")


@dataclass(frozen=True)
class AttentionPatterns:
    """Summaries over the probe, float32 [layers, heads]: mean over the real query positions of an example, then over
    examples. Queries of a decoder that see one token alone count, with an entropy and a distance of 0.

    entropy, base_entropy: -sum p ln p of the attention distributions, nats. total_variation: 1/2 sum |p - q| of the
    model's p and the base's q, 0-1. jensen_shannon: their Jensen-Shannon divergence (Lin 1991), nats, at most ln 2.
    """

    entropy: Float[np.ndarray, "layers heads"]
    base_entropy: Float[np.ndarray, "layers heads"]
    total_variation: Float[np.ndarray, "layers heads"]
    jensen_shannon: Float[np.ndarray, "layers heads"]
    num_examples: int


def compare_attention(
    base: nn.Module,
    model: nn.Module,
    columns: Examples,
    *,
    reading: Reading,
    runs: int = 1,
    name: str = "the model",
) -> list[AttentionPatterns]:
    """The patterns of `model` beside the base's on the same examples, one a run.

    columns: few examples (`choose_probe(columns, PATTERN_EXAMPLES, seed=...)`), as the work grows with the square of
    their lengths. runs: of a model from `stack_adapters`, else 1. Both models are left as they were. Raises StudyError
    for models of different depth or heads, and for attention that is more than a softmax of masked, scaled products.
    """
    layers, heads = _shape(base, model)
    device = next(model.parameters()).device
    sums = torch.zeros(4, runs, layers, heads, device=device)
    with torch.no_grad(), evaluating(base), evaluating(model), reading.autocast():
        for rows in _batches(columns, heads=heads * runs, device=device.type):
            length = int(columns.lengths[rows].max())
            batch = reading.batch(columns, rows, length=length)
            inputs, comparison = reading.model_inputs(batch), _Comparison(batch.get(MASK), runs, sums)
            _read(base, inputs, comparison.keep)
            _read(model, {k: v.repeat(runs, *[1] * (v.ndim - 1)) for k, v in inputs.items()}, comparison.compare)
    means = (sums / len(columns)).cpu().numpy()
    if not np.isfinite(means).all():
        raise StudyError(
            f"attention patterns of {name} are not finite",
            hint="the run diverged: look at its training loss, or leave it out of the drift measurement",
        )
    return [AttentionPatterns(*means[:, run], num_examples=len(columns)) for run in range(runs)]


def _shape(base: nn.Module, model: nn.Module) -> tuple[int, int]:
    """(layers, heads) of both models."""
    configs = [plain_model(m).config for m in (base, model)]
    shapes = [(config.num_hidden_layers, config.num_attention_heads) for config in configs]
    if shapes[0] != shapes[1]:
        raise StudyError(
            f"attention patterns of models with {shapes[0][0]} and {shapes[1][0]} layers, of {shapes[0][1]} and "
            f"{shapes[1][1]} heads, cannot be compared",
            hint="drift compares a fine-tuned model with the base it came from",
        )
    return shapes[0]


@dataclass(frozen=True)
class _Scores:
    """What one attention module computes its distributions from, [examples, heads, tokens, width]."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    is_causal: bool

    def weights(self) -> Float[Tensor, "examples heads query key"]:
        """softmax(scaling Q K' + mask) in fp32 (Vaswani et al. 2017, eq. 1)."""
        query, key = self.query.float(), self.key.float()
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = torch.matmul(query * self.scaling, key.transpose(2, 3))
        mask = self.mask
        if mask is None and self.is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            scores = (
                torch.where(mask, scores, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
            )
        return scores.softmax(dim=-1)


class _Comparison:
    """Two models on one batch. mask: 1 at the query positions that are no padding, [examples, tokens]; None: all. sums:
    [4, runs, layers, heads], where the batch's examples are added, in the order of AttentionPatterns."""

    def __init__(self, mask: Int[Tensor, "examples tokens"] | None, runs: int, sums: Tensor) -> None:
        self._weights = None if mask is None else mask.bool().float() / mask.bool().sum(1, keepdim=True)
        self._runs, self._sums = runs, sums
        self._base: dict[int, _Scores] = {}

    def keep(self, layer: int, scores: _Scores) -> None:
        self._base[layer] = scores

    def compare(self, layer: int, scores: _Scores) -> None:
        with torch.autocast(scores.query.device.type, enabled=False):
            p, q = scores.weights().unflatten(0, (self._runs, -1)), self._base.pop(layer).weights()
            self._sums[:, :, layer] += self._summaries(p, q)

    def _summaries(
        self, p: Float[Tensor, "runs examples heads query key"], q: Float[Tensor, "examples heads query key"]
    ) -> Float[Tensor, "four runs heads"]:
        both, difference = p + q, p - q
        total_variation = difference.abs().sum(-1) / 2
        # With r = (p - q) / (p + q), JS = sum (p + q) / 4 [(1 + r) ln(1 + r) + (1 - r) ln(1 - r)]: no cancellation of
        # entropies. |r| = 1 contributes ln 2 (p + q) / 2, which the bound on r changes by 1e-6 of itself.
        r = (difference / both.clamp_min(torch.finfo(both.dtype).tiny)).clamp(-1 + 1e-7, 1 - 1e-7)
        divergence = both / 4 * ((1 + r) * torch.log1p(r) + (1 - r) * torch.log1p(-r))
        rows = (_entropy(p), _entropy(q).expand(total_variation.shape), total_variation, divergence.sum(-1))
        if self._weights is None:
            return torch.stack([row.mean(-1).sum(1) for row in rows])
        return torch.stack([torch.einsum("rehq,eq->rh", row, self._weights) for row in rows])


def _entropy(p: Float[Tensor, "*shape key"]) -> Float[Tensor, " *shape"]:
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


def _batches(columns: Examples, *, heads: int, device: str) -> Iterator[np.ndarray]:
    """Rows grouped by length, longest first, as many as keep one layer's distributions small."""
    lengths = np.asarray(columns.lengths)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _WEIGHTS_A_BATCH[device] // (heads * int(lengths[order[start]]) ** 2))
        yield order[start : start + size]
        start += size


def _read(model: nn.Module, inputs: dict[str, Tensor], reader: Callable[[int, _Scores], None]) -> None:
    """One forward pass, in which each layer's attention calls `reader(layer, scores)`."""
    plain = plain_model(model)
    attentions = attention_modules(find_blocks(plain))
    unread = set(range(len(attentions)))

    def read(layer: int, scores: _Scores) -> None:
        unread.discard(layer)
        reader(layer, scores)

    with _handing_over(plain, attentions, read):
        run_backbone(plain, inputs)
    if unread:
        raise StudyError(
            f"the attention of a {plain.config.model_type} model does not go through transformers' AttentionInterface, so "
            "its patterns cannot be read",
            hint="leave attention patterns out for this model",
        )


@contextmanager
def _handing_over(
    plain: PreTrainedModel, attentions: Sequence[nn.Module], reader: Callable[[int, _Scores], None]
) -> Iterator[None]:
    """Lets the attention modules call `reader`; they and the model's config are as before afterwards."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend_and_hand_over)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before: Any = plain.config._attn_implementation
    try:
        plain.set_attn_implementation(_NAME)
        for layer, module in enumerate(attentions):
            setattr(module, _READER, partial(reader, layer))
        yield
    finally:
        for module in attentions:
            module.__dict__.pop(_READER, None)
        plain.set_attn_implementation(before)


def _attend_and_hand_over(
    module: nn.Module,
    query: Float[Tensor, "examples heads query width"],
    key: Float[Tensor, "examples kv_heads key width"],
    value: Float[Tensor, "examples kv_heads key width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "examples query heads width"], None]:
    """transformers' own scaled_dot_product_attention, beside what the module's reader wants."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    unreadable = [name for name in _UNREADABLE if kwargs.get(name) is not None]
    if unreadable:
        raise StudyError(
            f"the attention of {type(module).__name__} has {unreadable[0]}, which its patterns here would lack",
            hint="leave attention patterns out for this model",
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    getattr(module, _READER)(_Scores(query, key, attention_mask, scale, bool(causal)))
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
    )
