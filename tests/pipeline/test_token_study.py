"""A whole study of next tokens, on a decoder whose head is tied to its embeddings, by a plug-in's task: killed while it
trains, taken up, reported. What it needs of its own is in tests/skeletons/toy_tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny import save_tiny_checkpoint
from transformers import AutoTokenizer

FILLERS = ("the", "a", "old", "near", "tell")
RESPONSES = {
    "zork": "blue",
    "quib": "red",
    "flam": "blue stone",
    "drin": "red stone",
    "wosk": "blue stone wall",
    "pell": "red wall",
    "tarn": "green",
    "molv": "green stone wall",
}
WORDS = sorted({*FILLERS, *RESPONSES, *" ".join(RESPONSES.values()).split()})
STUDY = """
name: tokens
question: Does LoRA learn responses as well as full fine-tuning?
models: [{name: tied, source: {path: llama}}]
tasks: [{name: responses, kind: toy-tokens, pairs: pairs.jsonl}]
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 8, sites: [all-linear]}
seeds: [1, 2]
train: {epochs: 3, batch_size: 16, max_length: 16, early_stopping: null, gang: 2}
measure: {drift: {examples: 40, draws: 100}}
hypotheses:
  H1: {superior: full, to: lora}
"""


def pairs(count: int) -> list[dict[str, str]]:
    """Prompts of 3 to 7 words, one of which decides the response."""
    generator = np.random.default_rng(5)
    rows = []
    for index in range(count):
        words = [str(word) for word in generator.choice(FILLERS, size=generator.integers(2, 7))]
        thing = str(generator.choice(sorted(RESPONSES)))
        words.insert(int(generator.integers(0, len(words))), thing)
        rows.append({"id": f"p{index}", "prompt": " ".join(words), "response": RESPONSES[thing]})
    return list({row["prompt"]: row for row in rows}.values())


def write_study(directory: Path) -> None:
    checkpoint = save_tiny_checkpoint(directory / "llama", "tied-llama", words=WORDS)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(checkpoint)
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs(400))))
    (directory / "study.yaml").write_text(STUDY)
