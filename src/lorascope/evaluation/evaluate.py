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
from torch import nn

from lorascope.data.columns import ColumnStore, Examples
from lorascope.engine.context import StepContext
from lorascope.errors import GateFailure
from lorascope.evaluation.sanity import Gate
from lorascope.methods.base import Method
from lorascope.tasks.description import task_from_result
from lorascope.tasks.scoring import Agreement
from lorascope.training.preparation import base_for, make_deterministic, method_from_params, reading_for
from lorascope.training.reading import Reading
from lorascope.training.result import REFERENCE_EXAMPLES

# Largest difference of a probability, or whatever else a task compares outputs by, that rounding explains.
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
    reading = reading_for(context, task, base, precision=params["precision"])
    precision = train.result.get("reference_precision", params["precision"])  # older runs took their own
    reference = np.load(train.file("reference_logits.npy"))
    gates = [reload_gate(model, validation, reference, reading.to(precision))]
    predictions = reading.predict(model, test)
    predictions.to_parquet(context.out / "predictions.parquet", index=False)
    gates += merge_gate(method, model, validation, reading.to("fp32"))
    for gate in gates:
        if not gate.passed:
            raise GateFailure(f"gate `{gate.gate}` failed: {gate.detail}", hint=_MEANING[gate.gate])
    return {
        "test": reading.scores(predictions),
        "num_examples": len(predictions),
        "example_ids_sha256": ids_sha256(predictions),
        "gates": [asdict(gate) for gate in gates],
    }


def ids_sha256(predictions: pd.DataFrame) -> str:
    """A hash of the example ids in order: equal for every arm, or nothing may be compared."""
    return hashlib.sha256("\n".join(predictions["example_id"]).encode()).hexdigest()


def reload_gate(model: nn.Module, columns: Examples, reference: np.ndarray, reading: Reading) -> Gate:
    """The model read back gives what the model in memory gave when it was saved. reference: its signatures."""
    rows = np.arange(len(reference))
    found = reading.task.scoring.agreement(reading.signatures(model, columns, rows=rows), reference)
    tolerance = _RELOAD_TOLERANCE[reading.precision]
    return _agreement_gate("save, reload, score", found, tolerance, ids=columns.ids[rows], precision=reading.precision)


def merge_gate(method: Method, model: nn.Module, columns: Examples, reading: Reading) -> list[Gate]:
    """The adapter folded into the base's weights gives what the adapter gives; [] without an adapter."""
    rows = np.arange(min(REFERENCE_EXAMPLES, len(columns)))
    apart = reading.signatures(model, columns, rows=rows)
    merged = method.merge(model)
    if merged is None:
        return []
    found = reading.task.scoring.agreement(apart, reading.signatures(merged, columns, rows=rows))
    ids = columns.ids[rows]
    return [_agreement_gate("merged equals adapter", found, _MERGE_TOLERANCE, ids=ids, precision=reading.precision)]


def _agreement_gate(name: str, found: Agreement, tolerance: float, *, ids: np.ndarray, precision: str) -> Gate:
    return Gate(
        name, found.difference <= tolerance, found.difference, tolerance,
        f"largest difference of {found.of} on {len(np.unique(ids))} validation examples ({precision}): {found.difference:.2g}",
    )  # fmt: skip


_MEANING = {
    "save, reload, score": "the checkpoint on disk is not the model that was trained (a head or an adapter is missing "
    "or misnamed): no score of it would be a score of the run",
    "merged equals adapter": "merging changes the model, so merged and unmerged serving could not be compared",
}
