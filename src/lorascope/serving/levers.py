"""vLLM's own levers: settings that change how fast adapters are served and, if they are honest, nothing of what they answer.

A lever is a name, the options it sets (programs/vllm_engine.py says how they are written) and where it can matter at all.
Which of them a version of vLLM knows is not kept here: it is asked, and what it does not know is said and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.serving.adapters import read_shapes
from lorascope.serving.exchange import EngineConfig

_GRAPH_STEP = 8  # beside 1, 2 and 4, vLLM captures graphs for batches that are multiples of this
_MOST_TOKENS_A_STEP = 16384


@dataclass(frozen=True)
class Lever:
    """options: as in an EngineConfig. slots: adapters resident at once, None: as many as without it. idle: why it can
    change nothing here; empty if it can."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    slots: int | None = None
    idle: str = ""

    def applied_to(self, config: EngineConfig) -> EngineConfig:
        slots = config.slots if self.slots is None else self.slots
        return replace(config, options={**config.options, **self.options}, slots=slots)


def combine(levers: Sequence[Lever]) -> Lever:
    """All of them at once."""
    options = {name: value for lever in levers for name, value in lever.options.items()}
    slots = next((lever.slots for lever in levers if lever.slots is not None), None)
    return Lever(" + ".join(lever.name for lever in levers), options, slots)


def known_levers(
    adapters: Mapping[str, Path],
    *,
    device: str,
    batch_sizes: Sequence[int],
    longest_prompt: int,
    slots: int | None,
    kernel_tables: Path | None,
) -> Iterator[Lever]:
    """What can be tried for these adapters. slots: as the study fixes them. kernel_tables: a folder with tables of vLLM's
    kernels for adapters, tuned for this device."""
    on_device = "" if device.startswith("cuda") else "it concerns a GPU's kernels or graphs, and this is none"
    # Without it vLLM multiplies by an adapter of zeros in every layer that could have one.
    yield Lever("lora_target_modules", {"lora_target_modules": changed_modules(adapters)})
    yield Lever("specialize_active_lora", {"specialize_active_lora": True}, idle=on_device)
    yield Lever("VLLM_LORA_ENABLE_DUAL_STREAM", {"VLLM_LORA_ENABLE_DUAL_STREAM": True}, idle=on_device)
    yield Lever("VLLM_LORA_DISABLE_PDL", {"VLLM_LORA_DISABLE_PDL": True}, idle=on_device)
    tables = {} if kernel_tables is None else {"VLLM_TUNED_CONFIG_FOLDER": str(kernel_tables)}
    without = "" if kernel_tables else "no folder of tables is given (measure.serving.kernel_tables)"
    yield Lever("VLLM_TUNED_CONFIG_FOLDER", tables, idle=on_device or without)
    yield _graphs_of(batch_sizes, on_device)
    yield _longer_steps(max(batch_sizes) * longest_prompt)
    half = len(adapters) // 2
    fixed = "the study fixes the slots" if slots is not None else "" if half else "one adapter needs one slot"
    yield Lever(f"max_loras {half}", slots=half, idle=fixed)


def changed_modules(adapters: Mapping[str, Path]) -> list[str]:
    """The last names of the modules that any of the adapters has matrices for: "q_proj", "v_proj"."""
    names = {name.split(".lora_")[0] for path in adapters.values() for name in read_shapes(path) if ".lora_" in name}
    return sorted({name.rpartition(".")[2] for name in names})


def _graphs_of(batch_sizes: Sequence[int], idle: str) -> Lever:
    """CUDA graphs for exactly these batches, where vLLM would pad them to the next size it captures."""
    largest = max(batch_sizes)
    usual = {1, 2, 4, *range(_GRAPH_STEP, largest + _GRAPH_STEP, _GRAPH_STEP)}
    captured = "" if set(batch_sizes) - usual else "vLLM captures graphs for all of the batch sizes anyway"
    sizes = sorted(usual | set(batch_sizes))
    return Lever("cudagraph_capture_sizes", {"cudagraph_capture_sizes": sizes}, idle=idle or captured)


def _longer_steps(num_tokens: int) -> Lever:
    """Room for all prompts of the largest batch in one step."""
    room = min(-(-num_tokens // 1024) * 1024, _MOST_TOKENS_A_STEP)
    return Lever(f"max_num_batched_tokens {room}", {"max_num_batched_tokens": room})
