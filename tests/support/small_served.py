"""A decoder small enough to start in seconds and large enough for vLLM's kernels, with adapters, and what they must answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import save_tiny_checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lorascope.serving.exchange import EngineConfig

# `make test` makes it; without it these tests fail, since nothing else shows what vLLM does.
VLLM_PYTHON = Path(
    os.environ.get("LORASCOPE_SERVE_PYTHON", Path(__file__).parents[2] / ".venv-serve" / "bin" / "python")
)
PROMPTS = ([4, 5, 6], [7, 8], [9, 10, 11, 12, 13], [14, 4], [5, 9, 9, 4], [15, 6, 7])


def save_small_llama(directory: Path, **shape: int) -> Path:
    """A random Llama with the tiny tokenizer; heads of 32, the smallest that vLLM's attention on a processor takes."""
    save_tiny_checkpoint(directory, "llama")
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, **shape}
    config = LlamaConfig(
        **{"intermediate_size": 96, "vocab_size": 16, "max_position_embeddings": 256, **sizes}, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def save_adapters(base: Path, directory: Path, names: Sequence[str]) -> dict[str, Path]:
    """Adapters of rank 8 on two modules, with weights large enough to be seen."""
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(directory / name)
    return {name: directory / name for name in names}


def small_config(base: Path, adapters: dict[str, Path]) -> EngineConfig:
    return EngineConfig("generation", base, adapters, "float32", "cpu", max_length=64, max_batch=8, max_rank=8)


def greedy(
    config: EngineConfig, adapter: str | None, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[list[int]]:
    """What transformers and peft generate from the same files."""
    model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(config.adapters[adapter]))
    found = []
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        whole = model.eval().generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False
        )
        found.append(whole[0, len(prompt) :].tolist())
    return found
