"""What a finished run leaves: its files in the step's output, and the figures of its record.

`export/` (adapter or checkpoint, with what encodes its inputs), `curves.parquet`, `losses.npy` (every update),
`snapshots.parquet` where the study takes any, `validation_predictions.parquet`, and `reference_logits.npy`: the signatures
(`Scoring.signature`; for classes the logits) of the model in memory on a few validation examples, which the `evaluate` step
must find again in the exported one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lorascope.models.linear import is_linear, linear_weight
from lorascope.training.gang import Gang
from lorascope.training.hardware import peak_flops
from lorascope.training.preparation import processor_for

if TYPE_CHECKING:
    from lorascope.data.columns import Examples
    from lorascope.training.started import Run

REFERENCE_EXAMPLES = 64
REFERENCE_PRECISION = "fp32"  # whatever it is trained in: weights are fp32, and rounding hides what a checkpoint lacks


def commit_result(
    run: Run, model: PreTrainedModel, gang: Gang, *, validation: Examples | None = None
) -> dict[str, Any]:
    """Writes the run's files; the record's figures. validation: what the run is scored on, if not its validation set."""
    context, member, base = run.context, run.member, run.base
    method, progress = member.method, member.progress
    predictions = run.reading.predict(model, run.validation if validation is None else validation)
    _write_files(run, model, predictions)
    rows = np.arange(min(REFERENCE_EXAMPLES, len(run.validation)))
    signatures = run.reading.to(REFERENCE_PRECISION).signatures(model, run.validation, rows=rows)
    np.save(context.out / "reference_logits.npy", signatures)
    is_of_tokens = member.task.inputs.unit == "token"
    flops = method.flops_per_parameter * linear_parameters(base.model) if is_of_tokens else None
    peak = peak_flops(context.device, precision=member.train.precision, warm=context.warm)
    measured = member.meters.summary(flops_per_token=flops, peak=peak)
    gang_peak = gang_peak_bytes(run)
    is_probed = run.alone is not None and measured["gang"] > 1
    measured["peak_memory_bytes"] = run.alone.peak_bytes - _idle_bytes(run) if is_probed and run.alone else gang_peak
    kept = method.record(gang.model, gang.places.index(member))
    return {
        "validation": run.reading.scores(predictions),
        "best_update": progress.best_update,
        "best_epoch": progress.best_update / member.updates_per_epoch,
        "updates": progress.update,
        "epochs": progress.update / member.updates_per_epoch,
        "planned_updates": member.total_updates,
        "stopped_early": progress.stopped_early,
        "resumed": progress.resumed,
        "trainable_parameters": method.expected_parameters(base.model, head=base.head),
        "total_parameters": sum(p.numel() for p in base.model.parameters()),
        "export_bytes": sum(f.stat().st_size for f in (context.out / "export").iterdir() if f.suffix == ".safetensors"),
        "device": context.device.partition(":")[0],
        "reference_precision": REFERENCE_PRECISION,
        "step": gang.describe_step(),
        **({"method": kept} if kept else {}),
        **({"head": base.origin.to_json()} if base.origin is not None else {}),
        **measured,
        "gang_peak_memory_bytes": gang_peak,
        "total_seconds": time.perf_counter() - run.started,
    }


def gang_peak_bytes(run: Run) -> int:
    """Peak memory of the worker while it trained the run, its whole gang's, without what it keeps for runs to come."""
    return run.member.meters.peak_memory_bytes - _idle_bytes(run)


def _idle_bytes(run: Run) -> int:
    """Of the pristine weights that stay on the device for the next run, where this one has weights of its own."""
    is_idle = run.context.device.startswith("cuda") and not run.member.method.shares_base
    return sum(p.numel() * p.element_size() for p in run.base.model.parameters()) if is_idle else 0


def _write_files(run: Run, model: PreTrainedModel, predictions: Any) -> None:
    import pandas as pd

    out, progress = run.context.out, run.member.progress
    run.member.method.export(model, out / "export", base=run.base)
    processor_for(run.context, run.member.task).save_pretrained(out / "export")
    pd.DataFrame(progress.curve).to_parquet(out / "curves.parquet", index=False)
    if progress.snapshots:
        pd.DataFrame(progress.snapshots).to_parquet(out / "snapshots.parquet", index=False)
    predictions.to_parquet(out / "validation_predictions.parquet", index=False)
    np.save(out / "losses.npy", np.asarray(progress.losses, dtype=np.float32))


def linear_parameters(model: torch.nn.Module) -> int:
    """The N of "6N FLOPs a token": weights of linear layers, embeddings not counted (Kaplan et al. 2020)."""
    return sum(linear_weight(m).numel() for m in model.modules() if is_linear(m))
