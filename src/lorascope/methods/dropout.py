"""Dropout whose masks are a pure function of what they belong to, not of a generator's state.

Whether an element is kept depends on the run's key (seed, update and micro-batch, `dropout_key`), the dropout layer's
number, the example's place in its run's micro-batch, the token's position and the feature. So a run has the same masks
alone and in a gang, at any padded length, after a kill, and in a captured CUDA graph, where `DropoutStreams.set` changes
the keys between replays.

The hash: each row (example, head, token) and each column (feature) gets a well-mixed 32-bit number; their sum z goes
through the bijection z (2 z + 1) mod 2^32 (the quadratic of RC6, Rivest et al. 1998), and the element is kept if the
result is below a threshold. That is two integer passes over the elements, in wrapping int32 arithmetic. Places are read
from a table: those that a compiled kernel counts itself are 64 bits wide where a length is free, and nothing then wraps.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from lorascope.errors import StudyError
from lorascope.models.architectures import functional_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "lorascope"
"""The name under which transformers knows the attention with this dropout."""
_ATTENTION_DROPOUT = "stacked_attention_dropout"
_ATTENTION_SOURCES = ("attention_dropout", "dropout", "dropout_prob", "attn_dropout")

_LARGEST_WIDTH = 1 << 16
_TOKEN_STRIDE, _HEAD_STRIDE, _EXAMPLE_STRIDE = 1, 1 << 14, 1 << 20
_MASK_32, _MASK_64 = (1 << 32) - 1, (1 << 64) - 1


def dropout_key(seed: int, update: int, micro_batch: int) -> int:
    """The key of one micro-batch's masks, in [-2^31, 2^31): update and micro_batch count from 0."""
    state = 0
    for part in (seed, update, micro_batch):
        state = _splitmix64(state ^ (part & _MASK_64))
    return _signed(state >> 32)


class DropoutStreams:
    """What the masks of a gang depend on. keys: int32 [runs] on the device, in storage that never changes."""

    keys: Int32[Tensor, " runs"]

    def __init__(self, runs: int, device: torch.device | str) -> None:
        self.keys = torch.zeros(runs, dtype=torch.int32, device=device)
        self.places = torch.arange(_LARGEST_WIDTH, dtype=torch.int32, device=device)
        self.columns = _mixed(self.places * _signed(0x9E3779B1))

    @property
    def runs(self) -> int:
        return self.keys.shape[0]

    def set(self, keys: Sequence[int]) -> None:
        """Gives each run its key (`dropout_key`) for the next micro-batch."""
        host = torch.tensor(keys, dtype=torch.int32)
        self.keys.copy_(host.pin_memory() if self.keys.is_cuda else host, non_blocking=True)

    def view(self, run: int) -> DropoutStreams:
        """The stream of one run, over the same storage."""
        one = DropoutStreams.__new__(DropoutStreams)
        one.keys = self.keys[run : run + 1]
        one.places, one.columns = self.places, self.columns
        return one


