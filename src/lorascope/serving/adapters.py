"""Whether an adapter can be served, asked of its files alone: in seconds, before an engine spends minutes starting.

Two things are checked: what the adapter is (an engine that multiplies by A and B computes nothing else), and whether its
matrices fit the base it is to be served over (an engine may copy a smaller adapter into larger slots without a word).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_CHANGES_THE_BASE = ("pissa", "olora", "loftq", "corda")
_MATRICES = (".lora_A.weight", ".lora_B.weight")


def find_misfit(adapter: Path, base: Path, *, engine: str, max_rank: int) -> str | None:
    """Why `adapter` cannot be served over `base` by `engine`; None if its files speak for it."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no adapter_config.json"
    return (
        _find_unservable(config, engine=engine)
        or _find_rank_misfit(config, max_rank=max_rank)
        or _find_shape_misfit(read_shapes(adapter), read_shapes(base))
    )


def _find_unservable(config: Mapping[str, Any], *, engine: str) -> str | None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        return f"it is of PEFT's kind {kind}, not LORA"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        return f"it was initialised with {start}, which changed its base, and was not converted to plain LoRA"
    if engine == "transformers":
        return None
    if config.get("use_dora"):
        return "it is DoRA, whose weights are no product of two matrices"
    if config.get("use_qalora"):
        return "it is QA-LoRA, which pools its input in groups"
    return None


def _find_rank_misfit(config: Mapping[str, Any], *, max_rank: int) -> str | None:
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    return f"its rank {rank} is over the engine's max_rank {max_rank}" if rank > max_rank else None


def _find_shape_misfit(adapter: Shapes, base: Shapes) -> str | None:
    """A is (rank, inputs) and B is (outputs, rank), over a weight of (outputs, inputs)."""
    for name, shape in adapter.items():
        for axis, suffix in zip((1, 0), _MATRICES, strict=True):
            if not name.endswith(suffix):
                continue
            module = name.removesuffix(suffix).removeprefix("base_model.model.")
            weight = _shape_of(module, base)
            if weight is not None and shape[axis] not in weight:
                size = f"{shape[axis]} {'inputs' if axis else 'outputs'}"
                return f"it was made for another base: its {module} has {size}, this base's weight is {weight}"
    return None


def _shape_of(module: str, base: Shapes) -> tuple[int, ...] | None:
    """Of a module's weight in the base; None if the checkpoint does not have it under that name (tied, renamed)."""
    names = (f"{module}.weight", f"model.{module}.weight", f"{module.removeprefix('model.')}.weight")
    return next((base[name] for name in names if name in base), None)


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a directory's safetensors files, read from their headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes
