"""What finished steps measured, as rows of the long table, and the curves of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import pandas as pd

from lorascope.analysis.finished import Finished
from lorascope.metrics.cost import COSTS
from lorascope.metrics.quality import unit_of
from lorascope.stats.measurements import measurement_rows
from lorascope.study.spec import Study
from lorascope.tasks.task import Task

CHANGES = {"flips": "flip", "kl": "kl", "js": "js"}
"""How a measure of change is called in the table -> its column in `Scoring.change`."""


def measured_rows(finished: Finished) -> Iterator[pd.DataFrame]:
    """Of every evaluation, training and baseline step, in the columns of the long table."""
    for label, artifact in finished.of("evaluate"):
        task = finished.task(label["task"])
        predictions = pd.read_parquet(artifact.file("predictions.parquet"))
        run = {**label, "run": artifact.step.deps["train"]}
        yield _per_example(task, predictions, run)
        yield _summary(run, "test", artifact.result["test"])
    for label, artifact in finished.of("train"):
        run = {**label, "run": artifact.id}
        yield _summary(run, "validation", artifact.result["validation"])
        costs = {name: artifact.result[name] for name in COSTS if artifact.result.get(name) is not None}
        yield _rows(
            run, split=None, metric=list(costs), value=list(costs.values()), unit=[COSTS[c].unit for c in costs]
        )
        if "snapshots.parquet" in artifact.record["files"]:
            pooling = artifact.step.params["snapshots"]["pooling"]
            yield _snapshot_rows(run, pd.read_parquet(artifact.file("snapshots.parquet")), pooling=pooling)
    for label, artifact in finished.of("baseline"):
        task = finished.task(label["task"])
        frame = pd.read_parquet(artifact.file("predictions.parquet"))
        for key, predictions in frame.groupby(["baseline", "seed"], sort=False):
            name, seed = cast("tuple[str, str]", key)
            run = {**label, "run": artifact.id, "method": f"baseline:{name}", "seed": seed}
            yield _per_example(task, predictions, run)
            yield _summary(run, "test", task.scoring.metrics(predictions))


def predictions(finished: Finished) -> pd.DataFrame:
    """Every run's prediction of each test example, as its task writes it (for classes: label, prediction, a probability for
    each class), with model, task, arm and seed. Empty where nothing was evaluated."""
    names = {"model": "model", "task": "task", "method": "arm", "seed": "seed"}
    parts = [
        pd.read_parquet(artifact.file("predictions.parquet")).assign(**{to: label[of] for of, to in names.items()})
        for label, artifact in finished.of("evaluate")
    ]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*names.values(), "example_id"])
    return found.reindex(columns=[*names.values(), *(column for column in found if column not in names.values())])


def _snapshot_rows(run: Mapping[str, Any], seen: pd.DataFrame, *, pooling: str | list[str]) -> pd.DataFrame:
    """Drift of the residual stream on the way, split `snapshot:UPDATE`. pooling: the study's; where it lists several, a name
    says by which of them it is ("POOLING/LAYER")."""
    names = seen["name"].str.rpartition("/")
    rows = pd.DataFrame(
        {
            **{key: run[key] for key in ("run", "model", "task", "method", "seed")},
            "split": "snapshot:" + seen["update"].astype(str),
            "pooling": pooling if isinstance(pooling, str) else names[0],
            "site": "residual",
            "layer": names[2].astype("Int64"),
            "metric": "drift",
            "value": seen["value"],
            "unit": "1",
        }
    )
    return rows


def function_rows(finished: Finished, study: Study) -> Iterator[pd.DataFrame]:
    """How differently a run decides the test examples: from the reference method's run of the same seed, and from its own
    arm's runs of other seeds (the mean over them), without which the first says little."""
    reference = study.reference
    runs = {
        (label["model"], label["task"], label["method"], label["seed"]): artifact
        for label, artifact in finished.of("evaluate")
    }
    read = {key: pd.read_parquet(artifact.file("predictions.parquet")) for key, artifact in runs.items()}
    for (model, task, method, seed), artifact in runs.items():
        own, scoring = read[model, task, method, seed], finished.task(task).scoring
        others = [rows for key, rows in read.items() if key[:3] == (model, task, method) and key[3] != seed]
        paired = read.get((model, task, reference, seed)) if method != reference else None
        compared = {"between_seeds": others, f"from_{reference}": [] if paired is None else [paired]}
        values = {
            f"{name}_{against}": float(np.mean([change[column].mean() for change in changes]))
            for against, predictions in compared.items()
            if (changes := [scoring.change(rows, own) for rows in predictions])
            for name, column in CHANGES.items()
            if column in changes[0]
        }
        label = {"run": artifact.step.deps["train"], "model": model, "task": task, "method": method, "seed": seed}
        units = ["fraction" if name.startswith("flips") else "nat" for name in values]
        yield _rows(label, split="test", metric=list(values), value=list(values.values()), unit=units)


def _per_example(task: Task, predictions: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    columns = task.scoring.example_scores(predictions)
    ids = predictions["example_id"].to_numpy()
    return _rows(
        run,
        split="test",
        example_id=np.tile(ids, len(columns)),
        metric=np.repeat(list(columns), len(ids)),
        value=np.concatenate(list(columns.values())),
        unit=np.repeat([unit_of(name) for name in columns], len(ids)),
    )


def _summary(run: Mapping[str, Any], split: str, scores: Mapping[str, float]) -> pd.DataFrame:
    units = [unit_of(name) for name in scores]
    return _rows(run, split=split, metric=list(scores), value=list(scores.values()), unit=units)


def _rows(run: Mapping[str, Any], **columns: Any) -> pd.DataFrame:
    return measurement_rows(run, columns)


def curves(finished: Finished) -> pd.DataFrame:
    """The curves of all runs."""
    frames = [
        pd.read_parquet(artifact.file("curves.parquet")).assign(run=artifact.id, **label)
        for label, artifact in finished.of("train")
    ]
    return pd.concat(frames, ignore_index=True)
