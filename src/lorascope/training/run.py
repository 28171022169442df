"""The `train` step: one run, from the base model to an exported checkpoint and its validation scores.

It never opens the test set. What it commits: `export/` (adapter or checkpoint, with tokenizer), `curves.parquet`,
`losses.npy` (every update), `validation_predictions.parquet`, and `reference_logits.npy`: the logits of the model in
memory on a few validation examples, which the `evaluate` step must find again in the exported one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lorascope.data.columns import ColumnStore
from lorascope.data.tasks import task_from_result
from lorascope.engine.context import StepContext
from lorascope.errors import EnvironmentProblem, GateFailure
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.dropout import DropoutStreams, replace_dropouts
from lorascope.models.loading import BaseModel, load_base
from lorascope.models.tokenizer import load_tokenizer
from lorascope.registry import METHODS, resolve
from lorascope.study.spec import MethodSpec, Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.hardware import peak_flops
from lorascope.training.loop import TrainingLoop
from lorascope.training.predict import logits_of, predict, scores

REFERENCE_EXAMPLES = 64


def method_from_params(params: Mapping[str, Any]) -> Method:
    """The method whose spec a step carries."""
    from pydantic import TypeAdapter

    spec = TypeAdapter(MethodSpec).validate_python({**params, "name": params["kind"]})
    return resolve(METHODS, spec.kind)(spec)


def base_for(context: StepContext, task: Any) -> BaseModel:
    """The step's base model with the task's head, warm if the step before used it."""
    params, locations = context.step.params, context.step.locations
    tokenizer = tokenizer_for(context)
    return load_base(
        params["model"],
        head=task.head,
        head_config=task.head_config(),
        pad_token_id=tokenizer.pad_token_id,
        device=context.device,
        locations=locations,
        cache_dir=context.cache_dir,
        warm=context.warm,
    )


def tokenizer_for(context: StepContext) -> Any:
    """The step's tokenizer, kept warm."""
    key = f"tokenizer:{sorted(context.step.params['model'].items())}"
    if key not in context.warm:
        context.warm[key] = load_tokenizer(
            context.step.params["model"], locations=context.step.locations, cache_dir=context.cache_dir
        )
    return context.warm[key]


def prepared_model(
    base: BaseModel, methods: Sequence[Method], seeds: Sequence[Seeds]
) -> tuple[PreTrainedModel, DropoutStreams]:
    """The model of one run, or of a gang, ready to train, and the streams of its dropout masks (`model.streams` too).

    methods, seeds: one of each a run; the methods are alike in kind and sites. Each run's head and method are drawn from
    its initialisation seed, as they would be alone. Raises NotStackable where the runs cannot be trained together.
    """
    first, generators = methods[0], [torch.Generator().manual_seed(s.initialisation) for s in seeds]
    if len(methods) > 1 and not first.stacks:
        raise NotStackable(f"{type(first).__name__} trains one run at a time")
    specs = {"specs": [method.spec for method in methods]} if first.stacks else {}
    model = base.copy(generators[0], share_frozen=first.shares_base)
    first.prepare(model, head=base.head, generators=generators, **specs)
    streams = DropoutStreams(len(methods), base.device)
    replace_dropouts(model, streams)
    model.streams = streams  # type: ignore[assignment] - a plain attribute
    return model, streams


def train_run(context: StepContext) -> dict[str, Any]:
    """Trains one run. params: model, method, seeds, train, learning_rate; deps: data, tokens (and sanity, to wait for).

    Raises GateFailure (NaN, a base weight that moved), EnvironmentProblem (out of memory: says what to lower).
    """
    try:
        return _train(context)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(context, error) from error


def out_of_memory(context: StepContext, error: Exception) -> EnvironmentProblem:
    """The device's memory did not suffice, in words a researcher can act on."""
    train = TrainSpec.model_validate(context.step.params["train"])
    micro = train.micro_batch_size or train.batch_size
    return EnvironmentProblem(
        f"{context.device} ran out of memory ({str(error).splitlines()[0]})",
        hint=f"lower train.micro_batch_size (now {micro}; gradients are accumulated to batch_size {train.batch_size}, "
        f"so the run stays the same experiment), then train.max_length (now {train.max_length}), or set "
        f"train.precision: bf16 (now {train.precision})",
    )


