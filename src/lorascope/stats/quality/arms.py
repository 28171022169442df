"""Arms of a study read from the measurements table: scores per seed and example, checked to be comparable.

An arm is one (model, task, method). Every arm of a (model, task) must have been scored on the identical test examples,
by every seed; anything else is an error, never an average over what happens to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import DataError
from lorascope.metrics.metric import FromCounts, Metric
from lorascope.stats.quality.scores import whole_scores

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.study.spec import Study


BASELINE_PREFIX = "baseline:"


@dataclass(frozen=True)
class ScoredArm:
    """One (model, task, method). seeds: in the study's order. rows: per-example column -> float64 [seeds, examples]."""

    model: str
    task: str
    method: str
    seeds: tuple[str, ...]
    examples: tuple[str, ...]
    rows: Mapping[str, np.ndarray]

    def at(self, seeds: tuple[str, ...], metric: str) -> np.ndarray:
        """[seeds, examples] of a per-example column for chosen seeds. Raises DataError if it was not measured."""
        if metric not in self.rows:
            raise DataError(
                f"{self.method} on {self.task} with {self.model} has no per-example rows of {metric!r}",
                hint=f"Measured for each test example: {', '.join(sorted(self.rows)) or 'nothing'}.",
            )
        return self.rows[metric][[self.seeds.index(seed) for seed in seeds]]

    def columns(self, metric: Metric, seeds: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The per-example columns that a metric is made of, [seeds, examples] each. Raises DataError as `at` does."""
        estimator = metric.estimator
        if estimator is None:
            raise DataError(
                f"{metric.name} is one number a run, and not made of examples",
                hint="a task's metrics are of `metrics.quality`, whose rows have an estimator",
            )
        return {name: self.at(seeds, name) for name in estimator.columns}

    def num_classes(self, metric: Metric) -> int:
        """Of a metric made of confusion counts: the classes that are labels or predictions, at least two; else 2."""
        if not isinstance(metric.estimator, FromCounts):
            return 2
        return max(int(max(self.at(self.seeds, name).max() for name in ("label", "prediction"))) + 1, 2)

    def seed_scores(self, metric: Metric) -> np.ndarray:
        """[seeds]: the metric of each seed on the whole test set."""
        rows = self.columns(metric, self.seeds)
        assert metric.estimator is not None
        return whole_scores(metric.estimator, rows, num_classes=self.num_classes(metric))


def read_arms(study: Study, measurements: pd.DataFrame) -> dict[tuple[str, str, str], ScoredArm]:
    """Every arm of the study that has test rows. Raises DataError unless all share their examples within (model, task).

    Examples shared across models of a task are checked too, for averaging over models relies on it.
    """
    rows: Any = measurements[(measurements["split"] == "test") & measurements["example_id"].notna()]
    rows = rows[rows["site"].isna() & rows["layer"].isna()]
    groups = dict(iter(rows.groupby(["model", "task", "method"], sort=False)))
    arms: dict[tuple[str, str, str], ScoredArm] = {}
    for model in study.models:
        for task in study.tasks:
            for method in study.methods:
                key = (model.name, task.name, method.name)
                if key in groups:
                    arms[key] = _read_arm(key, groups[key], [seed.label for seed in study.seeds])
    for task in study.tasks:
        _require_same_examples([arm for arm in arms.values() if arm.task == task.name and arm.seeds])
    return {key: arm for key, arm in arms.items() if arm.seeds}


def read_baselines(study: Study, measurements: pd.DataFrame) -> dict[tuple[str, str, str], ScoredArm]:
    """(model, task, name of the baseline) -> its test rows, as an arm that has a row for every seed of the study. What draws
    nothing is the same for all of them; what draws fewer times than the study has seeds begins again."""
    rows: Any = measurements[(measurements["split"] == "test") & measurements["example_id"].notna()]
    rows = rows[rows["method"].str.startswith(BASELINE_PREFIX)]
    wanted = tuple(seed.label for seed in study.seeds)
    found: dict[tuple[str, str, str], ScoredArm] = {}
    for (model, task, method), part in rows.groupby(["model", "task", "method"], sort=False):
        name = method.removeprefix(BASELINE_PREFIX).replace(" ", "-")
        drawn = _read_arm((model, task, name), part, list(dict.fromkeys(part["seed"])))
        position = [index % len(drawn.seeds) for index in range(len(wanted))]
        tables = {column: values[position] for column, values in drawn.rows.items()}
        for one in study.models if model == "*" else [model]:
            label = one if isinstance(one, str) else one.name
            found[label, task, name] = ScoredArm(label, task, name, wanted, drawn.examples, tables)
    return found


def _read_arm(key: tuple[str, str, str], rows: Any, order: list[str]) -> ScoredArm:
    model, task, method = key
    present = set(rows["seed"])
    seeds = tuple(seed for seed in order if seed in present)
    tables: dict[str, np.ndarray] = {}
    examples: tuple[str, ...] = ()
    rows = rows[rows["seed"].isin(seeds)]
    for metric, part in rows.groupby("metric"):
        table = part.pivot(index="seed", columns="example_id", values="value").sort_index(axis=1)
        absent = table.isna().sum(axis=1)
        if absent.any() or len(table) != len(seeds) or (examples and tuple(table.columns) != examples):
            counts = part.groupby("seed")["example_id"].nunique()
            found = ", ".join(f"seed {seed}: {int(counts.get(seed, 0))}" for seed in seeds)
            raise DataError(
                f"{method} on {task} with {model} was not scored on the same examples by every seed "
                f"({metric}: {found}; {max(len(examples), table.shape[1])} examples in all)",
                hint="Paired statistics need identical test examples; score the runs again on the same data.",
            )
        examples = tuple(map(str, table.columns))
        tables[str(metric)] = table.loc[list(seeds)].to_numpy(float)
    return ScoredArm(model, task, method, seeds, examples, tables)


def _require_same_examples(arms: list[ScoredArm]) -> None:
    for arm in arms[1:]:
        first = arms[0]
        if arm.examples != first.examples:
            common = len(set(arm.examples) & set(first.examples))
            raise DataError(
                f"arms on {arm.task} were scored on different test examples: {first.method} with {first.model} on "
                f"{len(first.examples)}, {arm.method} with {arm.model} on {len(arm.examples)}, {common} in common",
                hint="Paired statistics need identical test examples; score the runs again on the same data.",
            )
        if "label" in arm.rows and "label" in first.rows:
            differing = int((arm.rows["label"][0] != first.rows["label"][0]).sum())
            if differing:
                raise DataError(
                    f"{first.method} with {first.model} and {arm.method} with {arm.model} disagree about the labels of "
                    f"{differing} test examples of {arm.task}",
                    hint="The test data changed between the runs; train and score them again on the same data.",
                )
