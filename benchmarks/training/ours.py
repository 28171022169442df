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

from clock import StepClock
from workload import (
    ALPHA,
    DROPOUT,
    GRADIENT_CLIP,
    LEARNING_RATE,
    RANK,
    TINYLLAMA_SHAPE,
    WARMUP_FRACTION,
    WEIGHT_DECAY,
    Workload,
    random_tinyllama,
)

from lorascope.engine.warm import Warm
from lorascope.models.loading import BaseModel, load_base
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.gang import Gang
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory
from lorascope.training.member import Callbacks, Member, Recipe
from lorascope.training.preparation import make_deterministic, method_from_params, prepared_model
from lorascope.training.reading import Reading
from lorascope.training.result import linear_parameters
from lorascope.training.sizing import pays_to_compile


def base_model(workload: Workload) -> BaseModel:
    """The base with the task's head, as a `train` step gets it."""
    setting, pad = workload.setting, workload.tokenizer.pad_token_id
    head = workload.task.head
    if setting.model == TINYLLAMA_SHAPE:
        vocabulary = len(workload.tokenizer)
        model = random_tinyllama(
            head_config=dict(head.config), pad_token_id=pad, vocabulary=vocabulary, device=setting.device
        )
        return BaseModel(model.requires_grad_(False).eval(), ("score",), pad, TINYLLAMA_SHAPE, None, head.peft_task)
    return load_base(
        workload.identity,
        head=head,
        pad_token_id=pad,
        device=setting.device,
        locations=workload.locations,
        cache_dir=workload.cache_dir,
        warm=Warm(),
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


def train(workload: Workload, *, runs: int) -> dict[str, Any]:
    """A gang of `runs` runs with seeds 1, 2, ...; no validation. Imports and tokenisation are in none of the times."""
    setting = workload.setting
    device, steps = setting.device, 2 * setting.steps
    begun = time.perf_counter()
    make_deterministic(device)
    base, spec = base_model(workload), train_spec(workload, steps=steps)
    reading = Reading(workload.task, base.pad_token_id, device, setting.precision)
    members = [
        Member(
            method=method_of(workload),
            reading=reading,
            columns=workload.train,
            recipe=Recipe(spec, LEARNING_RATE[setting.method], Seeds.model_validate(seed)),
            callbacks=Callbacks(lambda model: {}),
        )
        for seed in range(1, runs + 1)
    ]
    gang = Gang(
        members,
        prepare=lambda members: prepared_model(base, [m.method for m in members], [m.seeds for m in members]),
        compiles=pays_to_compile if setting.compiled is None else (lambda members: setting.compiled),
    )
    reset_peak_memory(device)
    clock = StepClock(device, warm_up=setting.steps)
    clock.start()
    for _ in range(steps):
        losses = gang.advance()
        clock.tick()
    clock.stop()
    training = clock.summary(runs=runs)
    real = sum(member.meters.real_tokens for member in members)
    seconds = training["training_seconds"]
    method = members[0].method
    flops = method.flops_per_parameter * linear_parameters(base.model)
    return {
        "startup_seconds": clock.started - begun,
        **training,
        "evaluation_seconds": 0.0,
        "evaluations": 0,
        "end_to_end_seconds": clock.ended - begun,
        "runs": runs,
        "step": gang.describe_step(),
        "real_tokens": real,
        "padded_tokens": sum(member.meters.padded_tokens for member in members),
        "tokens_per_second": real / seconds,
        "mfu": flops * real / seconds / setting.peak_flops,
        "peak_memory_bytes": peak_memory_bytes(device),
        "trainable_parameters": method.expected_parameters(base.model, head=base.head),
        "final_loss": float(losses.mean()),
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
            raise RuntimeError(
                f"lorascope run ended with {run.returncode}:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
            )
        events = (results / document["name"] / "events.jsonl").read_text().splitlines()
        records = [json.loads(path.read_text()) for path in sorted(store.glob("**/record.json"))]
    trained = [record["result"] for record in records if record["step"]["kind"] == "train"]
    spans: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    kinds = {record["id"]: record["step"]["kind"] for record in records}
    for event in map(json.loads, events):
        if event["event"] == "step-finished":
            spans[kinds[event["step"]]].append((event["time_s"] - event["seconds"], event["time_s"]))
    real = sum(run["tokens_per_second"] * run["training_seconds"] for run in trained)
    return {
        "end_to_end_seconds": seconds,
        "seconds_by_kind": {kind: covered_seconds(own) for kind, own in spans.items()},
        "runs": len(trained),
        "updates": sum(run["updates"] for run in trained),
        "real_tokens": round(real),
        "tokens_per_second": real / seconds,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in trained),
        "validation_accuracy": statistics.mean(run["validation"]["accuracy"] for run in trained),
    }


def covered_seconds(spans: list[tuple[float, float]]) -> float:
    """Seconds during which at least one of the spans was under way: the members of a gang share theirs."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
