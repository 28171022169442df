"""The analysis of a whole study from a table of measurements made up with known differences."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from made_up_study import make_measurements, make_study

from lorascope.errors import DataError, StudyError
from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis
from lorascope.stats.quality.multibootstrap import estimate_difference, mean_differences

PRIMARY = {"mrpc": "f1", "rte": "accuracy"}


def test_equal_arms_are_non_inferior_and_a_halved_cost_is_lower():
    analysis = analyse_study(make_study(), make_measurements(), primary=PRIMARY)
    assert [result.verdict for result in analysis.hypotheses] == ["supported", "supported"]
    assert analysis.conclusion is not None and analysis.conclusion["verdict"] == "supported"
    assert all(result.would_decide == "decided" for result in analysis.hypotheses)


def test_a_ten_point_loss_refutes_non_inferiority():
    analysis = analyse_study(make_study(), make_measurements(lora=0.70), primary=PRIMARY)
    assert analysis.hypotheses[0].verdict == "refuted"
    assert analysis.conclusion is not None and analysis.conclusion["verdict"] == "refuted"


def test_a_loss_of_just_the_margin_says_what_would_decide():
    analysis = analyse_study(make_study(), make_measurements(lora=0.80), primary=PRIMARY)
    assert analysis.hypotheses[0].verdict == "inconclusive"
    assert "test examples" in analysis.hypotheses[0].would_decide


def test_the_analysis_survives_json():
    analysis = analyse_study(make_study(), make_measurements(), primary=PRIMARY)
    assert Analysis.from_json(json.loads(json.dumps(analysis.to_json(), allow_nan=False))) == analysis
    other = {**analysis.to_json(), "scores": [{"of": "another version"}]}
    with pytest.raises(TypeError, match="of"):
        Analysis.from_json(other)


def test_swapping_the_arms_flips_the_sign_of_every_difference():
    table = make_measurements(lora=0.80)
    there = analyse_study(make_study(), table, primary=PRIMARY).comparisons
    swapped = table.assign(method=table["method"].map({"full": "lora", "lora": "full"}))
    back = analyse_study(make_study(), swapped, primary=PRIMARY).comparisons
    for one, other in zip(there, back, strict=True):
        assert one.difference.estimate == pytest.approx(-other.difference.estimate)
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.p_value == pytest.approx(other.p_value)
        assert [(t.b, t.c) for t in one.mcnemar] == [(t.c, t.b) for t in other.mcnemar]


def test_the_order_of_the_rows_does_not_matter():
    table = make_measurements()
    shuffled = table.sample(frac=1, random_state=1)
    assert analyse_study(make_study(), table, primary=PRIMARY) == analyse_study(make_study(), shuffled, primary=PRIMARY)


def test_one_seed_decides_nothing_about_quality_or_time():
    table = make_measurements(seeds=(1,))
    analysis = analyse_study(make_study(seeds=[1]), table, primary=PRIMARY)
    assert [result.verdict for result in analysis.hypotheses] == ["inconclusive", "inconclusive"]
    assert "one seed" in analysis.hypotheses[0].reason
    assert analysis.comparisons[0].p_value is None and analysis.comparisons[0].mcnemar
    assert any("One seed" in note for note in analysis.notes)


def test_a_count_that_no_seed_changes_is_decided_by_one_seed():
    study = make_study(
        seeds=[1], conclusion=None,
        hypotheses={"P": {"lower": "lora", "than": "full", "on": "trainable_parameters", "by": "50%"}},
    )  # fmt: skip
    assert analyse_study(study, make_measurements(seeds=(1,)), primary=PRIMARY).hypotheses[0].verdict == "supported"


def test_missing_runs_are_noted_and_the_rest_compared_on_shared_seeds():
    table = make_measurements()
    table = table[~((table["method"] == "lora") & (table["seed"] == "3"))]
    analysis = analyse_study(make_study(), table, primary=PRIMARY)
    assert {comparison.num_seeds for comparison in analysis.comparisons} == {4}
    assert "lora on rte with m: 1 of 5 seeds missing (3)" in " ".join(analysis.notes)


def test_a_task_without_runs_keeps_every_open_but_not_refutation():
    only_mrpc = make_measurements(tasks=("mrpc",))
    assert analyse_study(make_study(), only_mrpc, primary=PRIMARY).hypotheses[0].verdict == "inconclusive"
    bad = make_measurements(tasks=("mrpc",), lora=0.70)
    assert analyse_study(make_study(), bad, primary=PRIMARY).hypotheses[0].verdict == "refuted"


def test_average_needs_every_task_and_weights_them_equally():
    hypotheses = {"H1": {"non_inferior": "lora", "to": "full", "margin": "5%", "over": "average"}}
    study = make_study(hypotheses=hypotheses, conclusion=None)
    result = analyse_study(study, make_measurements(), primary=PRIMARY).hypotheses[0]
    assert result.verdict == "supported" and result.average is not None
    parts = [part.estimate.estimate for part in result.parts if part.task != "*" and part.estimate]
    assert result.average.estimate == pytest.approx(np.mean(parts))
    missing = analyse_study(study, make_measurements(tasks=("rte",)), primary=PRIMARY).hypotheses[0]
    assert missing.verdict == "inconclusive" and "not every model and task" in missing.reason


def test_different_test_examples_are_an_error_naming_arms_and_counts():
    table = make_measurements(examples=100)
    table = table[~((table["method"] == "lora") & (table["task"] == "rte") & (table["example_id"] == "e7"))]
    with pytest.raises(DataError) as error:
        analyse_study(make_study(), table, primary=PRIMARY)
    assert error.value.message == (
        "arms on rte were scored on different test examples: full with m on 100, lora with m on 99, 99 in common"
    )


def test_one_seed_scored_on_fewer_examples_is_an_error():
    table = make_measurements(examples=100)
    gone = (
        (table["method"] == "lora") & (table["task"] == "rte") & (table["example_id"] == "e7") & (table["seed"] == "2")
    )
    with pytest.raises(DataError, match=r"not scored on the same examples by every seed .*seed 2: 99"):
        analyse_study(make_study(), table[~gone], primary=PRIMARY)


def test_a_summary_that_contradicts_its_examples_is_an_error():
    table = make_measurements(examples=100)
    table.loc[(table["metric"] == "accuracy") & (table["seed"] == "2"), "value"] = 0.123
    with pytest.raises(DataError, match=r"seed 2: the summary says accuracy 0.123000"):
        analyse_study(make_study(), table, primary=PRIMARY)


def test_a_misspelt_method_in_a_hypothesis_names_the_nearest():
    study = make_study(hypotheses={"H": {"superior": "loar", "to": "full"}}, conclusion=None)
    with pytest.raises(StudyError, match="Did you mean 'lora'"):
        analyse_study(study, make_measurements(examples=50), primary=PRIMARY)


def test_permutation_is_withheld_below_six_seeds():
    comparison = analyse_study(make_study(), make_measurements(), primary=PRIMARY).comparisons[0]
    assert comparison.permutation_p is None
    assert (comparison.permutation_floor, comparison.seeds_needed) == (0.0625, 6)


def test_anova_has_both_effects_and_their_interaction():
    analysis = analyse_study(make_study(), make_measurements(lora=0.7), primary={"mrpc": "accuracy", "rte": "accuracy"})
    assert analysis.anova is not None
    effects = {row["term"]: row for row in analysis.anova if row["kind"] == "effect"}
    assert set(effects) == {"method", "task", "method x task"}
    assert effects["method"]["partial_eta_squared"] > 0.9


def test_seeds_that_tasks_share_widen_the_average_of_quality_and_cost():
    study = make_study(
        tasks=[{"name": "mrpc"}, {"name": "rte"}],
        hypotheses={
            "H1": {"non_inferior": "lora", "to": "full", "margin": "5%", "over": "average"},
            "H2": {"lower": "lora", "than": "full", "on": "training_seconds", "by": "20%", "over": "average"},
        },
        conclusion=None,
    )
    one = make_measurements(tasks=("mrpc",), noise=2.0)
    table = pd.concat([one, one.assign(task="rte", run=one["run"].str.replace("mrpc", "rte"))])
    analysed = {name: analyse_study(study, table, primary=PRIMARY, seeding=name) for name in ("shared", "derived")}
    for shared, derived in zip(*(analysis.hypotheses for analysis in analysed.values()), strict=True):
        assert shared.average.estimate == pytest.approx(derived.average.estimate)
        assert shared.average.high - shared.average.low > 1.2 * (derived.average.high - derived.average.low)


def test_an_interval_is_never_narrower_than_with_the_models_fixed():
    """Three seeds that score alike by chance, though each of them is scored on its own noise."""
    generator = np.random.default_rng(3)
    rights = [generator.permuted(np.repeat([1.0, 0.0], [240, 60])) for _ in range(6)]
    differences = mean_differences(np.array(rights[:3]), np.array(rights[3:]))
    assert differences.values == pytest.approx([0.0, 0.0, 0.0])
    estimate = estimate_difference(differences)
    fixed = float((differences.deviations @ differences.deviations.T).mean())
    assert estimate.variance == pytest.approx(fixed, rel=0.2) and estimate.variance >= 0.99 * fixed
    interval = estimate.interval(0.95)
    assert interval.high >= 1.96 * np.sqrt(fixed)
