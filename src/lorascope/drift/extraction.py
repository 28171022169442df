"""Features of a model on probe examples: float32 [layers, examples, hidden] a site, on the model's device.

Forward hooks pool each layer's output the moment it exists, so what remains of a batch is one row an example and layer,
never [layers, examples, tokens, hidden]; the largest tensors alive are those of the forward pass itself. Padding has no
part in a feature, and batches are grouped by length, so little of it is computed. The model is left as it was found.

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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lorascope.data.batches import MASK, evaluation_batches
from lorascope.drift.probe import Pooling, TokenSample
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
    """The features of one model, site -> float32 [layers, examples, hidden] on its device, in the columns' order.

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


@torch.no_grad()
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
    runs = len(names)
    check_feature_sites(sites, model)
    plain, blocks = plain_model(model), find_blocks(model)
    device = next(plain.parameters()).device
    # Modules found by their usual names alone are read together, to see that they are what the blocks add.
    is_to_be_checked = not blocks.is_known and set(sites) != {"residual"}
    features = {
        site: torch.empty(
            runs, len(blocks.blocks) + (site == "residual"), _num_rows(pooling, columns), plain.config.hidden_size,
            device=device,
        )
        for site in (blocks.sites if is_to_be_checked else sites)
    }  # fmt: skip
    pool = _Pool(pooling, runs, reads_last=pooling == "decision-token" and decides_on_last_token(model))
    largest = min(TOKENS_A_BATCH[device.type], reading.task.inputs.largest_batch[device.type])
    limit = (max_tokens or largest) // runs
    with evaluating(model), ExitStack() as hooks:
        for module, is_input, target in _points(blocks, features):
            hooks.enter_context(_hooked(module, pool.into(target), is_input=is_input))
        for rows, batch in batches_of(reading, columns, max_tokens=limit):
            if not pool.prepare(rows, batch.get(MASK), device=device):
                continue
            inputs = {k: v.repeat(runs, *[1] * (v.ndim - 1)) for k, v in reading.model_inputs(batch).items()}
            with reading.autocast():
                run_backbone(plain, inputs)
    for site in features:
        features[site] = features[site].index_select(2, pool.back_in_order(device))
    for run, name in enumerate(names):
        _check_finite({site: tensor[run] for site, tensor in features.items()}, name)
    if is_to_be_checked:
        _check_sums(features, plain.config.model_type)
    return [{site: features[site][run] for site in sites} for run in range(runs)]


def _num_rows(pooling: Pooling, columns: Examples) -> int:
    if not isinstance(pooling, TokenSample):
        return len(columns)
    lengths = np.asarray(columns.lengths)
    assert (pooling.positions < lengths[pooling.examples]).all(), "tokens of other examples, or of another tokenizer"
    return len(pooling)


def _points(blocks: Blocks, features: Mapping[str, Tensor]) -> Iterator[tuple[nn.Module, bool, Tensor]]:
    """(module, whether what enters it is meant, where that goes: [runs, examples, hidden]) for each layer of each site."""
    for site, tensor in features.items():
        targets = list(tensor.unbind(dim=1))
        if site == "residual":
            yield blocks.blocks[0], True, targets.pop(0)
        modules = {"residual": blocks.blocks, "attention": blocks.attentions, "mlp": blocks.mlps}[site]
        for module, target in zip(modules, targets, strict=True):
            yield module, False, target


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
class _Pool:
    """Turns hidden states [runs * examples, tokens, hidden] of the present batch into rows of the features.

    Rows are written one batch after the other and put into the columns' order once, at the end: under deterministic
    algorithms CUDA sorts the indices of every write to scattered rows."""

    pooling: Pooling
    runs: int
    reads_last: bool
    _written: list[np.ndarray] = field(default_factory=list)

    def prepare(self, rows: np.ndarray, mask: Tensor | None, *, device: torch.device) -> bool:
        """Notes a batch: which examples it holds and which of its positions are real (None: all). False: none of its
        positions is asked for."""
        self._num_examples = len(rows)
        if self.pooling == "mean":
            weights = None if mask is None else mask.float() / mask.sum(1, keepdim=True)
            self._weights = None if weights is None else weights.repeat(self.runs, 1).unsqueeze(1)
        elif self.pooling == "decision-token":
            examples = torch.arange(len(rows), device=device)
            last = torch.full_like(examples, -1) if mask is None else mask.sum(1) - 1
            self._take = (examples, last if self.reads_last else torch.zeros_like(examples))
        else:
            place = {int(row): index for index, row in enumerate(rows)}
            rows = np.flatnonzero(np.isin(self.pooling.examples, rows))
            examples = torch.tensor([place[int(row)] for row in self.pooling.examples[rows]], device=device)
            self._take = (examples.long(), torch.from_numpy(self.pooling.positions[rows]).to(device))
        start = sum(map(len, self._written))
        self._next = slice(start, start + len(rows))
        self._written.append(rows)
        return len(rows) > 0

    def back_in_order(self, device: torch.device) -> Int64[Tensor, " rows"]:
        """Which of the rows as they were written is each row of the features."""
        return torch.from_numpy(np.argsort(np.concatenate(self._written))).to(device)

    def into(self, target: Float[Tensor, "runs examples hidden"]) -> Callable[[Tensor], None]:
        """What writes the pooled hidden states of a module into `target`."""

        def write(hidden: Float[Tensor, "batch tokens hidden"]) -> None:
            if hidden.ndim == 2:  # OPT's MLP takes the tokens of all examples end to end
                hidden = hidden.unflatten(0, (self.runs * self._num_examples, -1))
            with torch.autocast(hidden.device.type, enabled=False):
                target[:, self._next] = self._pooled(hidden)

        return write

    def _pooled(self, hidden: Tensor) -> Float[Tensor, "runs rows hidden"]:
        if self.pooling == "mean":
            if self._weights is None:
                return hidden.float().mean(dim=1).view(self.runs, -1, hidden.shape[-1])
            return torch.bmm(self._weights, hidden.float()).view(self.runs, -1, hidden.shape[-1])
        examples, tokens = self._take
        return hidden.unflatten(0, (self.runs, -1))[:, examples, tokens].float()


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
