"""Layers whose trained part is stacked over runs, so that several runs go through one model together.

A batch of `runs` runs is their examples concatenated, run by run: [runs * examples, ..., in]. A frozen layer sees one
large batch; a trained one computes run k's examples with run k's weights, so gradients never mix. Every stacked
parameter has the name it has in the plain layer and the run as its first axis; it need not be contiguous over runs.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from lorascope.errors import NotStackable
from lorascope.methods.dropout import StackedDropout
from lorascope.models.linear import linear_shape


class Stacked(nn.Module):
    """A layer of several runs. Its own parameters are [runs, ...]."""

    @abstractmethod
    def view(self, run: int) -> nn.Module:
        """The layer of one run, whose parameters are views of this one's."""

    def _run(self, name: str, run: int) -> nn.Parameter:
        parameter = self.get_parameter(name)
        return nn.Parameter(parameter.detach()[run], requires_grad=parameter.requires_grad)


class StackedLoRALinear(Stacked):
    """y_k = W x_k + b + scaling_k B_k A_k dropout_k(x_k) for each run k (Hu et al. 2021, eq. 3).

    lora_A: [runs, rank, in], lora_B: [runs, out, rank] with the largest of the ranks, scaling: [runs, 1, 1] =
    alpha / rank. A is Kaiming-uniform with a = sqrt(5), B is zero, as in PEFT, so the layer equals its base at
    initialisation. A run of smaller rank has zero in the rows of A and columns of B that it lacks: their gradients are
    exactly zero, as each is a product with the other, so they stay zero.
    """

    scaling: Tensor

    def __init__(
        self,
        base: nn.Module,
        *,
        ranks: Sequence[int],
        alphas: Sequence[float],
        dropouts: Sequence[float],
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        device, runs, largest = base.get_parameter("weight").device, len(generators), max(ranks)
        out_features, in_features = linear_shape(base)
        self.base = base
        self.dropout = StackedDropout(dropouts)
        self.ranks = tuple(ranks)
        bound = math.sqrt(6 / ((1 + 5) * in_features))
        lora_a = torch.zeros(runs, largest, in_features)
        for run, (rank, generator) in enumerate(zip(ranks, generators, strict=True)):
            lora_a[run, :rank] = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(lora_a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(runs, out_features, largest, device=device))
        scaling = torch.tensor([alpha / rank for alpha, rank in zip(alphas, ranks, strict=True)], device=device)
        self.register_buffer("scaling", scaling.view(-1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "examples *positions in"]) -> Float[Tensor, "examples *positions out"]:
        y = self.base(x)
        runs, _, width = self.lora_A.shape
        x = self.dropout(x)
        hidden = torch.bmm(x.reshape(runs, -1, width), self.lora_A.transpose(1, 2))
        update = torch.bmm(hidden * self.scaling, self.lora_B.transpose(1, 2))
        return y + update.view(y.shape)

    def view(self, run: int) -> StackedLoRALinear:
        """A layer of one run, of its own rank."""
        rank = self.ranks[run]
        one = StackedLoRALinear.__new__(StackedLoRALinear)
        nn.Module.__init__(one)
        one.base, one.dropout, one.ranks = self.base, self.dropout.view(run), (rank,)
        one.lora_A = nn.Parameter(self.lora_A.detach()[run : run + 1, :rank])
        one.lora_B = nn.Parameter(self.lora_B.detach()[run : run + 1, :, :rank])
        one.register_buffer("scaling", self.scaling[run : run + 1], persistent=False)
        return one.train(self.training)


class StackedLinear(Stacked):
    """y_k = W_k x_k + b_k. weight: [runs, out, in], bias: [runs, out] or None; all runs start as `base`."""

    def __init__(self, base: nn.Linear, *, runs: int) -> None:
        super().__init__()
        self.weight = _repeated(base.weight, runs)
        self.bias = None if base.bias is None else _repeated(base.bias, runs)

    def forward(self, x: Float[Tensor, "examples *positions in"]) -> Float[Tensor, "examples *positions out"]:
        runs, out, width = self.weight.shape
        rows, weight = x.reshape(runs, -1, width), self.weight.transpose(1, 2)
        y = torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), rows, weight)
        return y.view(*x.shape[:-1], out)

    def view(self, run: int) -> nn.Linear:
        _, out, width = self.weight.shape
        one = nn.Linear(width, out, bias=self.bias is not None, device="meta")
        one.weight = self._run("weight", run)
        if self.bias is not None:
            one.bias = self._run("bias", run)
        return one.train(self.training)


