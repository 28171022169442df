"""The tables of metrics: every row is sound, and whatever a step writes has one."""

from __future__ import annotations

import math
import subprocess
import sys
import typing

import numpy as np
import pytest
from environment import ENVIRONMENT

from lorascope.errors import StudyError
from lorascope.metrics import cost, serving
from lorascope.metrics.cost import COSTS
from lorascope.metrics.metric import Mean, Metric
from lorascope.metrics.quality import QUALITY, MetricTable, common_direction, quality, share_a_scale, unit_of
from lorascope.metrics.serving import SERVED
from lorascope.plugins import NameTable
from lorascope.registry import METRICS
from lorascope.report.study.cost import MEASURES
from lorascope.serving.exchange import Request, ServedRequests
from lorascope.serving.timing import load_figures, request_rows
from lorascope.study.hypothesis import Lower, Overhead
from lorascope.study.tasks.classification import FileTask
from lorascope.tasks.classification import Classification

TABLES = {"quality": QUALITY, "cost": COSTS, "serving": SERVED}


@pytest.mark.parametrize("name", TABLES)
def test_rows_stand_under_their_names_and_are_told_apart(name):
    table = TABLES[name]
    assert all(key == row.name for key, row in table.items())
    assert len({row.title for row in table.values()}) == len(table)
    for row in table.values():
        assert row.low is None or row.high is None or row.low < row.high
        assert (row.estimator is None) == (name != "quality")


def test_gain_is_positive_for_the_better_value_in_either_direction():
    higher, lower = QUALITY["accuracy"], QUALITY["perplexity"]
    assert higher.gain(0.9, 0.8) == pytest.approx(0.1) and lower.gain(7.0, 9.0) == 2.0
    assert higher.is_better(0.9, 0.8) and not lower.is_better(0.9, 0.8)
    assert not higher.is_better(0.9, 0.9) and not lower.is_better(0.9, 0.9)
    assert (higher.worst, lower.worst) == (-math.inf, math.inf)
    assert (higher.best([1, 2]), lower.best([1, 2])) == (2, 1)
    assert (higher.worst_of([1, 2]), lower.worst_of([1, 2])) == (1, 2)


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(StudyError, match="there is no metric `acuracy`: did you mean `accuracy`") as error:
        quality("acuracy")
    assert "perplexity" in (error.value.hint or "")


def test_a_row_that_is_left_out_is_missed_with_the_reason(monkeypatch):
    monkeypatch.setitem(
        METRICS.problems, "mean_error", "the metric `mean_error` is not used: a 1 and b 2 both bring one"
    )
    with pytest.raises(StudyError, match="a 1 and b 2 both bring one"):
        quality("mean_error")


def test_a_row_without_an_estimator_is_left_out(caplog):
    assert dict(MetricTable(NameTable("metrics", {"bare": Metric("bare", "bare score")}))) == {}
    assert caplog.messages == [
        "warning: the metric `bare` (built in) is not used: it has no estimator, which says how it comes from examples"
    ]


def test_a_row_of_an_unknown_direction_or_empty_range_is_refused():
    with pytest.raises(ValueError, match="the direction of the metric `score` is 'down'"):
        Metric("score", "score", direction="down")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the bounds of the metric `score` are 1\.0 and 0\.0"):
        Metric("score", "score", low=1.0, high=0.0)


def test_a_row_that_calls_itself_otherwise_is_left_out(caplog):
    own = Metric("made_up", "made-up score", estimator=Mean("made_up"))
    table = MetricTable(NameTable("metrics", {"made_up": own, "another": own}))
    assert dict(table) == {"made_up": own}
    assert "the metric `another` (built in) is not used: it calls itself `made_up`" in caplog.text


def test_a_plug_in_brings_a_metric_by_an_entry_point(tmp_path):
    (tmp_path / "own_metrics.py").write_text(
        "from lorascope.metrics.metric import Mean, Metric\n"
        "ERRORS = Metric('errors', 'errors', direction='lower', estimator=Mean('errors'))\n"
    )
    info = tmp_path / "own_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lorascope.metrics]\nerrors = own_metrics:ERRORS\n")
    program = (
        "from lorascope.metrics.quality import quality; from lorascope.registry import METRICS\n"
        "print(quality('errors').direction, METRICS['errors'].origin)"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "lower own-metrics 1.0"


def test_directions_and_scales_that_differ_are_told():
    assert common_direction(["accuracy", "f1"]) == "higher"
    assert common_direction(["loss", "perplexity"]) == "lower"
    assert common_direction(["accuracy", "loss"]) is None
    assert share_a_scale(["accuracy", "mcc"]) and share_a_scale(["perplexity"])
    assert not share_a_scale(["loss", "perplexity"])


def test_units_of_metrics_and_of_their_columns():
    assert [unit_of(name) for name in ("accuracy", "loss", "total_loss", "correct")] == ["1", "nat", "nat", "1"]


def test_every_quality_metric_of_a_shipped_task_has_a_row():
    allowed = typing.get_args(typing.get_args(FileTask.model_fields["metrics"].annotation)[0])
    assert {*allowed, *(Classification.metric_choices or ())} <= set(QUALITY)


def test_every_figure_of_a_served_load_has_a_row_in_its_unit():
    request = Request(id=1, prompt=(1, 2), output_tokens=3)
    answer = ServedRequests(1, 0.0, 0.1, 0.4, (0.1, 0.2, 0.4), (7, 8, 9), 0.0)
    rows = request_rows([[request]], [answer])
    figures = [figure for figure in load_figures(rows, [answer], wall_s=[0.4]) if figure[0] != "num_requests"]
    assert len(figures) > 10
    assert {name: unit for name, _, unit in figures} == {name: SERVED[name].unit for name, _, _ in figures}


def test_hypotheses_can_be_about_what_the_tables_claim():
    for on in (*cost.CLAIMED, "drift"):
        Lower.model_validate({"lower": "a", "than": "b", "on": on, "by": 0.1})
    for on in serving.CLAIMED:
        Overhead.model_validate({"overhead": "a", "over": "b", "on": on, "at_most": 0.1})
    assert serving.CLAIMED["latency_p95"].name == "latency_ms_p95"
    assert {measure.key for measure in MEASURES} <= set(COSTS)


def test_tables_load_no_heavy_library():
    program = (
        "import sys, lorascope.metrics.cost, lorascope.metrics.quality, lorascope.metrics.serving\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_ratio_of_sums_is_transformed_elementwise():
    estimator = QUALITY["perplexity"].estimator
    assert np.allclose(estimator.transform(np.array([0.0, 1.0])), [1.0, math.e])  # type: ignore[union-attr]
