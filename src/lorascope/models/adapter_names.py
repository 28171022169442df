"""PEFT adapters that were written with another version of transformers: their modules under the names they have here.

transformers renamed the layers of vision models (ViT's `query` became `q_proj`) and converts checkpoints as it reads them;
nothing converts an adapter's names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorascope.models.sites import present_names

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_ROOT = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def under_present_names(
    config: dict[str, Any], state: dict[str, Tensor], model: nn.Module
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's config and tensors as this version of transformers would have had them named; most are as they were."""
    renamed = renamed_keys(model, state)
    if not renamed:
        return config, state
    present = {renamed.get(key, key): tensor for key, tensor in state.items()}
    sites = sorted({key.partition(".lora_")[0].removeprefix(PEFT_ROOT) for key in present if ".lora_" in key})
    return {**config, "target_modules": sites}, present


def renamed_keys(model: nn.Module, keys: Mapping[str, Any]) -> dict[str, str]:
    """Key of an adapter's file -> the key it would have here, for those that are named otherwise."""
    modules = {key: key.partition(".lora_")[0].removeprefix(PEFT_ROOT) for key in keys if ".lora_" in key}
    names = present_names(model, set(modules.values()))
    return {
        key: f"{PEFT_ROOT}{names[module]}{key.removeprefix(PEFT_ROOT).removeprefix(module)}"
        for key, module in modules.items()
        if module in names
    }


@contextmanager
def readable_adapter(directory: Path, model: nn.Module) -> Iterator[Path]:
    """A directory from which peft reads the adapter into `model`: its own, or a copy under the present names."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(str(directory / WEIGHTS), framework="pt") as file:
        is_present = not renamed_keys(model, dict.fromkeys(file.keys()))
    if is_present:
        yield directory
        return
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    config, state = under_present_names(config, load_file(directory / WEIGHTS), model)
    with TemporaryDirectory() as copy:
        (Path(copy) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        save_file(state, Path(copy) / WEIGHTS, metadata={"format": "pt"})
        yield Path(copy)
