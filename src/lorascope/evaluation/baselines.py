"""The `baseline` step: what any fine-tuned model must beat, on the same test examples.

Majority class, stratified random (5 seeds), and a linear probe: logistic regression on the frozen base's features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from lorascope.data.columns import ColumnStore, Examples
from lorascope.engine.context import StepContext
from lorascope.errors import GateFailure
from lorascope.evaluation.evaluate import ids_sha256
from lorascope.tasks.description import task_from_result
from lorascope.training.predict import autocast, batches_in_order, model_inputs
from lorascope.training.preparation import base_for, make_deterministic

RANDOM_SEEDS = (42, 1337, 2024, 3407, 5489)


def measure_baselines(context: StepContext) -> dict[str, Any]:
    """Scores the baselines of one (model, task). params: model, precision; deps: data, tokens.

    Writes predictions.parquet: the task's prediction columns with `baseline` and `seed`.
    """
    make_deterministic(context.device)
    data, tokens = context.deps["data"], context.deps["tokens"]
    task = task_from_result(data.result)
    frames = {split: pd.read_parquet(data.file(f"{split}.parquet")) for split in ("train", "validation", "test")}
    labels = frames["train"]["label"].to_numpy()
    arms = {("majority", ""): task.majority_predictions(labels, frames["test"])}
    for seed in RANDOM_SEEDS:
        generator = np.random.default_rng(seed)
        arms["random", str(seed)] = task.random_predictions(labels, frames["test"], generator=generator)
    base = base_for(context, task)
    features = {
        split: frozen_features(
            base.model, task, ColumnStore.open(tokens.file(split)), pad_token_id=base.pad_token_id,
            device=context.device, precision=context.step.params["precision"],
        )
        for split in frames
    }  # fmt: skip
    if (probe := task.linear_probe(features, frames)) is not None:
        arms["linear probe", ""] = probe
    hashes = {ids_sha256(frame) for frame in arms.values()}
    if len(hashes) != 1:
        raise GateFailure("the baselines were scored on different test examples", hint="this is a defect of the task")
    rows = [frame.assign(baseline=name, seed=seed) for (name, seed), frame in arms.items()]
    pd.concat(rows).to_parquet(context.out / "predictions.parquet", index=False)
    scores = [{"name": name, "seed": seed, "metrics": task.metrics(frame)} for (name, seed), frame in arms.items()]
    return {"scores": scores, "num_examples": len(frames["test"]), "example_ids_sha256": hashes.pop()}


@torch.no_grad()
def frozen_features(
    model: Any, task: Any, columns: Examples, *, pad_token_id: int, device: str, precision: str
) -> np.ndarray:
    """The base's last hidden state, mean over real tokens: float32 [examples, hidden], in the columns' order."""
    found = np.empty((len(columns), model.config.hidden_size), dtype=np.float32)
    for rows, batch in batches_in_order(task, columns, pad_token_id=pad_token_id, device=device):
        with autocast(device, precision):
            hidden = model.base_model(**model_inputs(task, batch)).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        found[rows] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    return found