class StackedConv1D(Stacked):
    """A `StackedLinear` whose weight is [runs, in, out], as GPT-2 keeps it."""

    def __init__(self, base: Conv1D, *, runs: int) -> None:
        super().__init__()
        self.weight = _repeated(base.weight, runs)
        self.bias = _repeated(base.bias, runs)

    def forward(self, x: Float[Tensor, "examples *positions in"]) -> Float[Tensor, "examples *positions out"]:
        runs, width, out = self.weight.shape
        y = torch.baddbmm(self.bias.unsqueeze(1), x.reshape(runs, -1, width), self.weight)
        return y.view(*x.shape[:-1], out)

    def view(self, run: int) -> Conv1D:
        _, width, out = self.weight.shape
        with torch.device("meta"):
            one = Conv1D(out, width)
        one.weight, one.bias = self._run("weight", run), self._run("bias", run)
        return one.train(self.training)


class StackedEmbedding(Stacked):
    """Rows of W_k for the indices of run k. weight: [runs, rows, width].

    batch: what knows the model's batch, for indices that the model has once for all examples (positions).
    """

    def __init__(self, base: nn.Embedding, *, runs: int, batch: BatchSize) -> None:
        super().__init__()
        self.weight = _repeated(base.weight, runs)
        self.padding_idx = base.padding_idx
        self.batch = batch

    def forward(self, indices: Int[Tensor, " examples *positions"]) -> Float[Tensor, "examples *positions width"]:
        if indices.shape[0] == 1:
            indices = indices.expand(self.batch.examples, *indices.shape[1:])
        parts = indices.unflatten(0, (self.weight.shape[0], -1))
        return torch.cat(
            [
                nn.functional.embedding(part, weight, padding_idx=self.padding_idx)
                for part, weight in zip(parts.unbind(), self.weight.unbind(), strict=True)
            ]
        )

    def view(self, run: int) -> nn.Embedding:
        _, rows, width = self.weight.shape
        one = nn.Embedding(rows, width, padding_idx=self.padding_idx, device="meta")
        one.weight = self._run("weight", run)
        return one.train(self.training)


class StackedLayerNorm(Stacked):
    """(x - mean) / sqrt(variance + eps) * w_k + b_k over the last axis. weight, bias: [runs, width]."""

    def __init__(self, base: nn.LayerNorm, *, runs: int) -> None:
        super().__init__()
        self.weight = _repeated(base.weight, runs)
        self.bias = None if base.bias is None else _repeated(base.bias, runs)
        self.eps = base.eps

    def forward(self, x: Float[Tensor, "examples *positions width"]) -> Float[Tensor, "examples *positions width"]:
        y = _split(nn.functional.layer_norm(x, self.weight.shape[1:], eps=self.eps), self.weight)
        weight = _spread(self.weight, y.ndim)
        scaled = y * weight if self.bias is None else torch.addcmul(_spread(self.bias, y.ndim), y, weight)
        return scaled.flatten(0, 1)

    def view(self, run: int) -> nn.LayerNorm:
        one = nn.LayerNorm(self.weight.shape[1], eps=self.eps, bias=self.bias is not None, device="meta")
        one.weight = self._run("weight", run)
        if self.bias is not None:
            one.bias = self._run("bias", run)
        return one.train(self.training)


class StackedRMSNorm(Stacked):
    """The base's own RMS normalisation with one weight a run. weight: [runs, width].

    The variants differ in where they convert and in what they add to the weight, but all multiply by it along the last
    axis, so each is computed by its own code on [runs, examples, ..., width] with the weight as [runs, 1, ..., width].
    """

    def __init__(self, base: nn.Module, *, runs: int) -> None:
        super().__init__()
        self.weight = _repeated(base.get_parameter("weight"), runs)
        norm = copy.copy(base)  # its weight is given in each call
        norm._parameters = {"weight": None}
        self._norm = (norm,)

    def forward(self, x: Float[Tensor, "examples *positions width"]) -> Float[Tensor, "examples *positions width"]:
        split = _split(x, self.weight)
        (norm,) = self._norm
        return functional_call(norm, {"weight": _spread(self.weight, split.ndim)}, (split,)).flatten(0, 1)

    def view(self, run: int) -> nn.Module:
        one = copy.copy(self._norm[0])
        one._parameters = {"weight": self._run("weight", run)}
        return one.train(self.training)