class StackedDropout(nn.Module):
    """Inverted dropout with each run's own probability: 0 with probability p, else x / (1 - p). Identity in evaluation.

    probabilities: one a run. streams and site: where its masks come from, which `replace_dropouts` gives to every
    layer of a model. Masks repeat beyond 16,384 tokens, 64 heads or 4,096 examples a run.
    """

    thresholds: Int32[Tensor, " runs"]
    scales: Float[Tensor, " runs"]
    constants: Int32[Tensor, " 2"]

    def __init__(self, probabilities: Sequence[float], streams: DropoutStreams | None = None, site: int = 0) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.empty(0, dtype=torch.int32), persistent=False)
        self.register_buffer("scales", torch.empty(0), persistent=False)
        self.register_buffer("constants", torch.zeros(2, dtype=torch.int32), persistent=False)
        self.set_probabilities(probabilities)
        if streams is not None:
            self.connect(streams, site)

    def connect(self, streams: DropoutStreams, site: int) -> None:
        """Draws from `streams` from now on. site: the layer's number, different for every layer of a model."""
        if len(self.probabilities) != streams.runs:
            raise ValueError(f"{len(self.probabilities)} dropout probabilities for {streams.runs} runs")
        self.streams, self.site = streams, site
        mixed = _splitmix64(site)
        # A tensor, not numbers: a compiled block then serves every layer of the model.
        self.constants = torch.tensor([_signed(mixed >> 32) | 1, _signed(mixed & _MASK_32)], dtype=torch.int32)
        self.to(streams.keys.device)

    def set_probabilities(self, probabilities: Sequence[float]) -> None:
        """Each in [0, 1)."""
        self.probabilities = tuple(float(p) for p in probabilities)
        if not all(0 <= p < 1 for p in self.probabilities):
            raise ValueError(f"dropout probabilities must lie in [0, 1), found {self.probabilities}")
        device = self.thresholds.device
        kept = [round((1 - p) * 2**32) - 2**31 - 1 for p in self.probabilities]
        self.thresholds = torch.tensor(kept, dtype=torch.int32, device=device)
        self.scales = torch.tensor([1 / (1 - p) for p in self.probabilities], device=device)

    @property
    def p(self) -> float:
        """The largest of the probabilities: 0 if there is no dropout."""
        return max(self.probabilities)

    def forward(self, x: Float[Tensor, "examples *positions width"]) -> Float[Tensor, "examples *positions width"]:
        """x: [runs * examples, ..., width], run by run, with at most two axes between: (heads and) tokens."""
        if not self.training or self.p == 0:
            return x
        runs = self.streams.runs
        split = x.unflatten(0, (runs, -1))
        shape = (runs, *[1] * (split.ndim - 1))
        kept = self._hash(split) <= self.thresholds.view(shape)
        if len(set(self.probabilities)) == 1:
            dropped = split * kept * (1 / (1 - self.p))
        else:
            dropped = (split * kept * self.scales.view(shape)).to(x.dtype)
        return dropped.flatten(0, 1)

    def _hash(self, x: Tensor) -> Int32[Tensor, "runs examples *positions width"]:
        """A number for every element of x: [runs, examples, ..., width], uniform over the int32 range."""
        between = x.ndim - 3
        if between > 2 or max(x.shape[1:]) > _LARGEST_WIDTH:
            raise ValueError(
                f"dropout takes at most two axes between examples and features and {_LARGEST_WIDTH} of each, found the "
                f"shape {tuple(x.shape[1:])}"
            )
        strides = (_EXAMPLE_STRIDE, *(_HEAD_STRIDE, _TOKEN_STRIDE)[2 - between :])
        factor, offset = self.constants
        rows = (self.streams.keys * factor + offset).view(-1, *[1] * (x.ndim - 2))
        for axis, stride in enumerate(strides, start=1):
            places = self.streams.places[: x.shape[axis]] * stride
            rows = rows + places.view(-1, *[1] * (x.ndim - 2 - axis))
        z = _mixed(rows).unsqueeze(-1) + self.streams.columns[: x.shape[-1]]
        return z * (z + z + 1)

    def view(self, run: int) -> StackedDropout:
        """The layer of one run."""
        one = StackedDropout(self.probabilities[run : run + 1], self.streams.view(run), self.site)
        return one.train(self.training)

    def extra_repr(self) -> str:
        return f"p={', '.join(f'{p:g}' for p in self.probabilities)}"


def replace_dropouts(model: PreTrainedModel, streams: DropoutStreams) -> None:
    """Makes every dropout of the model a StackedDropout on `streams`, attention's included, in place.

    Those that the method put in place are connected; the base's own have one probability for all runs. Raises
    StudyError where attention, or a module that calls dropout as a function, draws it by itself.
    """
    _refuse_functional_dropout(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and module.p > 0:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, StackedDropout([module.p] * streams.runs))
    _replace_attention_dropouts(model, streams.runs)
    layers = [module for module in model.modules() if isinstance(module, StackedDropout)]
    for site, layer in enumerate(layers):
        layer.connect(streams, site)
        layer.train(model.training)


def silence_dropout(model: nn.Module) -> None:
    """Sets every dropout probability of a prepared model to 0."""
    for module in model.modules():
        if isinstance(module, StackedDropout):
            module.set_probabilities([0.0] * len(module.probabilities))


