"""What a configuration means to vLLM: the arguments of its engine, whether stepped in this process or behind its server.

Options are vLLM's own names: lower case for arguments of its engine (`specialize_active_lora`), upper case for its
environment variables (`VLLM_LORA_ENABLE_DUAL_STREAM`). One that this vLLM does not know is refused by name.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import wire

_PREPARED = {  # ours to decide, so not an option; and where a study says it
    "max_loras": "serving slots",
    "max_cpu_loras": "serving cpu slots",
    "max_lora_rank": "the adapters' rank",
    "max_model_len": "max_length",
    "max_num_seqs": "max_batch",
    "dtype": "dtype",
    "model": "model",
    "enable_prefix_caching": "nothing: it would measure the repetition of prompts",
}

_CACHE_BLOCK = 16  # tokens
_LARGEST_BLOCK = 8  # times that; a request leaves up to one block unfilled
_SPARE_BLOCKS = 64


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Engine arguments (lower case) and environment variables (upper case)."""
    for name in options:
        if name in _PREPARED:
            raise wire.EngineError("engine", f"option `{name}` is not free: it follows from {_PREPARED[name]}")
    arguments = {name: value for name, value in options.items() if not name.isupper()}
    variables = {name: environment_text(value) for name, value in options.items() if name.isupper()}
    return arguments, variables


def environment_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def import_vllm(variables: dict[str, str]) -> None:
    """Refuses variables that this vLLM does not read: they would be ignored without a word."""
    import vllm
    from vllm import envs

    for name in variables:
        if name not in envs.environment_variables:
            raise wire.EngineError("option", f"vLLM {vllm.__version__} does not know the option `{name}`")


def engine_arguments(config: dict[str, Any], options: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """By the names of vLLM's EngineArgs. notes: what a person should know is added."""
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {
        "model": config["model"],
        "dtype": config["dtype"],
        "seed": 0,
        "max_model_len": config["max_length"],
        "max_num_seqs": config["max_batch"],
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "enforce_eager": config["device"] == "cpu",
        "runner": "generate" if config["workload"] == "generation" else "pooling",
    }
    if config["fitted_cache"] and config["device"] != "cpu":
        arguments["kv_cache_memory_bytes"] = fitted_cache_bytes(config)
    if config["adapters"]:
        num_adapters = len(config["adapters"])
        slots = config["slots"] or num_adapters
        arguments |= {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": config["cpu_slots"] or max(slots, num_adapters),
            "max_lora_rank": allowed_rank(config["max_rank"], notes),
        }
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in options:
        if name not in known:
            raise wire.EngineError("option", f"vLLM {vllm.__version__} does not know the option `{name}`")
    return arguments | options


def fitted_cache_bytes(config: dict[str, Any]) -> int:
    """Keys and values of max_batch requests at max_length, in blocks, and a few blocks to spare."""
    model = json.loads((Path(config["model"]) / "config.json").read_text())
    heads = model["num_attention_heads"]
    head_size = model.get("head_dim") or model["hidden_size"] // heads
    token_bytes = 2 * model["num_hidden_layers"] * (model.get("num_key_value_heads") or heads) * head_size
    token_bytes *= 2 if config["dtype"] == "bfloat16" else 4
    blocks = config["max_batch"] * (math.ceil(config["max_length"] / _CACHE_BLOCK) + _LARGEST_BLOCK) + _SPARE_BLOCKS
    return blocks * _CACHE_BLOCK * token_bytes


def allowed_rank(max_rank: int, notes: list[str]) -> int:
    """The smallest rank vLLM has room for that holds the adapters'."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    allowed = [rank for rank in sorted(get_args(MaxLoRARanks)) if rank >= max_rank]
    if not allowed:
        largest = max(get_args(MaxLoRARanks))
        text = f"vLLM serves adapters of rank {largest} at most, these have {max_rank}. Serve them merged."
        raise wire.EngineError("adapter-rejected", text)
    if allowed[0] != max_rank:
        notes.append(f"vLLM has no max_lora_rank {max_rank}: adapters are padded to {allowed[0]}")
    return allowed[0]


def head_of(config: dict[str, Any]) -> str | None:
    """Where the classification head is taken from: "adapter", "model", "mixed"; None for generation."""
    if config["workload"] == "generation":
        return None
    configs = [json.loads((Path(path) / "adapter_config.json").read_text()) for path in config["adapters"].values()]
    with_head = [bool(adapter.get("modules_to_save")) for adapter in configs]
    return "adapter" if with_head and all(with_head) else "mixed" if any(with_head) else "model"


def refuse_base_beside_adapters(request: dict[str, Any], config: dict[str, Any]) -> None:
    """On a CPU. vLLM's kernels there index the slots with -1 for "none" and so take the last slot's adapter (seen in
    0.32.0)."""
    if request["adapter"] is None and config["adapters"] and config["device"] == "cpu":
        text = "vLLM on a CPU computes a request without an adapter with one of its adapters"
        raise wire.EngineError("engine", f"{text}: serve it from an engine that has none")
