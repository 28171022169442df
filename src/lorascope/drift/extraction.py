"""Features of a model on probe examples: float32 [layers, examples, hidden] a site, on the model's device.

Forward hooks pool each layer's output the moment it exists, so what remains of a batch is one row an example and layer,
never [layers, examples, tokens, hidden]; the largest tensors alive are those of the forward pass itself. Several poolings
are made in one pass (`read_runs`). Padding has no part in a feature, and batches are grouped by length, so little of it is
computed. The model is left as it was found.

Features are computed in fp32 whatever the training's precision. Against itself in fp32, a base in bf16 autocast drifts by
rounding alone: 1 - debiased CKA on MRPC reaches 3e-4 with mean pooling and 7e-4 at the decision token (SmolLM2-135M; MiniLM
5e-5 with mean pooling), and 0.7 at MiniLM's CLS token after the MLPs, whose outputs there hardly vary between examples.
Other batches and padding give at most 4e-12 (6e-10 at those MLPs); in a tuned model's drift of 1e-5 to 5e-4 they change up
to 8e-8 on a GPU.

Several LoRA runs of one base go through it together (`extract_runs` of `stack_adapters`): their layers are stacked over runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lorascope.data.batches import MASK, evaluation_batches
from lorascope.drift.probe import Pooling, TokenSample
from lorascope.drift.sinks import SinkFigures, SinkReader, Sinks
from lorascope.errors import StudyError
from lorascope.models.blocks import (
    FEATURE_SITES,
    Blocks,
    check_feature_sites,
    decides_on_last_token,
    find_blocks,
    plain_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorascope.data.columns import Examples
    from lorascope.training.reading import Reading

Features = dict[str, Float[Tensor, "layers examples hidden"]]

# As few as keep the device busy: a batch of a whole probe, at the length of its longest example, is half padding.
TOKENS_A_BATCH: Mapping[str, int] = {"cpu": 512, "cuda": 8192, "mps": 16384}
_SUM_TOLERANCE = 0.05
_CHECK = "what the blocks add"


def extract(
    model: nn.Module,
    columns: Examples,
    *,
    reading: Reading,
    sites: Sequence[str] = tuple(FEATURE_SITES),
    pooling: Pooling = "mean",
    name: str = "the model",
    max_tokens: int | None = None,
) -> Features:
    """One model's features by one pooling, site -> float32 [layers, examples, hidden] on its device, in the columns' order.

    model: a transformers model, one with PEFT adapters, or a gang's one-run view in the middle of training; modes, hooks
    and generators are left as they were. sites: of `FEATURE_SITES`; the residual stream has one layer more than the
    others. pooling: see `Pooling`; with a TokenSample the rows are tokens. A first token that all examples share has the
    same embedding in all: layer 0 of an encoder's decision token is constant, and no similarity of it is defined.
    reading: how examples are read on the model's device. max_tokens: padded tokens a batch, None: as suits the device.
    Raises StudyError for a site that is not there and for features that are not finite.
    """
    features = extract_runs(
        model, columns, reading=reading, sites=sites, pooling=pooling, names=[name], max_tokens=max_tokens
    )
    return features[0]


def extract_runs(
    model: nn.Module,
    columns: Examples,
    *,
    reading: Reading,
    sites: Sequence[str],
    pooling: Pooling,
    names: Sequence[str],
    max_tokens: int | None = None,
) -> list[Features]:
    """`extract` for a model whose batches are those of several runs end to end (`stack_adapters`): what it would give for each
    run alone, to rounding. names: what messages call the runs, one a run."""
    wanted = {"": PooledSites(pooling, tuple(sites))}
    shown = read_runs(model, columns, reading=reading, wanted=wanted, names=names, max_tokens=max_tokens)
    return [features[""] for features in shown.features]


class PooledSites(NamedTuple):
    """Features by one pooling, at some of FEATURE_SITES."""

    pooling: Pooling
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """What one pass over the probe gave. features: run by run, name of a pooling -> Features. sinks: the base's, which were
    decided now where none were given. figures: run by run, what was seen of sinks."""

    features: list[dict[str, Features]]
    sinks: Sinks
    figures: list[SinkFigures]


@torch.no_grad()
def read_runs(
    model: nn.Module,
    columns: Examples,
    *,
    reading: Reading,
    wanted: Mapping[str, PooledSites],
    names: Sequence[str],
    sinks: Sinks | None = None,
    max_tokens: int | None = None,
) -> Shown:
    """Features by several poolings, name -> what is wanted, from one pass over the examples. sinks: the base's on these
    examples; None: the model is the base, and they are decided in this pass."""
    runs = len(names)
    assert sinks is not None or runs == 1 or all(one.pooling != "non-sink-mean" for one in wanted.values())
    asked = dict.fromkeys(site for _, sites in wanted.values() for site in sites)
    check_feature_sites(tuple(asked), model)
    plain, blocks = plain_model(model), find_blocks(model)
    device = next(plain.parameters()).device
    # Modules found by their usual names alone are read together, to see that they are what the blocks add.
    is_to_be_checked = not blocks.is_known and set(asked) != {"residual"}
    everything = {**wanted, **({_CHECK: PooledSites("mean", blocks.sites)} if is_to_be_checked else {})}
    depths = {site: len(blocks.blocks) + (site == "residual") for site in FEATURE_SITES}
    pools = {
        name: _Pool.of(one, columns, runs=runs, depths=depths, width=plain.config.hidden_size, model=model)
        for name, one in everything.items()
    }
    sites = tuple(dict.fromkeys(site for one in everything.values() for site in one.sites))
    reader = SinkReader({site: depths[site] for site in sites}, len(columns), runs, sinks, device)
    largest = min(TOKENS_A_BATCH[device.type], reading.task.inputs.largest_batch[device.type])
    batch_of = _Batch(reader, list(pools.values()), runs)
    with evaluating(model), ExitStack() as hooks:
        for module, is_input, site, layer in _points(blocks, sites):
            hooks.enter_context(_hooked(module, partial(batch_of.read, site, layer), is_input=is_input))
        for rows, batch in batches_of(reading, columns, max_tokens=(max_tokens or largest) // runs):
            if not batch_of.prepare(rows, batch.get(MASK), device=device):
                continue
            inputs = {k: v.repeat(runs, *[1] * (v.ndim - 1)) for k, v in reading.model_inputs(batch).items()}
            with reading.autocast():
                run_backbone(plain, inputs)
    features = {name: pool.in_order() for name, pool in pools.items()}
    for found in features.values():
        for run, name in enumerate(names):
            _check_finite({site: tensor[run] for site, tensor in found.items()}, name)
    if is_to_be_checked:
        _check_sums(features.pop(_CHECK), plain.config.model_type)
    return Shown(
        [{name: {s: x[run] for s, x in found.items()} for name, found in features.items()} for run in range(runs)],
        reader.decided(),
        [reader.figures(run) for run in range(runs)],
    )


def _num_rows(pooling: Pooling, columns: Examples) -> int:
    if not isinstance(pooling, TokenSample):
        return len(columns)
    lengths = np.asarray(columns.lengths)
    assert (pooling.positions < lengths[pooling.examples]).all(), "tokens of other examples, or of another tokenizer"
    return len(pooling)


def _points(blocks: Blocks, sites: Sequence[str]) -> Iterator[tuple[nn.Module, bool, str, int]]:
    """(module, whether what enters it is meant, site, position of the layer in the site's features)."""
    for site in sites:
        if site == "residual":
            yield blocks.blocks[0], True, site, 0
        modules = {"residual": blocks.blocks, "attention": blocks.attentions, "mlp": blocks.mlps}[site]
        for layer, module in enumerate(modules, start=int(site == "residual")):
            yield module, False, site, layer


def batches_of(
    reading: Reading, columns: Examples, *, max_tokens: int
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(rows, batch on the device) over all examples, longest first, at most about `max_tokens` padded tokens a batch."""
    lengths = np.asarray(columns.lengths)
    unpadded = torch.device(reading.device).type == "cpu"
    for rows in evaluation_batches(lengths, max_tokens=max_tokens, multiple=reading.task.inputs.multiple):
        longest = int(lengths[rows].max())
        yield rows, reading.batch(columns, rows, length=longest if unpadded else reading.padded(longest))


def run_backbone(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """A forward pass through all but the task's head, without a key-value cache."""
    backbone: Any = model.base_model
    backbone(**inputs, **({"use_cache": False} if getattr(model.config, "use_cache", False) else {}))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, every module back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _hooked(module: nn.Module, write: Callable[[Tensor], None], *, is_input: bool) -> Iterator[None]:
    """Calls `write` with the hidden states that enter (is_input) or leave the module."""

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        write(args[0] if args else kwargs["hidden_states"])

    def leaves(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        write(output if isinstance(output, Tensor) else output[0])

    before = module.register_forward_pre_hook
    handle = before(enters, with_kwargs=True) if is_input else module.register_forward_hook(leaves)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Batch:
    """The hidden states of the present batch, on their way to the sinks and to every pooling."""

    sinks: SinkReader
    pools: Sequence[_Pool]
    runs: int

    def prepare(self, rows: np.ndarray, mask: Tensor | None, *, device: torch.device) -> bool:
        """Notes a batch: which examples it holds and which of its positions are real (None: all). False: no pooling asks for
        any of its positions."""
        self._num_examples = len(rows)
        asked = [pool.prepare(rows, mask, device=device) for pool in self.pools]
        if any(asked):
            self.sinks.prepare(rows, mask)
        return any(asked)

    def read(self, site: str, layer: int, hidden: Float[Tensor, "batch tokens hidden"]) -> None:
        """What a module gave: hidden states of runs * examples."""
        if hidden.ndim == 2:  # OPT's MLP takes the tokens of all examples end to end
            hidden = hidden.unflatten(0, (self.runs * self._num_examples, -1))
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            sinks = self.sinks.read(site, layer, hidden)
            for pool in self.pools:
                pool.write(site, layer, hidden, sinks)


@dataclass
class _Pool:
    """Turns hidden states [runs * examples, tokens, hidden] of the present batch into rows of the features.

    Rows are written one batch after the other and put into the columns' order once, at the end: under deterministic
    algorithms CUDA sorts the indices of every write to scattered rows."""

    pooling: Pooling
    runs: int
    reads_last: bool
    features: dict[str, Float[Tensor, "runs layers rows hidden"]]
    _written: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        wanted: PooledSites,
        columns: Examples,
        *,
        runs: int,
        depths: Mapping[str, int],
        width: int,
        model: nn.Module,
    ) -> _Pool:
        """With room for the features. depths: site -> layers."""
        device = next(model.parameters()).device
        shape = _num_rows(wanted.pooling, columns), width
        features = {site: torch.empty(runs, depths[site], *shape, device=device) for site in wanted.sites}
        return cls(wanted.pooling, runs, wanted.pooling == "decision-token" and decides_on_last_token(model), features)

    def prepare(self, rows: np.ndarray, mask: Tensor | None, *, device: torch.device) -> bool:
        """Notes a batch. False: none of its positions is asked for."""
        if self.pooling in ("mean", "non-sink-mean"):
            self._mask = None if mask is None else mask.bool().repeat(self.runs, 1)
        elif self.pooling == "decision-token":
            examples = torch.arange(len(rows), device=device)
            last = torch.full_like(examples, -1) if mask is None else mask.sum(1) - 1
            self._take = (examples, last if self.reads_last else torch.zeros_like(examples))
        else:
            assert isinstance(self.pooling, TokenSample)
            place = {int(row): index for index, row in enumerate(rows)}
            rows = np.flatnonzero(np.isin(self.pooling.examples, rows))
            examples = torch.tensor([place[int(row)] for row in self.pooling.examples[rows]], device=device)
            self._take = (examples.long(), torch.from_numpy(self.pooling.positions[rows]).to(device))
        start = sum(map(len, self._written))
        self._next = slice(start, start + len(rows))
        self._written.append(rows)
        return len(rows) > 0

    def write(self, site: str, layer: int, hidden: Tensor, sinks: Bool[Tensor, "batch tokens"]) -> None:
        """Pools what a layer gave, where its site is wanted."""
        if site in self.features and self._next.stop > self._next.start:
            self.features[site][:, layer, self._next] = self._pooled(hidden, sinks)

    def in_order(self) -> dict[str, Tensor]:
        """The features, rows in the columns' order."""
        order = torch.from_numpy(np.argsort(np.concatenate(self._written)))
        return {site: x.index_select(2, order.to(x.device)) for site, x in self.features.items()}

    def _pooled(self, hidden: Tensor, sinks: Tensor) -> Float[Tensor, "runs rows hidden"]:
        if self.pooling in ("mean", "non-sink-mean"):
            chosen = self._mask
            if self.pooling == "non-sink-mean":
                chosen = ~sinks if chosen is None else chosen & ~sinks
            if chosen is None:
                return hidden.mean(dim=1).view(self.runs, -1, hidden.shape[-1])
            weights = chosen.float() / chosen.sum(1, keepdim=True)
            return torch.bmm(weights.unsqueeze(1), hidden).view(self.runs, -1, hidden.shape[-1])
        examples, tokens = self._take
        return hidden.unflatten(0, (self.runs, -1))[:, examples, tokens]


def _check_finite(features: Mapping[str, Float[Tensor, "layers examples hidden"]], name: str) -> None:
    for site, tensor in features.items():
        broken = (~tensor.isfinite()).any(dim=2).sum(dim=1).cpu().tolist()
        layer = next((layer for layer, count in enumerate(broken) if count), None)
        if layer is not None:
            raise StudyError(
                f"features of {name} are not finite: {site}, layer {layer} ({broken[layer]} of {tensor.shape[1]} rows)",
                hint="the run's weights diverged or its activations overflow: look at its training loss, lower its "
                "learning rate, or leave it out of the drift measurement",
            )


def _check_sums(features: Mapping[str, Float[Tensor, "runs layers examples hidden"]], architecture: str) -> None:
    """Pooling is linear: if each block adds attention and MLP to its input, so do their features."""
    residual = features["residual"]
    added = sum(features[site] for site in features if site != "residual")
    error = (residual[:, 1:] - residual[:, :-1] - added).norm() / (residual[:, 1:] - residual[:, :-1]).norm()
    if not error < _SUM_TOLERANCE:
        raise StudyError(
            f"the blocks of a {architecture} model add something else to the residual stream than the outputs of their "
            f"attention and MLP modules (they miss {float(error):.0%} of it)",
            hint="measure.drift.sites: [residual] can be read; the others need this architecture in models/architectures.py",
        )
