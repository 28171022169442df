"""Method x task analysis of variance on seed scores, with partial eta squared and Tukey's post-hoc intervals.

It answers "does the ranking of the methods depend on the task?", over seeds, on these very test sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorascope.metrics.quality import share_a_scale
from lorascope.stats.analysis import Score


def method_by_task_anova(scores: Sequence[Score]) -> list[dict[str, Any]] | None:
    """Rows of the type II ANOVA (statsmodels) of each model with at least two methods and tasks and two seeds a cell.

    Effect rows: {"model", "kind": "effect", "term", "sum_squares", "df", "df_residual", "f", "p_value",
    "partial_eta_squared"} with partial eta^2 = SS / (SS + SS residual) (Cohen 1973). Post-hoc rows, Tukey HSD between
    methods within a task: {"model", "kind": "post-hoc", "task", "first", "second", "difference", "low", "high",
    "p_value"}. None if no model's scores allow it (a missing cell, one seed, no variance, metrics without a
    scale in common).
    """
    rows: list[dict[str, Any]] = []
    for model in dict.fromkeys(score.model for score in scores):
        rows += _one_model(model, [score for score in scores if score.model == model])
    return rows or None


def _one_model(model: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    methods = list(dict.fromkeys(score.method for score in scores))
    tasks = list(dict.fromkeys(score.task for score in scores))
    complete = len(scores) == len(methods) * len(tasks) and all(len(score.seeds) >= 2 for score in scores)
    residual = sum(float(np.var(list(score.seeds.values()))) for score in scores)
    comparable = share_a_scale(score.metric for score in scores)
    if len(methods) < 2 or len(tasks) < 2 or not complete or residual == 0 or not comparable:
        return []
    return _effects(model, scores) + [row for task in tasks for row in _post_hoc(model, task, scores)]


def _effects(model: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    cells = [(score.method, score.task, value) for score in scores for value in score.seeds.values()]
    frame = pd.DataFrame(cells, columns=["method", "task", "value"])
    table = anova_lm(ols("value ~ C(method) * C(task)", data=frame).fit(), typ=2)
    residual, names = (
        table.loc["Residual"],
        {"C(method)": "method", "C(task)": "task", "C(method):C(task)": "method x task"},
    )
    return [
        {
            "model": model,
            "kind": "effect",
            "term": name,
            "sum_squares": float(table.loc[term, "sum_sq"]),
            "df": float(table.loc[term, "df"]),
            "df_residual": float(residual["df"]),
            "f": float(table.loc[term, "F"]),
            "p_value": float(table.loc[term, "PR(>F)"]),
            "partial_eta_squared": float(table.loc[term, "sum_sq"] / (table.loc[term, "sum_sq"] + residual["sum_sq"])),
        }
        for term, name in names.items()
    ]


def _post_hoc(model: str, task: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Tukey's intervals within a task. Differences are first - second."""
    from statsmodels.stats.multicomp import pairwise_tukeyhsd

    arms = [score for score in scores if score.task == task]
    if all(np.ptp(list(arm.seeds.values())) == 0 for arm in arms):
        return []
    values = [value for arm in arms for value in arm.seeds.values()]
    test: Any = pairwise_tukeyhsd(values, [arm.method for arm in arms for _ in arm.seeds])
    first, second = np.triu_indices(len(test.groupsunique), 1)
    return [
        {
            "model": model,
            "kind": "post-hoc",
            "task": task,
            "first": str(test.groupsunique[i]),
            "second": str(test.groupsunique[j]),
            "difference": -float(test.meandiffs[row]),  # statsmodels subtracts the first from the second
            "low": -float(test.confint[row, 1]),
            "high": -float(test.confint[row, 0]),
            "p_value": float(test.pvalues[row]),
        }
        for row, (i, j) in enumerate(zip(first, second, strict=True))
    ]
