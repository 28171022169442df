"""The analysis artifact as a report reads it: the analysis, the facts of the study, the curves.

The one idea: order and naming are decided once, here, from the study (its methods, models and tasks in the order they
were written), so that every figure and table lists the same things in the same order and colour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.metrics.quality import DEFAULT
from lorascope.report.page import wording
from lorascope.stats.analysis import Analysis, HypothesisResult, Interval, Score
from lorascope.stats.facts.declared import StudyDeclared
from lorascope.stats.facts.found import BaselineFacts, DataFacts, FailureFacts, GateFacts, RunFacts
from lorascope.stats.facts.served import ServingFacts
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.tasks.labels import f1_title

if TYPE_CHECKING:
    import pandas as pd


# Also where nothing was logged: a study in which no run got that far.
CURVE_COLUMNS = ["run", "model", "task", "method", "seed", "update", "epoch", "name", "value"]


@dataclass(frozen=True)
class Measured:
    """One row of the measurements table that belongs to no single example. None: it is of no one site, layer, split or
    pooling."""

    run: str
    model: str
    task: str
    method: str
    split: str | None
    site: str | None
    layer: int | None
    value: float
    pooling: str | None = None


@dataclass(frozen=True)
class Facts:
    """directory: the analysis artifact. stated: facts.json. curves: one row a logged value (columns run, model, task,
    method, seed, update, epoch, name, value)."""

    directory: Path
    analysis: Analysis
    stated: StudyFacts
    curves: pd.DataFrame

    @property
    def study(self) -> StudyDeclared:
        return self.stated.study

    @property
    def runs(self) -> Sequence[RunFacts]:
        return self.stated.runs

    @property
    def gates(self) -> Sequence[GateFacts]:
        return self.stated.gates

    @property
    def failures(self) -> Sequence[FailureFacts]:
        return self.stated.failures

    @property
    def served(self) -> ServingFacts:
        """What serving found besides its figures; empty where nothing was served."""
        return self.stated.serving or ServingFacts()

    @property
    def data(self) -> Mapping[str, DataFacts]:
        return self.stated.data

    @cached_property
    def unit(self) -> str:
        """What the size of an example counts: "token", or "image"; of tasks that differ, all of them."""
        return " or ".join(dict.fromkeys(data.unit for data in self.data.values())) or "token"

    @cached_property
    def models(self) -> list[str]:
        return [model.name for model in self.study.models]

    @cached_property
    def tasks(self) -> list[str]:
        return [task.name for task in self.study.tasks]

    def protocol(self, task: str) -> str:
        """The protocol of a task: how it is split, and what may select."""
        of_data = self.data[task].protocol if task in self.data else None
        return of_data or self.study.protocol

    @cached_property
    def protocols(self) -> dict[str, list[str]]:
        """Protocol -> its tasks."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            found.setdefault(self.protocol(task), []).append(task)
        return found

    def protocol_text(self) -> str:
        """ "protocol `strict`"; of tasks that differ: "protocols `strict` (MRPC) and `resplit` (SST-2)"."""
        if len(self.protocols) == 1:
            return f"protocol `{next(iter(self.protocols))}`"
        named = [f"`{name}` ({wording.listing(map(wording.name, tasks))})" for name, tasks in self.protocols.items()]
        return f"protocols {wording.listing(named)}"

    @cached_property
    def methods(self) -> list[str]:
        return [method.name for method in self.study.methods]

    @cached_property
    def seeds(self) -> list[str]:
        """Labels of the seeds that have a score, in the order of first appearance."""
        labels = [seed for score in self.analysis.scores for seed in score.seeds]
        return list(dict.fromkeys(labels)) or list(dict.fromkeys(str(run.seed) for run in self.runs))

    @cached_property
    def cells(self) -> list[tuple[str, str]]:
        """(model, task) pairs in the study's order."""
        return [(model, task) for model in self.models for task in self.tasks]

    @cached_property
    def _measured(self) -> dict[str, pd.DataFrame]:
        """The measurements by metric, those of single examples and single singular values left out: they are most of the
        table, and no report shows one."""
        import pandas as pd
        import pyarrow.compute as pc

        spectra = pc.starts_with(pc.field("metric"), pattern="singular_value_")  # type: ignore[attr-defined]
        shown = pc.field("example_id").is_null() & ~spectra
        rows = pd.read_parquet(self.directory / "measurements.parquet", filters=shown)
        return {str(metric): part for metric, part in rows.dropna(subset=["value"]).groupby("metric", sort=False)}

    @cached_property
    def _found(self) -> dict[str, list[Measured]]:
        return {}

    def measured(self, metric: str) -> list[Measured]:
        """The values of one metric that belong to no single example. The file is read when first asked for."""
        if metric not in self._found:
            rows = self._measured.get(metric)
            self._found[metric] = [] if rows is None else _measured(rows)
        return self._found[metric]

    def place(self, model: str, task: str) -> str:
        """The shortest name of a (model, task): the model is named only where there are several. "*": the average."""
        if (model, task) == ("*", "*"):
            return "average"
        if len(self.models) == 1 or model == "*":
            return wording.name(task) if task != "*" else "all tasks"
        return f"{wording.name(task) if task != '*' else 'all tasks'} · {model}"

    def primary_metric(self, task: str) -> str:
        """The metric the comparisons of a task are made on, else the first that was scored."""
        for row in (*self.analysis.comparisons, *self.analysis.scores):
            if row.task == task:
                return row.metric
        return DEFAULT

    def metric_style(self, metric: str, *, task: str) -> wording.MetricStyle:
        """How a metric is written of a task: F1 with the class that it looks for. "*": of all tasks, where they agree."""
        style = wording.metric_style(metric)
        if metric != "f1":
            return style
        known = [data.balance for name, data in self.data.items() if task in (name, "*")]
        titles = {f1_title(balance.names) for balance in known if balance is not None and balance.of == "label"}
        return replace(style, label=titles.pop()) if len(titles) == 1 else style

    def hypothesis_metric(self, result: HypothesisResult, *, task: str) -> str:
        """What a hypothesis is about, by the name the study uses: a cost, a metric, or the task's primary one."""
        hypothesis = self.study.hypotheses.get(result.name)
        declared = (hypothesis.on if hypothesis else None) or result.metric
        metric = self.primary_metric(task) if declared == "primary" else declared
        return wording.share_of(metric) if result.is_ratio else metric

    def score(self, model: str, task: str, method: str, *, metric: str) -> Score | None:
        for row in (*self.analysis.scores, *self.analysis.other_scores):
            if (row.model, row.task, row.method, row.metric) == (model, task, method, metric):
                return row
        return None

    def metrics(self, model: str, task: str) -> tuple[str, ...]:
        """What runs of a (model, task) are scored by, the primary metric first."""
        scores = (*self.analysis.scores, *self.analysis.other_scores)
        found = dict.fromkeys(row.metric for row in scores if (row.model, row.task) == (model, task))
        return tuple(found) or (self.primary_metric(task),)

    def baseline_interval(self, model: str, task: str, name: str, *, metric: str) -> Interval | None:
        """Of a baseline's score over test examples; None in an analysis of before baselines had one."""
        for row in self.analysis.baselines:
            if (row.model, row.task, row.method, row.metric) == (model, task, name.replace(" ", "-"), metric):
                return row.interval
        return None

    def cell_baselines(self, model: str, task: str, *, metric: str) -> list[BaselineFacts]:
        """Baselines of a (model, task); one that needs no model (majority) is stored with the model of its step."""
        return [
            row
            for row in self.stated.baselines
            if row.task == task and row.metric == metric and row.model in (model, None, "*")
        ]

    def cell_runs(self, model: str, task: str | None, method: str) -> list[RunFacts]:
        return [run for run in self.runs if run.model == model and run.method == method and task in (None, run.task)]

    def learning_rate(self, method: str) -> float | None:
        return next((spec.learning_rate for spec in self.study.methods if spec.name == method), None)


def _measured(rows: pd.DataFrame) -> list[Measured]:
    columns = [
        [None if absent else value for value, absent in zip(rows[name], rows[name].isna(), strict=True)]
        for name in ("run", "model", "task", "method", "split", "site", "layer")
    ]
    poolings = rows["pooling"] if "pooling" in rows else [None] * len(rows)  # tables of older versions have none
    return [
        Measured(
            str(run),
            str(model),
            str(task),
            str(method),
            split,
            site,
            None if layer is None else int(float(layer)),
            value,
            pooling if isinstance(pooling, str) else None,
        )
        for run, model, task, method, split, site, layer, value, pooling in zip(
            *columns, rows["value"].tolist(), poolings, strict=True
        )
    ]


def read_facts(directory: Path) -> Facts:
    """Read one analysis artifact. Raises FileNotFoundError naming the file that is missing."""
    import pandas as pd

    return Facts(
        directory=directory,
        analysis=Analysis.from_json(json.loads((directory / "analysis.json").read_text(encoding="utf-8"))),
        stated=StudyFacts.from_json(json.loads((directory / "facts.json").read_text(encoding="utf-8"))),
        curves=pd.read_parquet(directory / "curves.parquet").reindex(columns=CURVE_COLUMNS),
    )
