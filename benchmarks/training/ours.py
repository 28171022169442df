"""This side: lorascope's own training, driven directly for step times and through its command line for a sweep."""

from __future__ import annotations

import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from workload import (
    ALPHA,
    DROPOUT,
    GRADIENT_CLIP,
    LEARNING_RATE,
    RANK,
    TINYLLAMA_SHAPE,
    WARM_UP_STEPS,
    WARMUP_FRACTION,
    WEIGHT_DECAY,
    Workload,
    random_tinyllama,
)

from lorascope.models.loading import BaseModel, load_base
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise
from lorascope.training.loop import TrainingLoop
from lorascope.training.run import linear_parameters, make_deterministic, method_from_params, prepared_model


def base_model(workload: Workload) -> BaseModel:
    """The base with the task's head, as a `train` step gets it."""
    setting, pad = workload.setting, workload.tokenizer.pad_token_id
    head_config = workload.task.head_config()
    if setting.model == TINYLLAMA_SHAPE:
        vocabulary = len(workload.tokenizer)
        model = random_tinyllama(
            head_config=head_config, pad_token_id=pad, vocabulary=vocabulary, device=setting.device
        )
        return BaseModel(model.requires_grad_(False).eval(), ("score",), pad, TINYLLAMA_SHAPE, None)
    return load_base(
        workload.identity,
        head=workload.task.head,
        head_config=head_config,
        pad_token_id=pad,
        device=setting.device,
        locations=workload.locations,
        cache_dir=workload.cache_dir,
        warm={},
    )


def train_spec(workload: Workload, *, steps: int) -> TrainSpec:
    setting = workload.setting
    updates_per_epoch = -(-len(workload.train) // setting.batch_size)
    return TrainSpec.model_validate(
        {
            "epochs": steps / updates_per_epoch,
            "batch_size": setting.batch_size,
            "precision": setting.precision,
            "warmup": WARMUP_FRACTION,
            "weight_decay": WEIGHT_DECAY,
            "gradient_clip": GRADIENT_CLIP,
            "early_stopping": None,
        }
    )


def method_of(workload: Workload) -> Any:
    kind = workload.setting.method
    lora = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT, "sites": ["query", "value"]} if kind == "lora" else {}
    return method_from_params({"kind": kind, **lora})


def train(workload: Workload, *, seed: int) -> dict[str, Any]:
    """One run of the setting's steps, alone; no validation. Imports and tokenisation are not in any of the times."""
    setting = workload.setting
    device, steps = setting.device, setting.steps
    begun = time.perf_counter()
    make_deterministic(device)
    base, method, seeds = base_model(workload), method_of(workload), Seeds.model_validate(seed)
    model = prepared_model(base, method, seeds)
    flops = method.flops_per_parameter * linear_parameters(base.model)
    if not method.shares_base:
        base.model.to("cpu")  # the run has weights of its own
    loop = TrainingLoop(
        model=model,
        method=method,
        task=workload.task,
        columns=workload.train,
        train=train_spec(workload, steps=steps),
        learning_rate=LEARNING_RATE[setting.method],
        seeds=seeds,
        pad_token_id=base.pad_token_id,
        device=device,
        validate=dict,
    )
    torch.manual_seed(seed)
    model.train()
    reset_peak_memory(device)
    loop.meters.begin()
    synchronise(device)
    started = warm = time.perf_counter()
    ends = []
    for step in range(1, steps + 1):
        loss = loop.advance()
        if step == WARM_UP_STEPS:
            synchronise(device)
            warm = time.perf_counter()
        ends.append(time.perf_counter())
    synchronise(device)
    ended = time.perf_counter()
    meters = loop.meters
    step_ms = [1000 * (end - start) for start, end in zip([started, *ends], ends, strict=False)]
    timed = steps - WARM_UP_STEPS
    return {
        "startup_seconds": started - begun,
        "training_seconds": ended - started,
        "evaluation_seconds": 0.0,
        "evaluations": 0,
        "end_to_end_seconds": ended - begun,
        "updates": steps,
        "step_ms_mean": 1000 * (ended - warm) / timed if timed > 0 else None,
        "step_ms_median": statistics.median(step_ms[WARM_UP_STEPS:]) if timed > 0 else None,
        "step_ms_whole": 1000 * (ended - started) / steps,
        "step_ms": [round(ms, 3) for ms in step_ms],
        "real_tokens": meters.real_tokens,
        "padded_tokens": meters.padded_tokens,
        "tokens_per_second": meters.real_tokens / (ended - started),
        "mfu": flops * meters.real_tokens / (ended - started) / setting.peak_flops,
        "peak_memory_bytes": peak_memory_bytes(device),
        "trainable_parameters": sum(p.numel() for p in loop.trained.values()),
        "final_loss": float(loss),
        "validation_accuracy": None,
    }


def sweep(document: dict[str, Any], *, data_dir: Path, devices: list[str]) -> dict[str, Any]:
    """`lorascope run` on a fresh store, as a user would: every step of the study, its report included."""
    with tempfile.TemporaryDirectory() as directory:
        study, store, results = (Path(directory) / name for name in ("study.yaml", "store", "results"))
        study.write_text(json.dumps(document))  # JSON is YAML
        command = [sys.executable, "-m", "lorascope", "run", str(study), "--data", str(data_dir)]
        command += ["--store", str(store), "--results", str(results)]
        for device in devices:
            command += ["--device", device]
        started = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if run.returncode:
            raise SystemExit(f"lorascope run ended with {run.returncode}:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
        events = (results / document["name"] / "events.jsonl").read_text().splitlines()
        records = [json.loads(path.read_text()) for path in sorted(store.glob("**/record.json"))]
    trained = [record["result"] for record in records if record["step"]["kind"] == "train"]
    by_kind: dict[str, float] = collections.Counter()
    kinds = {record["id"]: record["step"]["kind"] for record in records}
    for event in map(json.loads, events):
        if event["event"] == "step-finished":
            by_kind[kinds[event["step"]]] += event["seconds"]
    real = sum(run["tokens_per_second"] * run["training_seconds"] for run in trained)
    return {
        "end_to_end_seconds": seconds,
        "seconds_by_kind": dict(by_kind),
        "runs": len(trained),
        "updates": sum(run["updates"] for run in trained),
        "real_tokens": round(real),
        "tokens_per_second": real / seconds,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in trained),
        "validation_accuracy": statistics.mean(run["validation"]["accuracy"] for run in trained),
    }
