"""The `evaluate` step: the exported model, read back by the library that owns its format, scored on the test set.

This is the one place that opens the test set. Because it starts from what was exported and not from memory, it also
proves two things: the export computes what was trained (reload gate) and merging changes nothing (merge gate).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.errors import GateFailure
from lorascope.evaluation.sanity import Gate
from lorascope.tasks.description import task_from_result
from lorascope.training.predict import logits_of, predict, scores
from lorascope.training.preparation import base_for, make_deterministic, method_from_params
from lorascope.training.result import REFERENCE_EXAMPLES

# Largest difference of a class probability that rounding explains.
_RELOAD_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_MERGE_TOLERANCE = 1e-3


def evaluate_run(context: StepContext) -> dict[str, Any]:
    """Scores one run on the test set. params: model, method, precision; deps: data, tokens, train.

    Writes predictions.parquet (one row a test example). Raises GateFailure if the export does not compute what was
    trained, or the merged model not what the adapter computes.
    """
    params = context.step.params
    make_deterministic(context.device)
    task = task_from_result(context.deps["data"].result)
    test, validation = (ColumnStore.open(context.deps["tokens"].file(s)) for s in ("test", "validation"))
    base, method = base_for(context, task), method_from_params(params["method"])
    train = context.deps["train"]
    model = method.reload(train.file("export"), base=base).to(context.device)
    reading = {"pad_token_id": base.pad_token_id, "device": context.device}
    precision = train.result.get("reference_precision", params["precision"])  # runs of before took their own
    reference = np.load(train.file("reference_logits.npy"))
    gates = [reload_gate(model, task, validation, reference, precision=precision, **reading)]
    predictions = predict(model, task, test, precision=params["precision"], **reading)
    predictions.to_parquet(context.out / "predictions.parquet", index=False)
    gates += merge_gate(method, model, task, validation, reading)
    for gate in gates:
        if not gate.passed:
            raise GateFailure(f"gate `{gate.gate}` failed: {gate.detail}", hint=_MEANING[gate.gate])
    return {
        "test": scores(task, predictions),
        "num_examples": len(predictions),
        "example_ids_sha256": ids_sha256(predictions),
        "gates": [asdict(gate) for gate in gates],
    }


def ids_sha256(predictions: pd.DataFrame) -> str:
    """A hash of the example ids in order: equal for every arm, or nothing may be compared."""
    return hashlib.sha256("\n".join(predictions["example_id"]).encode()).hexdigest()


def reload_gate(model: Any, task: Any, columns: Any, reference: np.ndarray, *, precision: str, **reading: Any) -> Gate:
    """The model read back gives the probabilities that the model in memory gave when it was saved."""
    rows = np.arange(len(reference))
    found = logits_of(model, task, columns, rows=rows, precision=precision, **reading)
    difference = float(np.abs(_probabilities(found) - _probabilities(reference)).max())
    tolerance = _RELOAD_TOLERANCE[precision]
    return Gate(
        "save, reload, score", difference <= tolerance, difference, tolerance,
        f"largest difference of a probability on {len(rows)} validation examples ({precision}): {difference:.2g}",
    )  # fmt: skip


def merge_gate(method: Any, model: Any, task: Any, columns: Any, reading: dict) -> list[Gate]:
    """The adapter folded into the base's weights gives the adapter's probabilities (fp32); [] without an adapter."""
    rows = np.arange(min(REFERENCE_EXAMPLES, len(columns)))
    apart = logits_of(model, task, columns, rows=rows, precision="fp32", **reading)
    merged = method.merge(model)
    if merged is None:
        return []
    together = logits_of(merged, task, columns, rows=rows, precision="fp32", **reading)
    difference = float(np.abs(_probabilities(apart) - _probabilities(together)).max())
    return [
        Gate(
            "merged equals adapter", difference <= _MERGE_TOLERANCE, difference, _MERGE_TOLERANCE,
            f"largest difference of a probability on {len(rows)} validation examples (fp32): {difference:.2g}",
        )
    ]  # fmt: skip


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()


_MEANING = {
    "save, reload, score": "the checkpoint on disk is not the model that was trained (a head or an adapter is missing "
    "or misnamed): no score of it would be a score of the run",
    "merged equals adapter": "merging changes the model, so merged and unmerged serving could not be compared",
}
