"""The other side: `transformers.Trainer`, with PEFT for LoRA, on lorascope's rows and with its head."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from clock import StepClock
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from workload import (
    ALPHA,
    DROPOUT,
    GRADIENT_CLIP,
    LEARNING_RATE,
    MAX_LENGTH,
    RANK,
    TINYLLAMA_SHAPE,
    WARMUP_FRACTION,
    WEIGHT_DECAY,
    Workload,
    random_tinyllama,
)

from lorascope.models.heads import head_modules
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise
from lorascope.training.result import linear_parameters

logging.getLogger("transformers").setLevel(logging.ERROR)  # a head the checkpoint does not have is what is wanted
transformers.utils.logging.disable_progress_bar()
_TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Recipe:
    """One way of using the Trainer. pad_to: tokens every example is padded to, None: the batch's longest, to a multiple
    of 8, batches grouped by length. micro_batch: examples a forward pass, None: the whole batch."""

    description: str
    pad_to: int | None = None
    micro_batch: int | None = None
    base_in_bf16: bool = False
    compiled: bool = False


RECIPES: Mapping[str, Recipe] = {
    "peer-a": Recipe("Trainer, dynamic padding, grouped by length"),
    "peer-b": Recipe("Trainer, padded to 384, batch 4, gradient accumulation", pad_to=MAX_LENGTH, micro_batch=4),
    "peer-a-bf16-base": Recipe("peer A with the frozen base in bf16", base_in_bf16=True),
    "peer-a-compile": Recipe("peer A with torch_compile=True", compiled=True),
}


class Rows(Dataset):
    """lorascope's tokenised examples as the Trainer takes them."""

    def __init__(self, columns: Any) -> None:
        gathered = columns.gather(np.arange(len(columns)))
        texts = [name for name in ("input_ids", "token_type_ids") if name in gathered]
        self._rows = [
            {**{name: gathered[name][row].tolist() for name in texts}, "labels": int(gathered["label"][row])}
            for row in range(len(columns))
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row]


class CountingCollator(DataCollatorWithPadding):
    """Pads as `DataCollatorWithPadding` and notes (real, padded) tokens of every batch it makes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: list[tuple[int, int]] = []

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        self.counts.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch


class Ticks(TrainerCallback):
    """Lets the clock see the Trainer's steps."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.tick()


class TimedTrainer(Trainer):
    """Keeps the time of evaluations, and of batches made for them, apart from training's."""

    evaluation_seconds = 0.0
    evaluations = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        device, training = str(self.args.device), self.data_collator
        synchronise(device)
        started = time.perf_counter()
        self.data_collator = _collator(training.tokenizer, training.padding, training.max_length)
        scores = super().evaluate(*args, **kwargs)
        self.data_collator = training
        synchronise(device)
        self.evaluation_seconds += time.perf_counter() - started
        self.evaluations += 1
        return scores


def _collator(tokenizer: Any, padding: Any, max_length: int | None) -> CountingCollator:
    return CountingCollator(
        tokenizer, padding=padding, max_length=max_length, pad_to_multiple_of=None if max_length else 8
    )


def load_model(workload: Workload, recipe: Recipe) -> tuple[Any, int]:
    """(model with an untrained head of the task, ready to train; weights of its linear layers without adapters), from
    the checkpoint that lorascope loads."""
    setting = workload.setting
    lora = setting.method == "lora"
    head_config, pad = dict(workload.task.head.config), workload.tokenizer.pad_token_id
    dtype = torch.bfloat16 if recipe.base_in_bf16 else torch.float32
    if setting.model == TINYLLAMA_SHAPE:
        model = random_tinyllama(
            head_config=head_config, pad_token_id=pad, vocabulary=len(workload.tokenizer), device=setting.device
        ).to(dtype)
        head = ("score",)
    else:
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            workload.checkpoint, **head_config, dtype=dtype, output_loading_info=True
        )
        model.config.pad_token_id, model.config.use_cache = pad, False
        head = head_modules(model, info["missing_keys"])
    linear = linear_parameters(model)
    if not lora:
        return model, linear
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=_TARGETS[model.config.model_type],
        modules_to_save=list(head),
    )
    return get_peft_model(model, config), linear


def train(
    workload: Workload,
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    warm_up: int = 0,
    epochs_to_validate: float | None = None,
    validate_once: bool = False,
) -> dict[str, Any]:
    """One run of `steps` updates, the first `warm_up` of them left out of the steps' times.

    epochs_to_validate: the length of the whole run, whose every epoch ends with a validation; validate_once: one
    validation after the last step. Imports and tokenisation are in none of the times.
    """
    setting = workload.setting
    device, batch = setting.device, setting.batch_size
    begun = time.perf_counter()
    transformers.set_seed(seed)
    model, linear = load_model(workload, recipe)
    collator = _collator(workload.tokenizer, "max_length" if recipe.pad_to else True, recipe.pad_to)
    clock = StepClock(device, warm_up=warm_up)
    micro = recipe.micro_batch or batch
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=batch // micro,
            per_device_eval_batch_size=64,
            **({"num_train_epochs": epochs_to_validate} if epochs_to_validate else {"max_steps": steps}),
            eval_strategy="epoch" if epochs_to_validate else "no",
            learning_rate=LEARNING_RATE[setting.method],
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(WARMUP_FRACTION * steps),
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=GRADIENT_CLIP,
            optim="adamw_torch_fused",
            bf16=setting.precision == "bf16",
            use_cpu=device == "cpu",
            torch_compile=recipe.compiled,
            train_sampling_strategy="random" if recipe.pad_to else "group_by_length",
            dataloader_num_workers=0,
            dataloader_pin_memory=device != "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,  # it would wait for the device at every step
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = TimedTrainer(
            model=model,
            args=arguments,
            train_dataset=Rows(workload.train),
            eval_dataset=Rows(workload.validation) if epochs_to_validate or validate_once else None,
            data_collator=collator,
            processing_class=workload.tokenizer,
            compute_metrics=_accuracy,
            callbacks=[Ticks(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        reset_peak_memory(device)
        trainer.train()
        if validate_once:
            trainer.evaluate()
    clock.stop()
    assert trainer.state.global_step == steps, f"{trainer.state.global_step} steps were made, not {steps}"
    training = clock.summary(other_seconds=trainer.evaluation_seconds)
    seconds = training["training_seconds"]
    used = collator.counts[: steps * (batch // micro)]
    real, padded = (sum(column) for column in zip(*used, strict=True))
    flops = (4 if setting.method == "lora" else 6) * linear
    evaluated = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    return {
        "startup_seconds": clock.started - begun,
        **training,
        "evaluation_seconds": trainer.evaluation_seconds,
        "evaluations": trainer.evaluations,
        "end_to_end_seconds": clock.ended - begun,
        "runs": 1,
        "real_tokens": real,
        "padded_tokens": padded,
        "tokens_per_second": real / seconds,
        "mfu": flops * real / seconds / setting.peak_flops,
        "peak_memory_bytes": peak_memory_bytes(device),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "final_loss": trainer.state.log_history[-1].get("train_loss"),
        "validation_accuracy": max(evaluated, default=None),
    }


def _accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}
