"""What the tiny studies train on: two checkpoints, tables of examples and a plain text, the same bytes every time.

Weights are drawn by numpy, not by torch, so that they do not depend on the instructions a processor has. Labels are noisy
and sentences short: scores must lie between chance and perfect, or the statistics would have nothing to compute. Nothing
of lorascope is imported: a refactor may move all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD = ("good", "fine"), ("bad", "poor")
PLAIN = ("the", "a", "film", "book", "is", "was", "very", "not")
NEITHER = "never"  # in a sentence, it stands for a third class
NOISE = 0.08  # share of labels drawn anew
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}


def write_inputs(directory: Path) -> None:
    """The folders `bert` and `llama`, the tables of the tasks, `text.txt`, and GLUE's file names under `data`."""
    save_checkpoint(directory / "bert", "bert")
    save_checkpoint(directory / "llama", "llama")
    sentiment(700, seed=1).to_csv(directory / "sentiment.csv", index=False)
    for split, (count, seed) in {"train": (420, 2), "validation": (60, 3), "test": (90, 4)}.items():
        moods(count, seed=seed).to_json(directory / f"moods_{split}.jsonl", orient="records", lines=True)
    (directory / "data").mkdir()
    for split, (count, seed) in {"train": (240, 5), "validation": (80, 6)}.items():
        entailment(count, seed=seed).to_parquet(directory / "data" / f"rte_{split}.parquet", index=False)
    (directory / "text.txt").write_text(" ".join(np.random.default_rng(7).choice([*PLAIN, *GOOD, *BAD], size=500)))


def save_checkpoint(directory: Path, architecture: str) -> None:
    """A random model of three blocks with its language-model head and its tokenizer, as `save_pretrained` leaves them."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *PLAIN, *GOOD, *BAD, NEITHER])}
    common = {**SHAPE, "num_hidden_layers": 3, "vocab_size": len(vocabulary), "pad_token_id": 0}
    model: PreTrainedModel
    if architecture == "bert":
        model = BertForMaskedLM(BertConfig(**common))
    else:
        model = LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, bos_token_id=2, eos_token_id=3))
    draw_weights(model, np.random.default_rng(11))
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if architecture == "bert":
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(directory)


def draw_weights(model: PreTrainedModel, generator: np.random.Generator) -> None:
    """Every matrix normal with standard deviation 0.2; vectors (norms, biases) stay as they are."""
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim >= 2:
                drawn = 0.2 * generator.standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(drawn.astype(np.float32)))


def sentiment(count: int, *, seed: int) -> pd.DataFrame:
    """One sentence of 3 to 8 words, with the label of its adjective but for the noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        is_good = bool(generator.integers(2))
        rows.append(
            {
                "text": _sentence(generator, is_good=is_good, most=7),
                "label": _noisy(generator, ["bad", "good"], int(is_good)),
            }
        )
    return pd.DataFrame(rows).drop_duplicates("text")


def moods(count: int, *, seed: int) -> pd.DataFrame:
    """Two sentences; 0 or 1 by the adjective of the second, 2 where the first says never. But for the noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        is_good, is_neither = bool(generator.integers(2)), generator.random() < 0.4
        first, second = (_sentence(generator, is_good=mood, most=4) for mood in (bool(generator.integers(2)), is_good))
        kind = 2 if is_neither else int(is_good)
        one = f"{NEITHER} {first}" if is_neither else first
        rows.append({"one": one, "two": second, "kind": _noisy(generator, [0, 1, 2], kind)})
    return pd.DataFrame(rows).drop_duplicates(["one", "two"])


def entailment(count: int, *, seed: int) -> pd.DataFrame:
    """RTE's columns: whether the first sentence says never."""
    found = moods(count, seed=seed)
    return pd.DataFrame(
        {"sentence1": found["one"], "sentence2": found["two"], "label": (found["kind"] == 2).astype(int)}
    ).assign(idx=range(len(found)))


def _sentence(generator: np.random.Generator, *, is_good: bool, most: int) -> str:
    words = [str(word) for word in generator.choice(PLAIN, size=generator.integers(2, most + 1))]
    words.insert(int(generator.integers(0, len(words) + 1)), str(generator.choice(GOOD if is_good else BAD)))
    return " ".join(words)


def _noisy(generator: np.random.Generator, classes: list, index: int):
    return classes[generator.integers(len(classes))] if generator.random() < NOISE else classes[index]
