"""The `baseline` step: what any fine-tuned model must beat, on the same test examples.

Which there are is the task's to say (`Scoring.baselines`, `Scoring.linear_probe`). For classes: the majority, stratified
random (5 seeds), and a linear probe, logistic regression on the frozen base's features. For a task that uses the
checkpoint's own head: the untrained base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from lorascope.data.columns import ColumnStore, Examples, example_numbers
from lorascope.engine.context import StepContext
from lorascope.errors import GateFailure
from lorascope.evaluation.evaluate import ids_sha256
from lorascope.tasks.description import task_from_result
from lorascope.training.preparation import base_for, make_deterministic, reading_for
from lorascope.training.reading import Reading, real_positions

RANDOM_SEEDS = (42, 1337, 2024, 3407, 5489)


def measure_baselines(context: StepContext) -> dict[str, Any]:
    """Scores the baselines of one (model, task). params: model, precision; deps: data, tokens.

    Writes predictions.parquet: the task's prediction columns with `baseline` and `seed`.
    """
    make_deterministic(context.device)
    data, tokens = context.deps["data"], context.deps["tokens"]
    task = task_from_result(data.result)
    scoring = task.scoring
    frames = {split: pd.read_parquet(data.file(f"{split}.parquet")) for split in ("train", "validation", "test")}
    arms = scoring.baselines(frames, seeds=RANDOM_SEEDS)
    base = base_for(context, task)
    reading = reading_for(context, task, base, precision=context.step.params["precision"])
    columns = {split: ColumnStore.open(tokens.file(split)) for split in frames}
    if task.head.is_new:
        probe = scoring.linear_probe(lambda split: frozen_features(base.model, columns[split], reading), frames)
        if probe is not None:
            arms["linear probe", ""] = probe
    else:  # the base has a head: what it does untrained is the least that training must beat
        arms["untrained base", ""] = reading.predict(base.model, columns["test"])
    hashes = {ids_sha256(frame) for frame in (frames["test"], *arms.values())}
    if len(hashes) != 1:
        raise GateFailure("the baselines were scored on different test examples", hint="this is a defect of the task")
    rows = [frame.assign(baseline=name, seed=seed) for (name, seed), frame in arms.items()]
    table = pd.concat(rows) if rows else pd.DataFrame({"example_id": [], "baseline": [], "seed": []})
    table.to_parquet(context.out / "predictions.parquet", index=False)
    scores = [{"name": name, "seed": seed, "metrics": scoring.metrics(frame)} for (name, seed), frame in arms.items()]
    return {"scores": scores, "num_examples": len(frames["test"]), "example_ids_sha256": hashes.pop()}


@torch.no_grad()
def _backbone_output(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Any:
    """What the model's body returns. A body with a decoder is called by the model around it, which makes the decoder's
    inputs."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return model.base_model(**inputs)
    found: list[Any] = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        model(**inputs)
    finally:
        hook.remove()
    return found[0]


def frozen_features(model: PreTrainedModel, columns: Examples, reading: Reading) -> np.ndarray:
    """The base's last hidden state, mean over real positions, and over the windows of an example: float32 [examples,
    hidden], in the columns' order."""
    found = np.empty((len(columns), model.config.hidden_size), dtype=np.float32)
    for rows, batch in reading.batches(columns):
        with reading.autocast():
            hidden = _backbone_output(model, reading.model_inputs(batch)).last_hidden_state.float()
        mask = real_positions(batch, hidden).unsqueeze(-1).float()
        found[rows] = ((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy()
    owners = example_numbers(columns.ids)
    if owners[-1] + 1 == len(owners):
        return found
    return np.stack([found[owners == example].mean(axis=0) for example in range(owners[-1] + 1)])
