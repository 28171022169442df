"""The peer of a search: each trial a model loaded, a `Trainer` made, trained, validated at every epoch, told to Optuna."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import transformers
from peers import Rows, _accuracy, _collator
from transformers import PrinterCallback, Trainer, TrainingArguments
from workload import Setting, open_workload

from lorascope.models.heads import head_modules
from lorascope.search.propose import _distributions
from lorascope.study.search import SearchSpec
from lorascope.training.hardware import synchronise

_TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def run_trials(given: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each (task, method) is an `optuna.Study` that is given the trials one after another."""
    document = json.loads((given["work"] / "study.yaml").read_text())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spec = SearchSpec.model_validate(document["search"])
    studies: dict[tuple[str, str], optuna.Study] = {}
    workloads: dict[str, Any] = {}
    done = []
    for trial in trials:
        task, method = trial["task"], trial["method"]
        if task not in workloads:
            workloads[task] = _open(given, document, task)
        study = studies.setdefault((task, method), optuna.create_study(direction="maximize"))
        study.enqueue_trial(trial["params"])
        started = time.perf_counter()
        asked = study.ask(_distributions(spec.of(method, method)))
        assert asked.params == trial["params"], "the peer is to train the trials that ours proposed"
        score, updates = _train(given, workloads[task], method, asked.params)
        study.tell(asked, score)
        synchronise(given["device"])
        seconds = time.perf_counter() - started
        done.append({**trial, "score": score, "updates": updates, "seconds": seconds})
        print(f"peer: {task} {method}: {score:.3f} after {updates} updates in {seconds:.1f} s", flush=True)
    return done


def _open(given: dict[str, Any], document: dict[str, Any], task: str) -> Any:
    """The rows that a trial sees: those under the search's cap."""
    capped = {**document, "search": None}
    if given["train_examples"]:
        capped["data"] = {**document["data"], "train_examples": given["train_examples"]}
    setting = Setting(
        model=given["model"], task=task, method="lora", precision=given["precision"], device=given["device"], steps=0,
        batch_size=given["batch_size"], data_dir=given["data"], store=Path(given["work"]) / "store", peak_flops=1.0,
    )  # fmt: skip
    return open_workload(setting, capped, every_row=True)


def _train(given: dict[str, Any], workload: Any, method: str, params: dict[str, Any]) -> tuple[float, int]:
    """(best validation accuracy, updates) of one trial; seed 0, as lorascope's trials."""
    transformers.set_seed(0)
    model, batch = _model(workload, method, params), int(params.get("batch_size", given["batch_size"]))
    epochs = float(params.get("epochs", given["epochs"]))
    updates = math.ceil(epochs * math.ceil(len(workload.train) / batch))
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=64,
            num_train_epochs=epochs,
            eval_strategy="epoch",
            learning_rate=params["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(params["warmup"] * updates),
            weight_decay=params["weight_decay"],
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=given["precision"] == "bf16",
            use_cpu=given["device"] == "cpu",
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=given["device"] != "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(workload.train),
            eval_dataset=Rows(workload.validation),
            data_collator=_collator(workload.tokenizer, True, None),
            processing_class=workload.tokenizer,
            compute_metrics=_accuracy,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    scores = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    return max(scores), trainer.state.global_step


def _model(workload: Any, method: str, params: dict[str, Any]) -> Any:
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        workload.checkpoint, **workload.task.head.config, output_loading_info=True
    )
    model.config.pad_token_id, model.config.use_cache = workload.tokenizer.pad_token_id, False
    if method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=params["alpha"],
        lora_dropout=params["dropout"],
        target_modules=_TARGETS[model.config.model_type],
        modules_to_save=list(head_modules(model, info["missing_keys"])),
    )
    return get_peft_model(model, config)
