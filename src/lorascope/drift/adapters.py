"""Exported LoRA adapters of one base, read back into one model whose layers are stacked over runs.

peft reads one adapter into one copy of the base. Here R of them become the R runs of `StackedLoRALinear` layers over the
base's own tensors, so one forward pass serves all. What the files say is taken literally: sites from the tensors' names,
ranks from their shapes, alpha from the adapter's config. A run that lacks a site of another has an update of zero there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorascope.errors import EnvironmentProblem
from lorascope.methods.base import NotStackable
from lorascope.methods.dropout import DropoutStreams, StackedDropout
from lorascope.methods.stacked import StackedLoRALinear, replace_module, stack_layer
from lorascope.models.linear import linear_at
from lorascope.models.sites import present_names

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from lorascope.models.loading import BaseModel

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Fields of PEFT's LoraConfig under which alpha / rank * B A is no longer the update, with their harmless values.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None, True),  # says how the base keeps its weight; A and B are the same
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True)
class Adapter:
    """One exported run. lora_a: site -> [rank, in]; lora_b: site -> [out, rank]; head: parameter name -> tensor."""

    alpha: float
    lora_a: Mapping[str, Tensor]
    lora_b: Mapping[str, Tensor]
    head: Mapping[str, Tensor]


def read_adapter(directory: Path) -> Adapter:
    """The adapter that `LoRA.export` or peft wrote.

    Raises NotStackable for an adapter that is more than plain LoRA, EnvironmentProblem if its files are not there.
    """
    from safetensors.torch import load_file

    try:
        config = json.loads((directory / "adapter_config.json").read_text())
        tensors = load_file(directory / "adapter_model.safetensors")
    except OSError as error:
        raise EnvironmentProblem(
            f"{directory} holds no adapter: {type(error).__name__} {Path(error.filename or '').name}",
            hint="an exported adapter is adapter_config.json and adapter_model.safetensors",
        ) from None
    for field, plain in _PLAIN.items():
        if field in config and config[field] not in plain:
            raise NotStackable(f"the adapter in {directory} has {field}: {config[field]}, which plain LoRA does not")
    named = {name.removeprefix(_PREFIX): tensor.float() for name, tensor in tensors.items()}
    lora_a = {name.removesuffix(_A): tensor for name, tensor in named.items() if name.endswith(_A)}
    lora_b = {name.removesuffix(_B): tensor for name, tensor in named.items() if name.endswith(_B)}
    head = {name: tensor for name, tensor in named.items() if not name.endswith((_A, _B))}
    if lora_a.keys() != lora_b.keys():
        raise NotStackable(f"the adapter in {directory} lacks half of {sorted(lora_a.keys() ^ lora_b.keys())[0]}")
    return Adapter(float(config["lora_alpha"]), lora_a, lora_b, head)


def stack_adapters(base: BaseModel, directories: Sequence[Path]) -> PreTrainedModel:
    """A model in evaluation mode whose run k (`methods.stacked.view`) is the base with the adapter in directories[k], its
    head included.

    Its batches are those of all runs end to end (methods/stacked.py). Raises NotStackable as `read_adapter` does, and for
    tensors that belong to no layer of the base.
    """
    adapters = [_under_present_names(read_adapter(directory), base.model) for directory in directories]
    generators = [torch.Generator() for _ in adapters]
    model = base.copy(generators[0], share_frozen=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted({site for adapter in adapters for site in adapter.lora_a}):
        if f"{name}.weight" not in shapes:
            raise NotStackable(f"an adapter changes {name}, which {type(model).__name__} does not have")
        ranks = [adapter.lora_a[name].shape[0] if name in adapter.lora_a else 1 for adapter in adapters]
        layer = StackedLoRALinear(
            linear_at(model, name), ranks=ranks, alphas=[adapter.alpha for adapter in adapters],
            dropouts=[0.0] * len(adapters), generators=generators,
        )  # fmt: skip
        _fill(layer, name, adapters)
        replace_module(model, name, layer)
    heads = {name for adapter in adapters for name in adapter.head}
    for name in sorted({name.rpartition(".")[0] for name in heads}):
        inside = any(name == root or name.startswith(f"{root}.") for root in base.head)
        if not inside:
            raise NotStackable(f"an adapter holds weights of {name}, which is no layer of the head")
        stack_layer(model, name, runs=len(adapters))
    for name in sorted(heads):
        parameter = model.get_parameter(name)
        for run, adapter in enumerate(adapters):
            if name not in adapter.head or adapter.head[name].shape != parameter.shape[1:]:
                raise NotStackable(f"the adapter in {directories[run]} has no {name} of shape {shapes[name]}")
            parameter.data[run].copy_(adapter.head[name])
    streams = DropoutStreams(len(adapters), base.device)  # unused in evaluation; a one-run view has one of its own
    for number, dropout in enumerate(m for m in model.modules() if isinstance(m, StackedDropout)):
        dropout.connect(streams, number)
    return model.requires_grad_(False).eval()


def _under_present_names(adapter: Adapter, model: nn.Module) -> Adapter:
    """The adapter with its sites as this version of transformers names them."""
    renamed = present_names(model, adapter.lora_a)
    lora_a, lora_b = (
        {renamed.get(site, site): tensor for site, tensor in matrices.items()}
        for matrices in (adapter.lora_a, adapter.lora_b)
    )
    return replace(adapter, lora_a=lora_a, lora_b=lora_b)


def _fill(layer: StackedLoRALinear, name: str, adapters: Sequence[Adapter]) -> None:
    """Zero but for each run's own rank."""
    lora_a, lora_b = torch.zeros_like(layer.lora_A, device="cpu"), torch.zeros_like(layer.lora_B, device="cpu")
    for run, adapter in enumerate(adapters):
        if name in adapter.lora_a:
            a, b = adapter.lora_a[name], adapter.lora_b[name]
            rank = a.shape[0]
            if a.shape != (rank, lora_a.shape[2]) or b.shape != (lora_b.shape[1], rank):
                raise NotStackable(f"an adapter's update of {name} is {tuple(b.shape)} x {tuple(a.shape)}")
            lora_a[run, :rank], lora_b[run, :, :rank] = a, b
    layer.lora_A.data.copy_(lora_a)
    layer.lora_B.data.copy_(lora_b)
