"""What PEFT, Transformers and their readers call the settings of a study, and how it is written here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Ours(NamedTuple):
    """key: what it is called here. home: of HOMES, what it is a key of. example: how it is written; note: what differs."""

    key: str
    home: str
    example: str
    note: str = ""

    def __str__(self) -> str:
        return f"such as `{self.example}`" + (f" ({self.note})" if self.note else "")


HOMES: Mapping[str, str] = {
    "study": "the study itself",
    "train": "`train`",
    "search": "`search`",
    "data": "`data`",
    "method": "a method",
    "lora": "a method of kind `lora`",
}

FOREIGN: Mapping[str, Ours] = {
    # PEFT's LoraConfig
    "r": Ours("rank", "lora", "{kind: lora, rank: 8}"),
    "lora_r": Ours("rank", "lora", "{kind: lora, rank: 8}"),
    "lora_rank": Ours("rank", "lora", "{kind: lora, rank: 8}"),
    "lora_alpha": Ours("alpha", "lora", "{kind: lora, rank: 8, alpha: 16}"),
    "lora_dropout": Ours("dropout", "lora", "{kind: lora, dropout: 0.05}"),
    "target_modules": Ours("sites", "lora", "{kind: lora, sites: [query, value]}"),
    "lora_target_modules": Ours("sites", "lora", "{kind: lora, sites: [query, value]}"),
    # Transformers' TrainingArguments
    "lr": Ours("learning_rate", "method", "{kind: lora, learning_rate: 5e-4}"),
    "learning_rate": Ours("learning_rate", "method", "{kind: lora, learning_rate: 5e-4}"),
    "num_train_epochs": Ours("epochs", "train", "train: {epochs: 3}"),
    "num_epochs": Ours("epochs", "train", "train: {epochs: 3}"),
    "per_device_train_batch_size": Ours("batch_size", "train", "train: {batch_size: 16}"),
    "train_batch_size": Ours("batch_size", "train", "train: {batch_size: 16}"),
    "gradient_accumulation_steps": Ours(
        "micro_batch_size", "train", "train: {batch_size: 16, micro_batch_size: 4}", "accumulates 4 passes"
    ),
    "warmup_ratio": Ours("warmup", "train", "train: {warmup: 6%}"),
    "warmup_steps": Ours("warmup", "train", "train: {warmup: 6%}", "a share of all updates"),
    "weight_decay": Ours("weight_decay", "train", "train: {weight_decay: 0.01}"),
    "lr_scheduler_type": Ours("schedule", "train", "train: {schedule: linear}"),
    "lr_scheduler": Ours("schedule", "train", "train: {schedule: linear}"),
    "max_grad_norm": Ours("gradient_clip", "train", "train: {gradient_clip: 1.0}"),
    "adam_beta1": Ours("adam_betas", "train", "train: {adam_betas: [0.9, 0.999]}"),
    "adam_beta2": Ours("adam_betas", "train", "train: {adam_betas: [0.9, 0.999]}"),
    "bf16": Ours("precision", "train", "train: {precision: bf16}"),
    "fp16": Ours("precision", "train", "train: {precision: bf16}", "there is no fp16"),
    "torch_dtype": Ours("precision", "train", "train: {precision: bf16}"),
    "dtype": Ours("precision", "train", "train: {precision: bf16}"),
    "max_seq_length": Ours("max_length", "train", "train: {max_length: 128}"),
    "max_seq_len": Ours("max_length", "train", "train: {max_length: 128}"),
    "model_max_length": Ours("max_length", "train", "train: {max_length: 128}"),
    "eval_steps": Ours("evaluations_per_epoch", "train", "train: {evaluations_per_epoch: 2}"),
    "early_stopping_patience": Ours("early_stopping", "train", "train: {early_stopping: {patience: 3}}"),
    "seed": Ours("seeds", "study", "seeds: [42, 1337, 2024]"),
    "random_state": Ours("seeds", "study", "seeds: [42, 1337, 2024]"),
    "model_name_or_path": Ours("models", "study", "models: [{name: mine, source: {path: DIR}}]"),
    "base_model": Ours("models", "study", "models: [{name: mine, source: {path: DIR}}]"),
    "dataset_name": Ours("tasks", "study", "tasks: [mrpc]"),
    "max_train_samples": Ours("train_examples", "data", "data: {train_examples: 5000}"),
    "n_trials": Ours("trials", "search", "search: {trials: 15}"),
}
"""The word that a user may write -> ours."""
