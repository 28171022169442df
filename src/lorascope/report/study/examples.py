"""Single examples: which class is taken for which, and the examples on which two arms disagree most.

Read from the measurements table, where every run has the label and the prediction of each test example.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts

MOST_CLASSES, MOST_EXAMPLES = 5, 20
Predicted = dict[tuple[str, str, str], tuple[Any, Any]]
"""(model, task, method) -> labels [examples] and predictions [seeds, examples], as frames with the ids of the examples."""


def _columns(*headings: str, numeric_from: int) -> tuple[Column, ...]:
    return tuple(Column(heading, numeric=place >= numeric_from) for place, heading in enumerate(headings))


def predicted(facts: Facts) -> Predicted:
    """Of every arm of a task with classes."""
    import pandas as pd

    wanted = [("split", "==", "test"), ("metric", "in", ["label", "prediction"])]
    table: Any = pd.read_parquet(facts.directory / "measurements.parquet", filters=wanted)
    found: Predicted = {}
    for (model, task, method), rows in table.groupby(["model", "task", "method"], sort=False):
        if method not in facts.methods or set(rows["metric"]) != {"label", "prediction"}:
            continue
        wide = {
            name: part.pivot(index="seed", columns="example_id", values="value")
            for name, part in rows.groupby("metric")
        }
        found[str(model), str(task), str(method)] = wide["label"].iloc[0], wide["prediction"]
    return found


def class_names(facts: Facts, task: str, labels: Any) -> dict[int, str]:
    """The names of the classes, by index; the index itself where the data do not name them."""
    balance = facts.stated.data[task].balance if task in facts.stated.data else None
    names = list(balance.names) if balance else []
    return {index: names[index] if index < len(names) else str(index) for index in range(int(labels.max()) + 1)}


def confusion_table(facts: Facts, found: Predicted) -> Table | None:
    """How many examples of each class are predicted as each, the mean over seeds; of tasks with few classes."""
    rows: list[tuple[str, ...]] = []
    for (model, task, method), (labels, predictions) in found.items():
        names = class_names(facts, task, np.maximum(labels.to_numpy(), predictions.to_numpy().max(0)))
        if len(names) > MOST_CLASSES:
            continue
        truth, guesses = labels.to_numpy(), predictions.to_numpy()
        for label, name in names.items():
            of_class = truth == label
            for guess, guessed in names.items():
                counts = (guesses[:, of_class] == guess).sum(1)
                share = counts.mean() / of_class.sum() if of_class.any() else 0.0
                rows.append(
                    (facts.place(model, task), wording.name(method), name, guessed, wording.decimal(float(counts.mean()), 1),
                     f"{counts.min()} to {counts.max()}" if len(counts) > 1 else wording.ABSENT,
                     wording.fraction(float(share), 0))
                )  # fmt: skip
    return Table(
        name="confusion",
        title="Which class is taken for which",
        columns=_columns("task", "arm", "class", "predicted", "test examples", "over seeds", "of the class", numeric_from=4),
        rows=tuple(rows),
        note="Mean number of test examples over seeds, and the lowest and highest of a seed.",
    ) if rows else None  # fmt: skip


def disagreements_table(facts: Facts, found: Predicted) -> Table | None:
    """The examples that one arm of a comparison gets right, and the other wrong, in the most seeds."""
    rows: list[tuple[str, ...]] = []
    for comparison in facts.analysis.comparisons:
        keys = [(comparison.model, comparison.task, arm) for arm in (comparison.method, comparison.reference)]
        if any(key not in found for key in keys):
            continue
        (labels, first), (_, second) = (found[key] for key in keys)
        names = class_names(facts, comparison.task, labels)
        right = [(predictions.to_numpy() == labels.to_numpy()).sum(0) for predictions in (first, second)]
        margin = right[0] / len(first) - right[1] / len(second)
        order = np.argsort(-np.abs(margin), kind="stable")[:MOST_EXAMPLES]
        rows += [
            (
                facts.place(comparison.model, comparison.task),
                f"{wording.name(comparison.method)} v {wording.name(comparison.reference)}",
                str(labels.index[place]),
                names[int(labels.iloc[place])],
                f"{right[0][place]} of {len(first)}",
                f"{right[1][place]} of {len(second)}",
            )
            for place in order
            if margin[place] != 0
        ]
    return Table(
        name="disagreements",
        title="Examples that one arm gets right and the other wrong",
        columns=_columns("task", "comparison", "example", "class", "first right", "second right", numeric_from=4),
        rows=tuple(rows),
        note=f"Of each comparison the {MOST_EXAMPLES} test examples on which the arms differ in most seeds; equal ones in the "
        "order of their ids. predictions.parquet has every prediction with its probabilities.",
    ) if rows else None  # fmt: skip
