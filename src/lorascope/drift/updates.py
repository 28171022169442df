"""What a run changed in its base: the update dW of every linear weight, read from what the run exported.

An adapter's update stays as its two factors, dW = left @ right, so nothing of the weight's own size is made for it.
A head is new for its task and has no update.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorascope.errors import StudyError
from lorascope.models.adapter_names import renamed_keys
from lorascope.models.linear import is_transposed, linear_at, linear_weight
from lorascope.models.reading import reading_checkpoint
from lorascope.models.sites import resolve_sites, roles_of

if TYPE_CHECKING:
    from torch import nn

    from lorascope.models.loading import BaseModel

Change = Literal["low-rank", "dense"]
_PEFT_PREFIX = "base_model.model."
# Settings of a LoRA adapter under which its update is alpha / rank * B @ A and nothing else, as PEFT writes them.
_PLAIN_LORA: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
    "fan_in_fan_out": (False, None, True),  # says how the base keeps its weight; A and B are the same
    "lora_bias": (False, None),
    "bias": ("none", None),
    "alpha_pattern": ({}, None),
    "init_lora_weights": (True, False, "gaussian", None),
}


@dataclass(frozen=True)
class LowRank:
    """An update as a product. left: [out, rank], the scaling included; right: [rank, in]."""

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    @property
    def rank(self) -> int:
        return self.right.shape[0]


@dataclass(frozen=True)
class Matrix:
    """A linear weight of the base, [out, in]. site: its role ("query"), or its name without the layer's number where
    the architecture is not in the table. layer: None for a matrix outside the blocks. is_transposed: whether checkpoints
    keep it as [in, out]."""

    name: str
    site: str
    layer: int | None
    weight: Float[Tensor, "out in"]
    is_transposed: bool = False


@dataclass(frozen=True)
class WeightUpdate:
    """change: the tuned weight itself, the factors of the update, or None for a matrix that the run left as it was."""

    matrix: Matrix
    change: Float[Tensor, "out in"] | LowRank | None


def base_matrices(base: BaseModel) -> list[Matrix]:
    """Every linear weight of the base in the model's order, the head excluded."""
    names = resolve_sites(base.model, ("all-linear",), head=base.head)
    roles, found = roles_of(base.model, names), []
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        layer = None if number is None else int(parts[number])
        site = roles.get(name) or ".".join(part for i, part in enumerate(parts) if i != number)
        linear = linear_at(base.model, name)
        found.append(Matrix(name, site, layer, linear_weight(linear).detach(), is_transposed(linear)))
    return found


def weight_updates(base: BaseModel, directory: Path, *, change: Change) -> Iterator[WeightUpdate]:
    """The update of every linear weight of the base by the run exported to `directory`, in the model's order.

    change: what the run's method makes of its base (`Method.change`): the directory holds PEFT's adapter for "low-rank", else
    a plain checkpoint. Tensors are read one at a time, on the
    CPU. Raises StudyError for an export that is incomplete, belongs to another base, or is not plain LoRA.
    """
    export = open_export(directory, base, change=change)
    matrices = base_matrices(base)
    if isinstance(export, _Adapter):
        export.take_present_names(base.model)
        export.require_sites({matrix.name for matrix in matrices}, base.head)
    for matrix in matrices:
        yield WeightUpdate(matrix, export.change(matrix))


class _Checkpoint:
    """A plain checkpoint's tensors by name, whole or in shards."""

    def __init__(self, directory: Path, index: str, whole: str) -> None:
        self.directory = directory
        shards = directory / index
        if shards.is_file():
            self.files: dict[str, str] = json.loads(shards.read_text())["weight_map"]
        else:
            self.files = dict.fromkeys(self._open(whole).keys(), whole)

    def _open(self, file: str) -> Any:
        try:
            return safe_open(str(self.directory / file), framework="pt")
        except (OSError, SafetensorError) as error:
            raise StudyError(
                f"{self.directory / file} cannot be read: {error}",
                hint="the run's export is incomplete; delete its artifact and run the study again",
            ) from error

    @cached_property
    def _handles(self) -> dict[str, Any]:
        return {file: self._open(file) for file in set(self.files.values())}

    def _read(self, name: str) -> Tensor:
        return self._handles[self.files[name]].get_tensor(name)

    def tensor(self, name: str, shape: torch.Size | None = None) -> Tensor:
        """One tensor on the CPU. Raises StudyError if it is not there, or not of the base's shape."""
        found = self._read(name) if name in self.files else None
        if found is None or (shape is not None and found.shape != shape):
            what = "has no" if found is None else f"has a {tuple(found.shape)}"
            raise StudyError(
                f"{self.directory} {what} {name}" + (f", its base a {tuple(shape)}" if shape is not None else ""),
                hint="the checkpoint belongs to another base model; compare a run with the base it started from",
            )
        return found

    def change(self, matrix: Matrix) -> Tensor | LowRank | None:
        shape = matrix.weight.shape
        if not matrix.is_transposed:
            return self.parameter(f"{matrix.name}.weight", shape)
        found = self.parameter(f"{matrix.name}.weight", torch.Size(reversed(shape)))
        return None if found is None else found.t()

    def parameter(self, name: str, shape: torch.Size) -> Tensor | None:
        """A parameter as the run left it, None where it is the base's."""
        return self.tensor(name, shape)