def _replace_attention_dropouts(model: PreTrainedModel, runs: int) -> None:
    """Attention modules (they say whether they are causal) hand their dropout to the attention function; ours is
    attached to the module."""
    found = {module: p for module in model.modules() if hasattr(module, "is_causal") if (p := _probability(module)) > 0}
    if not found:
        return
    if model.config._attn_implementation != "sdpa":
        raise StudyError(
            f"{type(model).__name__} has dropout on its attention, which cannot be drawn from a run's own stream with "
            f"attention `{model.config._attn_implementation}`",
            hint="use a model whose attention is PyTorch's scaled_dot_product_attention, or set attention dropout to 0 "
            "in the checkpoint's config.json",
        )
    for module, p in found.items():
        setattr(module, _ATTENTION_DROPOUT, StackedDropout([p] * runs))
    _register_attention()
    model.set_attn_implementation(ATTENTION)
    for module in found:
        if getattr(getattr(module, "config", None), "_attn_implementation", ATTENTION) != ATTENTION:  # T5 keeps its own
            raise _undrawable(model)


def _refuse_functional_dropout(model: PreTrainedModel) -> None:
    """A dropout that is called as a function (OPT, BART, T5) draws from torch's generator, so no run would repeat.
    Attention modules that say whether they are causal hand theirs over."""
    for module in model.modules():
        settings = [
            name for name, value in vars(module).items()
            if "drop" in name and type(value) is float and value > 0 and _reads(type(module), name)
        ]  # fmt: skip
        if settings and not hasattr(module, "is_causal"):
            raise _undrawable(model)


def _undrawable(model: PreTrainedModel) -> StudyError:
    """Names the settings of the checkpoint's config that turn every dropout off."""
    settings = [name for name, p in model.config.to_dict().items() if "drop" in name and isinstance(p, float) and p > 0]
    text, hint = functional_dropout(model.config.model_type, settings)
    return StudyError(text, hint=hint)


@cache
def _reads(kind: type[nn.Module], setting: str) -> bool:
    """Whether a module's own forward uses a setting."""
    try:
        return f"self.{setting}" in inspect.getsource(kind.forward)
    except (OSError, TypeError):  # no source at hand: the gate "same seed, same losses" will tell
        return False


def _probability(attention: nn.Module) -> float:
    for name in _ATTENTION_SOURCES:
        value = getattr(attention, name, None)
        if isinstance(value, nn.Dropout | StackedDropout):
            return value.p
        if isinstance(value, float):
            return value
    return 0.0


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: Float[Tensor, "examples heads query width"],
    key: Float[Tensor, "examples kv_heads key width"],
    value: Float[Tensor, "examples kv_heads key width"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "examples query heads width"], None]:
    """transformers' own scaled_dot_product_attention, or with dropout the same in steps: softmax in fp32, then the
    module's StackedDropout. kwargs: transformers' own, its dropout among them."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    layer: StackedDropout | None = getattr(module, _ATTENTION_DROPOUT, None)
    if layer is None or not layer.training or layer.p == 0:
        if layer is not None:
            kwargs["dropout"] = 0.0
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError(f"dropout on the attention of {type(module).__name__}, which has position biases")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3)).float()
    lowest = torch.finfo(scores.dtype).min
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None:
        if causal and query.shape[2] > 1:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = torch.where(seen, scores, lowest)
    elif attention_mask.dtype == torch.bool:
        scores = torch.where(attention_mask, scores, lowest)
    else:
        scores = scores + attention_mask
    weights = layer(scores.softmax(dim=-1)).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def _mixed(h: Int32[Tensor, " *shape"]) -> Int32[Tensor, " *shape"]:
    """Every bit of the result depends on every bit of h (Wellons' lowbias32, 2018)."""
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x7FEB352D
    h = (h ^ ((h >> 15) & 0x1FFFF)) * _signed(0x846CA68B)
    return h ^ ((h >> 16) & 0xFFFF)


def _splitmix64(state: int) -> int:
    """Vigna's splitmix64 (2015): a bijection of 64-bit numbers that mixes well."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return z ^ (z >> 31)


def _signed(value: int) -> int:
    """A 32-bit number as int32 holds it."""
    return value - (1 << 32) if value >= 1 << 31 else value
