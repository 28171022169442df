"""transformers and peft as an engine: static batches, every adapter of a batch at once where they differ.

The requests that are due and not running form the next batch. Requests of several adapters go as one mixed batch (peft's
`adapter_names`); those of one adapter with that adapter active. Token times are noted after every step of `generate`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import wire
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

_BASE = "__base__"  # peft's name for a row without an adapter


class Transformers:
    def __init__(self, config: dict[str, Any]) -> None:
        for name in config["options"]:
            raise wire.EngineError("option", f"transformers does not know the option `{name}`: it has none")
        self._config = config
        self._device = torch.device("cuda:0" if config["device"].startswith("cuda") else config["device"])
        if config["threads"] is not None:
            torch.set_num_threads(config["threads"])
        self._model: Any = load_model(config).to(self._device).eval()
        self._active: str | None = None
        for name in config["adapters"]:
            self.load(name)

    def describe(self) -> dict[str, Any]:
        is_cuda = self._device.type == "cuda"
        return {
            "versions": wire.installed_versions("torch", "transformers", "peft"),
            "device_name": torch.cuda.get_device_name(self._device) if is_cuda else wire.processor_name(),
            "settings": {
                "dtype": self._config["dtype"],
                "attention": getattr(self._model.config, "_attn_implementation", None),
                "max_batch": self._config["max_batch"],
                "threads": torch.get_num_threads(),
            },
            "head": head_of(self._model, self._config),
            "notes": [],
        }

    @torch.inference_mode()
    def serve(self, requests: list[dict[str, Any]], keep_outputs: bool) -> tuple[list[dict[str, Any]], float]:
        answers: dict[int, dict[str, Any]] = {}
        arrivals = wire.Arrivals(requests)
        while arrivals:
            batch = arrivals.take_due(self._config["max_batch"])
            if not batch:
                arrivals.sleep()
                continue
            sent_s = arrivals.now()
            run = self._generate if self._config["workload"] == "generation" else self._classify
            for request, (token_s, output) in zip(batch, run(batch, arrivals), strict=True):
                kept = output if keep_outputs else None
                answers[request["id"]] = wire.served_request(request, token_s, kept, sent_s=sent_s)
        return [answers[request["id"]] for request in requests], arrivals.now()

    def _generate(self, batch: list[dict[str, Any]], arrivals: wire.Arrivals) -> list[tuple[list[float], list[int]]]:
        ids, mask = pad([request["prompt"] for request in batch], fill=0, side="left", device=self._device)
        times = TokenTimes(arrivals, self._device)
        longest = max(request["output_tokens"] for request in batch)
        generated = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList([Sampler(batch, self._device)]),
            stopping_criteria=StoppingCriteriaList([times]),
            **self._choose_adapters(batch),
        )
        rows = generated[:, ids.shape[1] :].tolist()
        counts = [request["output_tokens"] for request in batch]
        return [(times.token_s[:count], row[:count]) for row, count in zip(rows, counts, strict=True)]

    def _classify(self, batch: list[dict[str, Any]], arrivals: wire.Arrivals) -> list[tuple[list[float], list[float]]]:
        prompts = [request["prompt"] for request in batch]
        fill = filling_token(self._model.config.pad_token_id, prompts)
        self._model.config.pad_token_id = fill
        ids, mask = pad(prompts, fill=fill, side="right", device=self._device)
        logits = self._model(input_ids=ids, attention_mask=mask, **self._choose_adapters(batch)).logits
        probabilities = torch.softmax(logits.double(), dim=-1).tolist()  # a copy to the host: the device is done
        now_s = arrivals.now()
        return [([now_s], row) for row in probabilities]

    def _choose_adapters(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        """One adapter for the whole batch is made active; a mixture is named row by row."""
        names = [request["adapter"] or _BASE for request in batch]
        if not isinstance(self._model, PeftModel):
            unknown = [name for name in names if name != _BASE]
            if unknown:
                raise wire.EngineError("engine", f"no adapter {unknown[0]!r} is loaded")
            return {}
        if len(set(names)) > 1 or names[0] == _BASE:
            return {"adapter_names": names}
        if self._active != names[0]:
            self._model.set_adapter(names[0], inference_mode=True)
            self._active = names[0]
        return {}

    def load(self, adapter: str) -> None:
        path = self._config["adapters"][adapter]
        try:
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(path, adapter, torch_device=str(self._device), autocast_adapter_dtype=False)
            else:
                self._model = PeftModel.from_pretrained(
                    self._model, path, adapter, torch_device=str(self._device), autocast_adapter_dtype=False
                )
        except (RuntimeError, ValueError) as error:
            raise wire.EngineError("adapter-rejected", f"peft cannot load adapter `{adapter}`: {error}") from error
        self._model.eval()
        self._active = None

    def unload(self, adapter: str) -> None:
        self._model.delete_adapter(adapter)
        self._active = None

    def memory(self) -> dict[str, int]:
        adapters = set(self._config["adapters"])
        weights_bytes = adapter_bytes = 0
        for name, parameter in self._model.named_parameters():
            if adapters & set(name.split(".")):
                adapter_bytes += parameter.nbytes
            else:
                weights_bytes += parameter.nbytes
        memory = {"weights_bytes": weights_bytes, "adapter_bytes": adapter_bytes, **wire.process_memory()}
        if self._device.type == "cuda":
            memory["device_bytes"] = torch.cuda.memory_allocated(self._device)
            memory["peak_device_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return memory

    def close(self) -> None:
        pass


class TokenTimes(StoppingCriteria):
    """Stops nothing: `generate` asks it after every token, which is when the clock is read."""

    def __init__(self, arrivals: wire.Arrivals, device: torch.device) -> None:
        self._arrivals = arrivals
        self._device = device
        self.token_s: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **unused: Any) -> torch.Tensor:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.token_s.append(self._arrivals.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Sampler(LogitsProcessor):
    """Sampling by the largest of logits / temperature plus Gumbel noise (Gumbel 1954), so that every request of a batch
    has a temperature and a seed of its own. Rows of temperature 0 are left as they are: greedy.
    """

    def __init__(self, batch: Sequence[dict[str, Any]], device: torch.device) -> None:
        self._rows: list[tuple[int, float, torch.Generator]] = []
        for row, request in enumerate(batch):
            if request["temperature"] > 0:
                generator = torch.Generator(device)
                generator.seed() if request["seed"] is None else generator.manual_seed(request["seed"])
                self._rows.append((row, request["temperature"], generator))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, temperature, generator in self._rows:
            noise = torch.empty_like(scores[row]).exponential_(generator=generator)
            scores[row] = scores[row] / temperature - noise.log()
        return scores


def load_model(config: dict[str, Any]) -> Any:
    factory = AutoModelForCausalLM if config["workload"] == "generation" else AutoModelForSequenceClassification
    try:
        model = factory.from_pretrained(config["model"], dtype=getattr(torch, config["dtype"]))
    except (OSError, ValueError) as error:
        raise wire.EngineError("model", f"transformers cannot load {config['model']}: {error}") from error
    # The checkpoint's own habits (when to stop, how to sample) are not what is asked here.
    model.generation_config = GenerationConfig()
    return model


def pad(
    prompts: Sequence[Sequence[int]], *, fill: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, attention mask), both of [prompts, longest prompt]."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), fill)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    return ids.to(device), mask.to(device)


def filling_token(pad_token_id: int | None, prompts: Sequence[Sequence[int]]) -> int:
    """The token to pad with: a model that looks for the last token unlike it must find each prompt's own last token."""
    last_tokens = {prompt[-1] for prompt in prompts}
    if pad_token_id is not None and pad_token_id not in last_tokens:
        return pad_token_id
    return next(token for token in range(len(prompts) + 1) if token not in last_tokens)


def head_of(model: Any, config: dict[str, Any]) -> str | None:
    """Where the classification head is taken from: "adapter", "model", "mixed"; None for generation."""
    if config["workload"] == "generation":
        return None
    if not config["adapters"]:
        return "model"
    with_head = [bool(model.peft_config[name].modules_to_save) for name in config["adapters"]]
    return "adapter" if all(with_head) else "mixed" if any(with_head) else "model"


if __name__ == "__main__":
    sys.exit(wire.run_program(Transformers))
