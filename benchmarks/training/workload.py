"""What both sides of a comparison train on: the same rows, tokenised once by lorascope's own data steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.data.columns import ColumnStore
from lorascope.engine.store.directory import Store
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.tokenizer import load_tokenizer
from lorascope.study.spec import Study
from lorascope.tasks.description import task_from_result

if TYPE_CHECKING:
    from lorascope.data.columns import Examples
    from lorascope.tasks.task import Task

RANK, ALPHA, DROPOUT = 8, 16, 0.05
LEARNING_RATE = {"lora": 5e-4, "full": 5e-5}
WARMUP_FRACTION, WEIGHT_DECAY, GRADIENT_CLIP = 0.06, 0.01, 1.0
MAX_LENGTH = 384

TINYLLAMA_SHAPE = "tinyllama-1.1b-shape"
_TOKENISED_AS = {TINYLLAMA_SHAPE: "smollm2-135m"}


@dataclass(frozen=True)
class Setting:
    """One cell of a benchmark: what is trained, on what, for how many updates of `batch_size` examples.

    steps: updates that are timed. As many go before, an epoch over the same rows, to warm up; they count in the
    training's seconds. compiled: whether our kernels are fused, None: as lorascope decides.
    peak_flops: FLOP/s of the device in this precision, what MFU is a share of. threads: CPU threads, None: torch's.
    """

    model: str
    task: str
    method: str
    precision: str
    device: str
    steps: int
    batch_size: int
    data_dir: Path
    store: Path
    peak_flops: float
    threads: int | None = None
    compiled: bool | None = None


@dataclass(frozen=True)
class Workload:
    """A setting with its data opened. train: at most one epoch's rows for the setting's steps."""

    setting: Setting
    task: Task
    train: Examples
    validation: Examples
    identity: dict[str, Any]
    locations: dict[str, str]
    cache_dir: Path
    tokenizer: Any

    @property
    def checkpoint(self) -> Path:
        """The plain checkpoint directory that both sides load."""
        return checkpoint_directory(self.identity, locations=self.locations, cache_dir=self.cache_dir)


def study_document(
    *,
    model: str,
    tasks: Sequence[str],
    method: str,
    seeds: Sequence[int],
    precision: str,
    batch_size: int,
    epochs: float = 1,
    train_examples: int | None = None,
) -> dict[str, Any]:
    """A study of one method, as a YAML file would say it: strict protocol, one validation an epoch, no early stop."""
    lora = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT, "sites": ["query", "value"]} if method == "lora" else {}
    return {
        "name": "training-benchmark",
        "question": "How long does it take?",
        "models": [_TOKENISED_AS.get(model, model)],
        "tasks": list(tasks),
        "methods": [{"kind": method, "learning_rate": LEARNING_RATE[method], **lora}],
        "seeds": list(seeds),
        "data": {"train_examples": train_examples} if train_examples else {},
        "train": {
            "epochs": epochs,
            "batch_size": batch_size,
            "max_length": MAX_LENGTH,
            "precision": precision,
            "warmup": WARMUP_FRACTION,
            "weight_decay": WEIGHT_DECAY,
            "gradient_clip": GRADIENT_CLIP,
            "evaluations_per_epoch": 1,
            "early_stopping": None,
        },
    }


def prepare(document: dict[str, Any], data_dir: Path, store: Path) -> None:
    """Carves and tokenises the study's tasks into `store`; what is there already is kept."""
    study = Study.model_validate(document)
    options: dict[str, Any] = {"store": store, "results": store / "results", "data_dir": data_dir}
    outcome = lorascope.run(study, **options, executor=lorascope.api.Workers("inline", ["cpu"]), only="tokens:*")
    if outcome.failed:
        raise SystemExit(f"the data could not be prepared: {next(iter(outcome.failed.values()))}")


def open_workload(setting: Setting, document: dict[str, Any], *, every_row: bool = False) -> Workload:
    """The prepared rows of `setting.task`. Unless `every_row`, as many as the setting's steps take in one epoch, drawn
    with a fixed seed, so that both sides see each of the same rows once (a small task is gone through again)."""
    from lorascope.api import graph

    store = Store(setting.store)
    planned = graph(Study.model_validate(document), data_dir=setting.data_dir)
    tokens = next(step for step in planned.of_kind("tokens") if planned.labels[step.id].task == setting.task)
    artifact, data = store.artifact(tokens.id), store.artifact(tokens.deps["data"])
    identity, cache_dir = tokens.params["model"], store.cache_dir
    train = ColumnStore.open(artifact.path / "train")
    wanted = setting.steps * setting.batch_size
    if not every_row and wanted < len(train):
        train = train.subset(np.sort(np.random.default_rng(0).choice(len(train), size=wanted, replace=False)))
    return Workload(
        setting=setting,
        task=task_from_result(data.result),
        train=train,
        validation=ColumnStore.open(artifact.path / "validation"),
        identity=dict(identity),
        locations=dict(tokens.locations),
        cache_dir=cache_dir,
        tokenizer=load_tokenizer(identity, locations=tokens.locations, cache_dir=cache_dir),
    )


def random_tinyllama(*, head_config: dict[str, Any], pad_token_id: int, vocabulary: int, device: str) -> Any:
    """LlamaForSequenceClassification with TinyLlama-1.1B's layers and random fp32 weights, on the device.

    Its embedding table has a row for each token of the tokenizer in use; looking them up is no arithmetic.
    """
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=pad_token_id,
        use_cache=False,
        **head_config,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForSequenceClassification(config)
