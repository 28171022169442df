"""Runs that learnt nothing: named, counted, never dropped; and baselines as arms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_up_study import SEEDS, make_measurements, make_study, run_rows

from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis, CollapsedRun

PRIMARY = {"mrpc": "accuracy", "rte": "accuracy"}
CLAIM = {"non_inferior": "lora", "to": "full", "margin": "5%"}


def collapse(table: pd.DataFrame, *, task: str, method: str, seed: int) -> pd.DataFrame:
    """The run predicts class 1 for every example."""
    run = (table["task"] == task) & (table["method"] == method) & (table["seed"] == str(seed))
    labels = table[run & (table["metric"] == "label")]["value"].to_numpy().astype(int)
    rows = run_rows(task, method, seed, (labels == 1).astype(int), labels, seconds=50.0)
    rows = [
        {**row, "value": 1.0} if row["metric"] == "prediction" else row
        for row in rows
        if row["metric"] != "trainable_parameters"
    ]
    kept = table[~(run & table["metric"].isin(["correct", "label", "prediction", "accuracy", "training_seconds"]))]
    return pd.concat([kept, pd.DataFrame(rows)], ignore_index=True)


def with_majority(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the baseline that predicts each task's most frequent class."""
    parts = [table]
    for task in table["task"].unique():
        one = table[(table["task"] == task) & (table["method"] == "full") & (table["seed"] == "1")]
        labels = one[one["metric"] == "label"]["value"].to_numpy().astype(int)
        right = (labels == np.bincount(labels).argmax()).astype(int)
        rows = pd.DataFrame(run_rows(task, "baseline:majority", 0, right, labels, seconds=1.0)).assign(seed="")
        parts.append(rows[rows["split"] == "test"])
    return pd.concat(parts, ignore_index=True)


def analysed(table: pd.DataFrame, **hypotheses) -> Analysis:
    study = make_study(hypotheses=hypotheses or {"H1": CLAIM}, conclusion=None)
    return analyse_study(study, table, primary=PRIMARY)


def test_a_run_that_predicts_one_class_is_named_with_its_class():
    table = collapse(make_measurements(), task="mrpc", method="lora", seed=3)
    assert analysed(table).collapsed == [
        CollapsedRun("m", "mrpc", "lora", "3", "predicts class 1 for all 400 test examples")
    ]
    assert analysed(make_measurements()).collapsed == []


def test_a_run_no_better_than_the_majority_is_named_with_both_scores():
    table = with_majority(make_measurements(lora=0.85))
    bad = with_majority(make_measurements(lora=0.45))
    assert analysed(table).collapsed == []
    found = analysed(bad).collapsed
    assert {(run.task, run.method) for run in found} == {("mrpc", "lora"), ("rte", "lora")} and len(found) == 10
    assert found[0].why.startswith("its accuracy (0.4") and "does not beat the majority (0.5" in found[0].why


def test_verdicts_use_all_runs_and_the_rest_is_secondary():
    table = make_measurements(lora=0.84, noise=0.05)
    whole, one_gone = analysed(table).hypotheses[0], collapse(table, task="mrpc", method="lora", seed=3)
    result = analysed(one_gone).hypotheses[0]
    assert whole.verdict == "supported" and whole.without_collapsed is None
    assert result.verdict == "inconclusive" and result.average.estimate < whole.average.estimate - 0.01
    secondary = result.without_collapsed
    assert (secondary.num_left_out, secondary.verdict, secondary.unstable) == (1, "supported", [])
    assert secondary.average.estimate == pytest.approx(whole.average.estimate, abs=0.003)


def test_more_than_one_run_in_five_makes_an_arm_unstable():
    table = collapse(make_measurements(), task="mrpc", method="lora", seed=3)
    table = collapse(table, task="mrpc", method="lora", seed=4)
    (result,) = analysed(table).hypotheses
    assert result.without_collapsed.unstable == ["lora on mrpc with m: 2 of 5 runs collapsed"]


def test_a_collapsed_run_of_another_arm_is_not_held_against_a_claim():
    table = collapse(make_measurements(), task="mrpc", method="full", seed=3)
    result = analysed(table, H={"superior": "lora", "to": "lora"}).hypotheses[0]
    assert result.without_collapsed is None


def test_a_baseline_stands_in_hypotheses_comparisons_and_scores():
    analysis = analysed(with_majority(make_measurements()), H={"superior": "lora", "to": "majority"})
    (result,) = analysis.hypotheses
    assert result.verdict == "supported" and result.average.estimate == pytest.approx(0.34, abs=0.05)
    against = [row for row in analysis.comparisons if row.reference == "majority"]
    assert {row.task for row in against} == {"mrpc", "rte"} and all(len(row.mcnemar) == len(SEEDS) for row in against)
    (score, _) = analysis.baselines
    assert (score.method, score.metric, score.task) == ("majority", "accuracy", "mrpc")
    share = score.mean
    reach = 1.966 * np.sqrt(share * (1 - share) / 399)
    assert (score.interval.low, score.interval.high) == pytest.approx((share - reach, share + reach), abs=1e-4)


def test_a_baseline_that_was_not_measured_leaves_its_claim_open():
    (result,) = analysed(make_measurements(), H={"superior": "lora", "to": "majority"}).hypotheses
    assert result.verdict == "inconclusive" and "majority not measured yet" in result.parts[0].reason


def test_further_metrics_are_scored_and_compared_as_a_family_of_their_own():
    table = make_measurements()
    f1 = [
        {**{name: run[name] for name in ("run", "model", "task", "method", "seed")}, "split": "test", "metric": "f1",
         "value": _f1(part), "unit": "fraction"}
        for run, part in _runs(table)
    ]  # fmt: skip
    analysis = analysed(pd.concat([table, pd.DataFrame(f1)], ignore_index=True))
    assert {row.metric for row in analysis.scores} == {"accuracy"}
    assert {(row.task, row.metric) for row in analysis.other_scores} == {("mrpc", "f1"), ("rte", "f1")}
    assert {row.metric for row in analysis.comparisons} == {"accuracy"}
    assert [row.metric for row in analysis.other_comparisons] == ["f1", "f1"]
    assert Analysis.from_json(analysis.to_json()) == analysis


def _runs(table: pd.DataFrame):
    rows = table[table["metric"].isin(["label", "prediction"])]
    for _, part in rows.groupby("run"):
        yield part.iloc[0], part.pivot(index="example_id", columns="metric", values="value")


def _f1(part: pd.DataFrame) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(part["label"], part["prediction"]))