class BatchSize:
    """How many examples the model is given at present, all runs together: noted as its forward begins."""

    def __init__(self, model: nn.Module) -> None:
        self.examples = 1
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.examples = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).shape[0]


def stack_model(model: nn.Module, runs: int) -> None:
    """Gives every layer of the model one set of weights a run, in place, all equal to the present ones.

    Raises NotStackable for parameters of modules that have no stacked form, and for parameters that layers share.
    """
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    shared = set(named) - {name for name, _ in model.named_parameters()}
    if shared:
        raise NotStackable(f"{min(shared)} is shared between layers of {type(model).__name__}")
    batch = BatchSize(model)
    replacements = {name: _stacked(name, module, runs, batch) for name, module in model.named_modules() if _own(module)}
    for name, layer in replacements.items():
        replace_module(model, name, layer.train(model.training))


def stack_layer(model: nn.Module, name: str, *, runs: int) -> None:
    """Gives one layer of the model one set of weights a run, in place. Raises NotStackable."""
    layer = model.get_submodule(name)
    replace_module(model, name, _stacked(name, layer, runs, None).train(layer.training))


def parameter_layers(model: nn.Module, root: str) -> list[str]:
    """The names of the modules at or below `root` that have parameters of their own."""
    return [
        f"{root}.{name}".rstrip(".") for name, module in model.get_submodule(root).named_modules() if _own(module)
    ]  # fmt: skip


def _own(module: nn.Module) -> bool:
    return bool(list(module.parameters(recurse=False)))


def _stacked(name: str, module: nn.Module, runs: int, batch: BatchSize | None) -> Stacked:
    parameters = dict(module.named_parameters(recurse=False))
    if type(module) is nn.Linear:
        return StackedLinear(module, runs=runs)
    if type(module) is Conv1D:
        return StackedConv1D(module, runs=runs)
    is_plain = type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq
    if isinstance(module, nn.Embedding) and is_plain and batch is not None:
        return StackedEmbedding(module, runs=runs, batch=batch)
    if type(module) is nn.LayerNorm and module.weight.ndim == 1:
        return StackedLayerNorm(module, runs=runs)
    if type(module).__name__.endswith("RMSNorm") and type(module) is not nn.RMSNorm and list(parameters) == ["weight"]:
        return StackedRMSNorm(module, runs=runs)
    raise NotStackable(f"{name or 'the model itself'} is a {type(module).__name__}, which cannot be stacked over runs")


def view(model: Any, run: int) -> Any:
    """The model of one run: a module tree of its own over the same tensors, frozen and trained. Trained parameters are
    views of the stacked ones, so the model follows what training does to them."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    streams = {id(m.streams): m.streams for m in model.modules() if isinstance(m, StackedDropout)}
    memo |= {key: stream.view(run) for key, stream in streams.items()}
    memo |= {id(m): m.view(run) for m in model.modules() if isinstance(m, Stacked | StackedDropout)}
    memo |= {id(layer.base): layer.base for layer in model.modules() if isinstance(layer, StackedLoRALinear)}
    return copy.deepcopy(model, memo)


def set_run(model: nn.Module, run: int, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` (name in the plain model -> tensor) into run `run` of a stacked model."""
    with torch.no_grad():
        for name, tensor in weights.items():
            model.get_parameter(name)[run].copy_(tensor)


def stacked_names(model: nn.Module) -> set[str]:
    """The names of the parameters whose first axis is the run."""
    return {
        f"{name}.{own}" for name, module in model.named_modules() if isinstance(module, Stacked)
        for own, _ in module.named_parameters(recurse=False)
    }  # fmt: skip


def replace_module(model: nn.Module, name: str, replacement: nn.Module) -> None:
    """Puts `replacement` where `model` has the submodule `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, replacement)


def _repeated(parameter: Tensor, runs: int) -> nn.Parameter:
    return nn.Parameter(torch.stack([parameter.detach()] * runs))


def _split(x: Tensor, stacked: Tensor) -> Tensor:
    return x.unflatten(0, (stacked.shape[0], -1))


def _spread(parameter: Float[Tensor, "runs width"], ndim: int) -> Tensor:
    """As [runs, 1, ..., 1, width] of `ndim` axes."""
    return parameter[(slice(None), *[None] * (ndim - 2))]