def _train(context: StepContext) -> dict[str, Any]:
    started = time.perf_counter()
    params = context.step.params
    make_deterministic(context.device)
    task = task_from_result(context.deps["data"].result)
    train_columns, validation = (ColumnStore.open(context.deps["tokens"].path / s) for s in ("train", "validation"))
    train, seeds = TrainSpec.model_validate(params["train"]), Seeds.model_validate(params["seeds"])
    base, method = base_for(context, task), method_from_params(params["method"])
    model, _ = prepared_model(base, [method], [seeds])
    fingerprint = frozen_fingerprint(model)
    reading = {"pad_token_id": base.pad_token_id, "device": context.device, "precision": train.precision}

    def validate() -> dict[str, float]:
        return scores(task, predict(model, task, validation, **reading))

    loop = TrainingLoop(
        model=model,
        method=method,
        task=task,
        columns=train_columns,
        train=train,
        learning_rate=params["learning_rate"],
        seeds=seeds,
        pad_token_id=base.pad_token_id,
        device=context.device,
        validate=validate,
        emit=context.emit,
        step_id=context.step.id,
    )
    with nullcontext() if method.shares_base else base.set_aside():
        progress = loop.run(Checkpointer(context.work))
    if frozen_fingerprint(model) != fingerprint:
        raise GateFailure(
            "a weight of the frozen base changed during training",
            hint="this is a defect of the method's implementation: it must train only the parameters it declares",
        )
    predictions = predict(model, task, validation, **reading)
    _write_files(context, loop, method, base, predictions)
    rows = np.arange(min(REFERENCE_EXAMPLES, len(validation)))
    np.save(context.out / "reference_logits.npy", logits_of(model, task, validation, rows=rows, **reading))
    trainable = sum(p.numel() for p in loop.trained.values())
    flops = method.flops_per_parameter * linear_parameters(base.model)
    peak = peak_flops(context.device, precision=train.precision, warm=context.warm)
    return {
        "validation": scores(task, predictions),
        "best_update": progress.best_update,
        "best_epoch": progress.best_update / loop.updates_per_epoch,
        "updates": progress.update,
        "epochs": progress.update / loop.updates_per_epoch,
        "planned_updates": loop.total_updates,
        "stopped_early": progress.stopped_early,
        "resumed": progress.resumed,
        "trainable_parameters": trainable,
        "total_parameters": sum(p.numel() for p in base.model.parameters()),
        "export_bytes": sum(f.stat().st_size for f in (context.out / "export").iterdir() if f.suffix == ".safetensors"),
        "device": context.device.partition(":")[0],
        **loop.meters.summary(flops_per_token=flops, peak=peak),
        "total_seconds": time.perf_counter() - started,
    }


def _write_files(context: StepContext, loop: TrainingLoop, method: Method, base: BaseModel, predictions: Any) -> None:
    import pandas as pd

    method.export(loop.model, context.out / "export", base=base)
    tokenizer_for(context).save_pretrained(context.out / "export")
    pd.DataFrame(loop.progress.curve).to_parquet(context.out / "curves.parquet", index=False)
    predictions.to_parquet(context.out / "validation_predictions.parquet", index=False)
    np.save(context.out / "losses.npy", np.asarray(loop.progress.losses, dtype=np.float32))


def frozen_fingerprint(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Two moments of every frozen parameter, in float64: equal before and after if nothing moved."""
    with torch.no_grad():
        return {
            name: (float(p.double().sum()), float(p.double().square().sum()))
            for name, p in model.named_parameters()
            if not p.requires_grad
        }


def linear_parameters(model: torch.nn.Module) -> int:
    """The N of "6N FLOPs a token": weights of linear layers, embeddings not counted (Kaplan et al. 2020)."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))


def make_deterministic(device: str) -> None:
    """Chooses deterministic kernels on CUDA where they exist (CPU kernels already are). Whether that was enough, the
    gate "same seed, same losses" shows."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
