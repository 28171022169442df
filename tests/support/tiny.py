"""Tiny random models and tasks, made from configurations: what the unit and contract levels train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.durable import seal_files
from lorascope.engine.warm import Warm
from lorascope.models.catalog import describe_model
from lorascope.models.loading import BaseModel, load_base
from lorascope.study.spec import ModelSpec
from lorascope.tasks.classification import Classification
from lorascope.tasks.inputs import EXAMPLE
from lorascope.training.reading import Reading

WORDS = ["good", "bad", "fine", "poor", "the", "a", "film", "book", "is", "was", "very", "not"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ARCHITECTURES = ("bert", "roberta", "llama")
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def save_tiny_checkpoint(directory: Path, architecture: str, *, words: Sequence[str] = WORDS) -> Path:
    """A random checkpoint with its tokenizer, as `save_pretrained` leaves it. words: the vocabulary."""
    torch.manual_seed(7)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    common = {
        **_SHAPE,
        "vocab_size": len(vocabulary),
        "pad_token_id": 0,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    model = {
        "bert": lambda: BertModel(BertConfig(**common)),
        "roberta": lambda: RobertaModel(RobertaConfig(**common, type_vocab_size=1)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2)),
        "tied-llama": lambda: LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=True)),
    }[architecture]()
    model.save_pretrained(directory)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if "llama" not in architecture:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(directory)
    return directory


def tiny_task(**changes: Any) -> Classification:
    """Sentiment of four-word sentences: learnable from one word."""
    description = {"label_names": ["bad", "good"], "text_columns": ["text"], "metrics": ["accuracy", "f1"], **changes}
    return Classification("tiny", **description)


def tiny_reading(task: Classification | None = None, *, precision: str = "fp32") -> Reading:
    """How the tiny task is read on the CPU."""
    return Reading(task or tiny_task(), 0, "cpu", precision)


def tiny_examples(count: int, *, seed: int = 0) -> pd.DataFrame:
    """Sentences of 3 to 7 words with the label their adjective gives."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        adjective = str(generator.choice(WORDS[:4]))
        words = [str(w) for w in generator.choice(WORDS[4:], size=generator.integers(2, 7))]
        words.insert(int(generator.integers(0, len(words))), adjective)
        rows.append(
            {"example_id": f"{seed}-{index}", "label": int(adjective in ("good", "fine")), "text": " ".join(words)}
        )
    return pd.DataFrame(rows)


def tiny_columns(directory: Path, examples: pd.DataFrame, tokenizer: Any, *, max_length: int = 32) -> ColumnStore:
    """The examples, tokenised and written as the `tokens` step does."""
    columns = tiny_task().encode(examples.to_dict("records"), tokenizer, max_length=max_length)
    columns.pop(EXAMPLE)
    ColumnStore.write(directory, columns, examples["example_id"].tolist())
    return ColumnStore.open(directory)


def tiny_base(checkpoint: Path, *, num_labels: int = 2) -> BaseModel:
    """The checkpoint with an untrained head, on the CPU."""
    task = tiny_task(label_names=[str(i) for i in range(num_labels)])
    identity, locations = describe_model(
        ModelSpec.model_validate({"name": "tiny", "source": {"path": str(checkpoint)}})
    )
    return load_base(
        identity, head=task.head, pad_token_id=0, device="cpu",
        locations=locations, cache_dir=checkpoint, warm=Warm(),
    )  # fmt: skip


def step_context(directory: Path, step: Step, deps: Mapping[str, Artifact], **changes: Any) -> StepContext:
    """A context to call a step's function with, outside any store."""
    out, work, cache = directory / "out" / step.id, directory / "work" / step.id, directory / "cache"
    out.mkdir(parents=True)
    for folder in (work, cache):
        folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "emit": lambda event: None,
        "device": "cpu",
        "data_dir": None,
        "cache_dir": cache,
        "warm": Warm(),
        **changes,
    }
    return StepContext(step=step, out=out, work=work, deps=deps, **fields)


def as_artifact(context: StepContext, result: Mapping[str, Any]) -> Artifact:
    """The artifact that the step's output would be committed as."""
    return committed(context.out, result, step=context.step.to_json())


def committed(directory: Path, result: Mapping[str, Any], *, step: Mapping[str, Any] | None = None) -> Artifact:
    """The files in `directory` as an artifact whose record holds their checksums; a record that is there is replaced."""
    (directory / "record.json").unlink(missing_ok=True)
    sizes, checksums = seal_files(directory)
    record = {"id": directory.name, "step": dict(step or {}), "result": dict(result), "provenance": {}}
    (directory / "record.json").write_text(json.dumps({**record, "files": sizes, "sha256": checksums}))
    return Artifact(directory)
