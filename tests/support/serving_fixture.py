"""A committed run of a tiny model, made from a method's own export, with weights large enough to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import save_tiny_checkpoint, tiny_base, tiny_columns, tiny_examples
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lorascope.data.columns import ColumnStore
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.models.catalog import describe_model
from lorascope.models.loading import BaseModel
from lorascope.registry import METHODS, resolve
from lorascope.serving.trained import TrainedRun, open_run
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import ModelSpec, Seeds
from lorascope.training.run import prepared_model

LORA = LoraSpec.model_validate(
    {"name": "lora", "kind": "lora", "rank": 3, "alpha": 6, "dropout": 0.1, "sites": ["attention"]}
)
FULL = FullSpec(name="full", kind="full")
LABELS = ["bad", "good"]


def save_tied_llama(directory: Path) -> Path:
    """A tiny Llama whose language-model head is its input embedding, with the tiny tokenizer."""
    save_tiny_checkpoint(directory, "llama")
    torch.manual_seed(9)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        **shape, intermediate_size=48, vocab_size=16, pad_token_id=0, max_position_embeddings=64,
        initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@dataclass(frozen=True, eq=False)
class CommittedRun:
    """in_memory: the trained model that was exported, an ordinary module of lorascope's own layers."""

    run: TrainedRun
    in_memory: Any
    columns: ColumnStore
    store: Store

    @property
    def prompts(self) -> list[list[int]]:
        return [row.tolist() for row in self.columns.gather(range(len(self.columns)))["input_ids"]]


def commit_run(root: Path, checkpoint: Path, spec: Any, *, seed: int = 5, strength: float = 0.3) -> CommittedRun:
    """A store with a data, a tokens and a train artifact. strength: how far what is trained is moved from its start."""
    store = Store(root / "store")
    identity, locations = describe_model(
        ModelSpec.model_validate({"name": "tiny", "source": {"path": str(checkpoint)}})
    )
    task = {"class": "classification", "name": "tiny", "label_names": LABELS, "text_columns": ["text"]}
    data = _commit(store, Step("data", 1, {"task": "tiny"}), {"task": {**task, "metrics": ["accuracy"]}})
    tokens = Step("tokens", 1, {"model": identity}, deps={"data": data.id}, locations=locations)
    staging = store.stage(tokens.id)
    columns = tiny_columns(staging / "validation", tiny_examples(40), AutoTokenizer.from_pretrained(checkpoint))
    tokens_artifact = store.commit(tokens, staging, result={}, provenance={})
    columns = ColumnStore.open(tokens_artifact.path / "validation")

    base = tiny_base(checkpoint)
    method, seeds = resolve(METHODS, spec.kind)(spec), Seeds.model_validate(seed)
    model = moved(base, method, seeds, strength)
    train = Step(
        "train",
        1,
        {"model": identity, "method": spec.model_dump(mode="json", exclude={"name", "train", "learning_rate"})}
        | {"seeds": seeds.model_dump(), "seeds_for": "tiny"},
        deps={"data": data.id, "tokens": tokens.id},
        slug=f"tiny-{spec.kind}-{seed}",
        locations=locations,
    )
    staging = store.stage(train.id)
    method.export(model, staging / "export", base=base)
    artifact = store.commit(train, staging, result={}, provenance={"lorascope": "0"})
    run = open_run(artifact, data, cache_dir=store.cache_dir)
    return CommittedRun(run, method.view(model, 0), columns, store)


def moved(base: BaseModel, method: Any, seeds: Seeds, strength: float) -> Any:
    """The method's model with noise on everything it trains."""
    model = prepared_model(base, [method], [seeds])[0].eval()
    generator = torch.Generator().manual_seed(seeds.initialisation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += strength * torch.empty(parameter.shape).normal_(generator=generator)
    return model


def _commit(store: Store, step: Step, result: dict[str, Any]) -> Any:
    return store.commit(step, store.stage(step.id), result=result, provenance={})


def teacher_forced_logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """float32 [tokens, vocabulary] of each prompt."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([prompt])).logits[0].float() for prompt in prompts]