class _Adapter(_Checkpoint):
    """A PEFT LoRA adapter: lora_A [rank, in] and lora_B [out, rank] of the sites it has."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "adapter_model.safetensors.index.json", "adapter_model.safetensors")
        self.config = json.loads((directory / "adapter_config.json").read_text())
        self._renamed: dict[str, str] = {}
        for key, plain in _PLAIN_LORA.items():
            if self.config.get(key) not in plain:
                raise StudyError(
                    f"the adapter in {directory} has {key}: {self.config[key]}, so its update is not alpha / rank * B A",
                    hint="weight-space measures know plain LoRA and full checkpoints: merge this adapter into its base "
                    "(merge_and_unload) and measure the checkpoint",
                )

    def take_present_names(self, model: nn.Module) -> None:
        """Reads tensors that another version of transformers named otherwise under their names in `model`."""
        self._renamed = {present: own for own, present in renamed_keys(model, self.files).items()}
        self.files |= {present: self.files.pop(own) for present, own in self._renamed.items()}

    def _read(self, name: str) -> Tensor:
        return self._handles[self.files[name]].get_tensor(self._renamed.get(name, name))

    def require_sites(self, names: set[str], head: tuple[str, ...]) -> None:
        """Every tensor must be a factor of a known matrix or the head's, or the update would be incomplete."""
        known = {f"{_PEFT_PREFIX}{name}.{factor}.weight" for name in names for factor in ("lora_A", "lora_B")}
        heads = tuple(f"{_PEFT_PREFIX}{name}." for name in head)
        for key in self.files:
            if key not in known and not key.startswith(heads):
                raise StudyError(
                    f"the adapter in {self.directory} changes {key}, which is not a linear layer of its base",
                    hint="the adapter belongs to another base model; compare a run with the base it started from",
                )

    def change(self, matrix: Matrix) -> LowRank | None:
        key = f"{_PEFT_PREFIX}{matrix.name}"
        if f"{key}.lora_A.weight" not in self.files and f"{key}.lora_B.weight" not in self.files:
            return None
        out, width = matrix.weight.shape
        right = self.tensor(f"{key}.lora_A.weight")
        rank = right.shape[0]
        left = self.tensor(f"{key}.lora_B.weight", torch.Size((out, rank)))
        right = self.tensor(f"{key}.lora_A.weight", torch.Size((rank, width)))
        return LowRank(left.double() * (self.config["lora_alpha"] / rank), right)

    def parameter(self, name: str, shape: torch.Size) -> None:
        return None


class _RenamedCheckpoint(_Checkpoint):
    """A plain checkpoint that transformers writes under older names than the model's (ViT's `query` for `q_proj`) and renames
    as it reads it: loaded whole, by transformers."""

    def __init__(self, directory: Path, base: BaseModel) -> None:
        self.directory = directory
        with reading_checkpoint(directory):
            loaded: Any = type(base.model).from_pretrained(
                directory,
                config=base.model.config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        model, info = loaded
        absent = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        self._tensors = {name: p.detach() for name, p in model.named_parameters() if name not in absent}
        self.files = dict.fromkeys(self._tensors, "")

    def _read(self, name: str) -> Tensor:
        return self._tensors[name]


def open_export(directory: Path, base: BaseModel, *, change: Change) -> _Checkpoint:
    """The exported run of a base, to read tensors from. Raises StudyError if the directory holds none of this kind."""
    if change == "low-rank":
        names, wanted = ("adapter_config.json",), "adapter_config.json"
    else:
        names, wanted = ("model.safetensors.index.json", "model.safetensors"), "model.safetensors"
    if not any((directory / name).is_file() for name in names):
        raise StudyError(
            f"{directory} holds no exported run of a {change} change (no {wanted})",
            hint="give the `export` directory of a finished train step, and its method",
        )
    if change == "low-rank":
        return _Adapter(directory)
    checkpoint = _Checkpoint(directory, *names)
    is_whole = all(name in checkpoint.files for name, _ in base.model.named_parameters())
    return checkpoint if is_whole else _RenamedCheckpoint(directory, base)
