"""Statistics of drift on made-up runs: closed forms, ratios, verdicts on "drifts less", and what is refused in words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lorascope.errors import DataError, StudyError
from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis, DriftAnalysis
from lorascope.stats.correlation import partial_spearman, spearman
from lorascope.stats.drift.draws import read_draws, write_draws
from lorascope.stats.drift.runs import DriftDraws, DriftSample, average_over_models, estimate_log_ratio, estimate_mean
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.stats.measurements import validate_measurements
from lorascope.stats.quality.multibootstrap import BootstrapEstimate
from lorascope.stats.quality.paired import hedges_g
from lorascope.stats.verdicts import adjust
from lorascope.study.hypothesis import Lower
from lorascope.study.loading.load import load_study
from lorascope.study.spec import Study

SEEDS = ("1", "2", "3", "4", "5")
POINTS = (*(("residual", layer) for layer in range(7)), *(("attention", layer) for layer in range(1, 7)))
NUM_EXAMPLES, NUM_DRAWS = 400, 200
H1B = {"lower": "lora", "than": "full", "on": "drift", "by": "20%", "over": "every"}
PRIMARY = {"mrpc": "accuracy", "rte": "accuracy"}


def make_study(**changes) -> Study:
    fields = {
        "name": "s",
        "question": "?",
        "models": [{"name": "m"}],
        "tasks": [{"name": "mrpc"}, {"name": "rte"}],
        "methods": ["full", "lora"],
        "seeds": [int(seed) for seed in SEEDS],
        "measure": {"drift": {}},
        "hypotheses": {"H1b": H1B},
    }
    return Study.model_validate({**fields, **changes})


def make_arm(level: float, *, seeds=SEEDS, seed_sd: float = 0.05, example_sd: float = 0.02, index: int = 0):
    """(values [seeds, points], draws [draws, seeds, points]); draws of one `index` share nothing, and all arms share the
    resamples' common part."""
    own, common = np.random.default_rng(100 + index), np.random.default_rng(7)
    shape = np.linspace(0.5, 1.5, len(POINTS))
    values = level * shape * np.exp(own.normal(0, seed_sd, (len(seeds), 1)))
    wobble = common.normal(0, example_sd, (NUM_DRAWS, 1, 1)) + own.normal(0, example_sd, (NUM_DRAWS, len(seeds), 1))
    return values, values * np.exp(wobble)


def blocks(array: np.ndarray) -> np.ndarray:
    """The mean over layers 1..L of the residual stream; the last axis is points."""
    return array[..., [i for i, (site, layer) in enumerate(POINTS) if site == "residual" and layer > 0]].mean(-1)


def make_rows(task: str, method: str, seeds, values: np.ndarray, *, model: str = "m") -> list[dict]:
    rows = []
    for seed, drifts in zip(seeds, values, strict=True):
        run = {"run": f"{model}-{task}-{method}-{seed}", "model": model, "task": task, "method": method, "seed": seed}
        probe = {**run, "split": "probe", "metric": "drift", "unit": "1"}
        rows += [{**probe, "site": s, "layer": layer, "value": v} for (s, layer), v in zip(POINTS, drifts, strict=True)]
        rows.append({**probe, "site": "residual", "value": float(blocks(drifts))})
        rows.append({**run, "split": "probe:other", "site": "residual", "layer": 1, "metric": "drift", "value": 9.0})
        rows.append({**run, "split": "test", "metric": "accuracy", "value": 0.8 + 0.01 * int(seed)})
        rows.append({**run, "metric": "relative_update_norm", "value": 0.1 * int(seed) * (1 + (method == "full"))})
        rows.append({**run, "metric": "forgetting", "value": 0.5})
    return [{"unit": "1", **row} for row in rows]


def make_drift(lora: float = 0.01, full: float = 0.1, *, tasks=("mrpc", "rte"), models=("m",), seeds=SEEDS, **arm):
    """(table, draws) of a study in which lora and full drift about so much."""
    rows, draws = [], {}
    for model in models:
        for task in tasks:
            for method, level in (("lora", lora), ("full", full)):
                values, drawn = make_arm(level, seeds=seeds, index=len(draws), **arm)
                rows += make_rows(task, method, seeds, values, model=model)
                draws[model, task, method] = make_draws(seeds, drawn)
    return pd.DataFrame(rows), draws


def make_draws(seeds, drawn: np.ndarray) -> DriftDraws:
    sites, layers = zip(*POINTS, strict=True)
    return DriftDraws(tuple(seeds), sites, layers, drawn.astype(np.float32), blocks(drawn), NUM_EXAMPLES)


def analyse(made, *, study: Study | None = None, **options) -> Analysis:
    table, draws = made
    return analyse_study(study or make_study(), table, primary=PRIMARY, drift=draws, **options)


def drift_of(made, **options) -> DriftAnalysis:
    found = analyse(made, **options).drift
    assert found is not None
    return found


def sample(method: str, values, draws) -> DriftSample:
    values = np.asarray(values, float)
    return DriftSample(method, SEEDS[: len(values)], values, np.asarray(draws, float), NUM_EXAMPLES)


# --------------------------------------------------------------------------------------------------------- estimates


def test_without_variance_over_examples_drift_has_a_t_interval():
    values = np.array([0.1, 0.2, 0.4])
    estimate = estimate_mean(sample("lora", values, np.tile(values, (50, 1))))
    interval = estimate.interval(0.95)
    reach = stats.t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_without_variance_over_seeds_drift_has_what_seeds_share():
    shared = np.random.default_rng(0).normal(0.3, 0.05, 500)
    estimate = estimate_mean(sample("lora", [0.3, 0.3, 0.3], np.tile(shared[:, None], (1, 3))))
    assert estimate.variance == pytest.approx(shared.var(ddof=1))
    assert estimate.df == pytest.approx(NUM_EXAMPLES - 1)


def test_what_the_probe_adds_to_each_seed_on_its_own_is_counted_once():
    """Var = s^2 / n + c: independent wobbles of three runs are already in s^2, the covariance between them is not."""
    noise = np.random.default_rng(1).normal(size=(300, 4))
    uncorrelated = np.linalg.qr(noise - noise.mean(0))[0] * math.sqrt(299)  # each of variance 1
    values = np.array([0.2, 0.3, 0.25])
    estimate = estimate_mean(sample("lora", values, values + 0.02 * uncorrelated[:, :1] + 0.03 * uncorrelated[:, 1:]))
    assert estimate.variance == pytest.approx(values.var(ddof=1) / 3 + 0.02**2)
    assert estimate.interaction_variance == pytest.approx(0.03**2)
    assert estimate.shared_variance == pytest.approx(0.02**2)


def test_two_seeds_have_one_degree_of_freedom():
    values = np.array([0.1, 0.3])
    estimate = estimate_mean(sample("lora", values, np.tile(values, (50, 1))))
    assert estimate.df == pytest.approx(1)
    assert estimate.interval(0.95).high == pytest.approx(0.2 + stats.t.ppf(0.975, 1) * 0.1)


def test_a_mean_of_runs_that_are_all_alike_is_exact():
    estimate = estimate_mean(sample("lora", [0.0, 0.0], np.zeros((10, 2))))
    assert (estimate.mean, estimate.interval(0.95).high) == (0.0, 0.0)


def test_the_ratio_is_that_of_geometric_means_paired_by_seed():
    full = np.array([0.1, 0.2, 0.8])
    estimate, reason = estimate_log_ratio(
        sample("lora", full / 4, np.tile(full / 4, (20, 1))), sample("full", full, np.tile(full, (20, 1)))
    )
    assert estimate is not None and reason == ""
    assert math.exp(estimate.mean) == pytest.approx(0.25)
    assert estimate.variance == pytest.approx(0, abs=1e-30)


def test_resamples_that_move_both_arms_alike_bring_the_ratio_no_variance():
    wobble = np.exp(np.random.default_rng(2).normal(0, 0.3, (300, 1)))
    lora, full = np.array([0.02, 0.03]), np.array([0.1, 0.1])
    estimate, _ = estimate_log_ratio(sample("lora", lora, lora * wobble), sample("full", full, full * wobble))
    assert estimate is not None and estimate.shared_variance == pytest.approx(0, abs=1e-25)
    assert estimate.variance == pytest.approx(np.log(lora / full).var(ddof=1) / 2)


def test_arms_are_paired_on_the_seeds_that_both_have():
    full = DriftSample("full", ("2", "3", "9"), np.array([0.2, 0.4, 5.0]), np.full((10, 3), 0.3), NUM_EXAMPLES)
    lora = DriftSample("lora", ("1", "2", "3"), np.array([7.0, 0.1, 0.2]), np.full((10, 3), 0.1), NUM_EXAMPLES)
    estimate, _ = estimate_log_ratio(lora, full)
    assert estimate is not None and (estimate.num_seeds, math.exp(estimate.mean)) == (2, pytest.approx(0.5))
    assert estimate_log_ratio(lora.at(("1",)), full) == (None, "the two arms share no seed")


@pytest.mark.parametrize("drift", [0.0, -0.001, 4e-12])
def test_a_run_that_did_not_drift_has_no_ratio_and_is_named(drift):
    still = sample("lora", [0.1, drift], np.full((10, 2), 0.1))
    estimate, reason = estimate_log_ratio(still, sample("full", [0.1, 0.2], np.full((10, 2), 0.1)))
    assert estimate is None
    assert reason == f"lora, seed 2, did not drift (estimated drift {drift:.2g}): no ratio has a meaning"


def test_a_drift_that_some_resamples_lose_has_no_ratio():
    draws = np.full((10, 2), 0.1)
    draws[3, 0] = draws[4, 0] = -0.01
    estimate, reason = estimate_log_ratio(
        sample("lora", [0.1, 0.1], np.ones((10, 2))), sample("full", [0.1, 0.1], draws)
    )
    assert estimate is None
    assert reason == (
        "the drift of full, seed 1, is 0 or less in 2 of 10 resamples of the examples: too close to 0 for a ratio"
    )


def test_models_of_a_task_are_averaged_as_if_their_examples_moved_as_one():
    one = BootstrapEstimate(-1.0, 0.05, 8.0, 0.1, 0.05, 0.02, 5, 400)
    other = BootstrapEstimate(-3.0, 0.13, 6.0, 0.3, 0.1, 0.08, 5, 400)
    average = average_over_models([one, other])
    assert average.mean == -2.0
    assert average.shared_variance == pytest.approx(((math.sqrt(0.02) + math.sqrt(0.08)) / 2) ** 2)
    assert average.variance == pytest.approx((0.03 + 0.05) / 4 + average.shared_variance)
    assert average_over_models([one, one]).variance > one.shared_variance
    assert average_over_models([one]) == one


# ------------------------------------------------------------------------------------------------- profiles and ratios


def test_profiles_are_means_over_seeds_for_every_arm_site_and_layer():
    made = make_drift()
    drift = drift_of(made)
    assert len(drift.profiles) == 2 * 2 * len(POINTS)
    assert (drift.num_draws, drift.num_examples) == (NUM_DRAWS, {"mrpc": NUM_EXAMPLES, "rte": NUM_EXAMPLES})
    profile = next(p for p in drift.profiles if (p.task, p.method, p.site, p.layer) == ("rte", "lora", "attention", 2))
    table = made[0]
    rows = table[(table["task"] == "rte") & (table["method"] == "lora") & (table["site"] == "attention")]
    assert profile.drift.estimate == pytest.approx(rows[rows["layer"] == 2]["value"].mean())
    assert profile.drift.low < profile.drift.estimate < profile.drift.high
    assert (profile.num_seeds, profile.drift.method) == (5, "t over seeds and examples")


def test_one_seed_is_marked_and_its_interval_is_over_examples_only():
    drift = drift_of(make_drift(seeds=("1",)), study=make_study(seeds=[1]))
    assert {p.drift.method for p in drift.profiles} == {"bootstrap over examples, this seed only"}
    assert all(p.drift.low < p.drift.estimate < p.drift.high for p in drift.profiles)
    ratio = drift.reductions[0]
    assert ratio.ratio is not None and ratio.ratio.method == "bootstrap over examples, this seed only, log scale"
    assert (ratio.p_value, ratio.p_holm, ratio.num_seeds) == (None, None, 1)


def test_ratios_of_known_runs_overall_by_third_and_by_layer():
    drift = drift_of(make_drift(lora=0.01, full=0.1, seed_sd=0.0))
    for found in drift.reductions:
        assert found.ratio is not None and found.ratio.estimate == pytest.approx(0.1), found
        assert (found.method, found.reference, found.num_seeds) == ("lora", "full", 5)
    parts = [(r.site, r.part, r.layer) for r in drift.reductions if r.task == "*"]
    means = ("overall", "early", "middle", "late")
    assert parts == [
        *(("residual", part, None) for part in means), *(("residual", "layer", i) for i in range(7)),
        *(("attention", part, None) for part in means), *(("attention", "layer", i) for i in range(1, 7)),
    ]  # fmt: skip


def test_means_over_the_residual_stream_leave_the_embedding_out():
    values, drawn = make_arm(0.1, seed_sd=0.0)
    lora = values * np.where([layer == 0 for _, layer in POINTS], 1e-3, 0.5)
    table = pd.DataFrame([*make_rows("mrpc", "full", SEEDS, values), *make_rows("mrpc", "lora", SEEDS, lora)])
    draws = {("m", "mrpc", "full"): make_draws(SEEDS, drawn), ("m", "mrpc", "lora"): make_draws(SEEDS, drawn / 2)}
    drift = drift_of((table, draws), study=make_study(tasks=[{"name": "mrpc"}]))
    means = [r.ratio for r in drift.reductions if r.site == "residual" and r.part != "layer"]
    assert [ratio.estimate for ratio in means if ratio] == pytest.approx([0.5] * 4)


def test_the_effect_size_of_drift_is_that_of_the_log_ratios():
    table, draws = make_drift()
    reductions = drift_of((table, draws)).reductions
    found = next(r for r in reductions if (r.task, r.site, r.part) == ("rte", "residual", "overall"))
    runs = table[(table["task"] == "rte") & (table["split"] == "probe") & table["layer"].isna()]
    drifts = {m: runs[runs["method"] == m].sort_values("seed")["value"].to_numpy() for m in ("lora", "full")}
    expected = hedges_g(np.log(drifts["lora"] / drifts["full"]))
    assert found.hedges_g == expected and expected is not None and expected.estimate < 0
    assert {r.hedges_g for r in reductions if r.part == "layer" or r.task == "*"} == {None}


def test_single_layers_are_one_holm_family_for_each_task_and_site():
    reductions = drift_of(make_drift(lora=0.09, full=0.1)).reductions
    for task in ("mrpc", "rte", "*"):
        for site in ("residual", "attention"):
            family = [r for r in reductions if (r.task, r.site, r.part) == (task, site, "layer")]
            holm, _ = adjust([r.p_value for r in family if r.p_value is not None])
            assert [r.p_holm for r in family] == pytest.approx(holm)
            assert all(r.p_holm > r.p_value for r in family if r.p_holm and r.p_value and r.p_holm < 1)
    assert {r.p_holm for r in reductions if r.part != "layer"} == {None}


def test_corrected_p_values_are_those_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(8).random(30).round(1) ** 3
    for found, method in zip(adjust(p_values.tolist()), ("holm", "bonferroni"), strict=True):
        assert found == pytest.approx(multipletests(p_values, method=method)[1])
    assert adjust([]) == ([], [])


def test_an_untouched_layer_has_a_reason_and_is_not_in_the_family():
    table, draws = make_drift()
    embedding = (table["method"] == "lora") & (table["layer"] == 0) & (table["task"] == "rte")
    table.loc[embedding, "value"] = 0.0
    reductions = drift_of((table, draws)).reductions
    still = [r for r in reductions if r.ratio is None]
    assert [(r.task, r.site, r.layer) for r in still] == [("rte", "residual", 0), ("*", "residual", 0)]
    assert still[0].reason.startswith("lora, seed 1, did not drift") and still[1].reason == "no ratio on rte"
    assert all((r.p_value, r.p_holm, r.num_seeds) == (None, None, 0) for r in still)
    family = [r.p_value for r in reductions if (r.task, r.site, r.part) == ("rte", "residual", "layer") and r.ratio]
    assert len(family) == 6


def test_the_average_over_tasks_waits_for_every_task():
    reductions = drift_of(make_drift(tasks=("mrpc",))).reductions
    assert {r.reason for r in reductions if r.task == "*"} == {"no ratio on rte"}


def test_methods_are_compared_with_full_fine_tuning_and_as_hypotheses_say():
    study = make_study(
        methods=["full", "lora", {"kind": "lora", "name": "wide", "rank": 64}],
        hypotheses={"H": {**H1B, "than": "wide"}},
    )
    table, draws = make_drift()
    values, drawn = make_arm(0.05, index=9)
    for task in ("mrpc", "rte"):
        table = pd.concat([table, pd.DataFrame(make_rows(task, "wide", SEEDS, values))])
        draws["m", task, "wide"] = make_draws(SEEDS, drawn)
    pairs = dict.fromkeys((r.method, r.reference) for r in drift_of((table, draws), study=study).reductions)
    assert list(pairs) == [("lora", "full"), ("wide", "full"), ("lora", "wide")]


def test_a_study_without_drift_has_no_analysis_and_old_records_load():
    table, _ = make_drift()
    analysis = analyse((table[table["metric"] != "drift"], None))
    assert analysis.drift is None
    record = analysis.to_json()
    del record["drift"]
    assert Analysis.from_json(record) == analysis


def test_the_analysis_of_drift_survives_json():
    table, draws = make_drift()
    table.loc[(table["method"] == "lora") & (table["layer"] == 0), "value"] = 0.0
    analysis = analyse((table, draws))
    assert Analysis.from_json(json.loads(json.dumps(analysis.to_json(), allow_nan=False))) == analysis


def test_the_order_of_rows_and_draws_does_not_matter():
    table, draws = make_drift()
    turned = {
        key: replace(
            found, seeds=found.seeds[::-1], draws=found.draws[:, ::-1], summary=found.summary[:, ::-1]
        )
        for key, found in reversed(draws.items())
    }  # fmt: skip
    assert analyse((table, draws)) == analyse((table.sample(frac=1, random_state=0), turned))


# ------------------------------------------------------------------------------------------------------ what is refused


def broken(change) -> str:
    table, draws = make_drift()
    with pytest.raises(DataError) as error:
        analyse(change(table, draws))
    assert error.value.hint is not None and "run the study's drift steps again" in error.value.hint
    return error.value.message


def test_drift_without_its_draws_is_an_error():
    def change(table, draws):
        return table, {key: found for key, found in draws.items() if key != ("m", "rte", "lora")}

    assert broken(change) == (
        "lora on rte with m has drift but no draws of its examples, without which no interval can be given"
    )


def test_rows_and_draws_of_different_seeds_are_an_error():
    def change(table, draws):
        key = ("m", "mrpc", "full")
        seeds = ("1", "2", "3", "4", "6")
        return table, {**draws, key: replace(draws[key], seeds=seeds)}

    assert broken(change) == "full on mrpc with m has drift of seed 5, but its draws are of 1, 2, 3, 4, 6"


def test_rows_and_draws_of_different_layers_are_an_error():
    def change(table, draws):
        gone = (
            (table["site"] == "attention") & (table["layer"] == 3) & (table["seed"] == "2") & (table["task"] == "rte")
        )
        return table[~gone], draws

    assert broken(change) == "full on rte with m has rows and draws of different layers (seed 2: attention 3)"


def test_a_summary_that_is_not_the_mean_of_the_layers_is_an_error():
    def change(table, draws):
        summary = (table["metric"] == "drift") & table["layer"].isna() & (table["method"] == "full")
        table.loc[summary & (table["seed"] == "3"), "value"] *= 1.01
        return table, draws

    assert broken(change) == (
        "full on mrpc with m has no summary of its drift that is the mean over the residual stream's layers 1 to L"
    )


def test_two_drift_steps_of_one_run_are_an_error():
    def change(table, draws):
        again = table[(table["metric"] == "drift") & (table["method"] == "full") & (table["seed"] == "1")]
        return pd.concat([table, again.assign(run="other")]), draws

    assert broken(change) == "full on mrpc with m has two drifts of 1 residual 0"


def test_arms_probed_on_different_examples_are_an_error():
    def change(table, draws):
        key = ("m", "rte", "lora")
        return table, {**draws, key: replace(draws[key], num_examples=300)}

    message = broken(change)
    assert message.startswith("the drifts on rte with m are not of the same examples (")
    assert "full: 200 draws of 400 examples" in message and "lora: 200 draws of 300 examples" in message


# -------------------------------------------------------------------------------------------------------- hypotheses


def test_the_claim_is_a_sentence():
    claim = hypothesis_test(Lower(lower="lora", than="full", on="drift", by=0.2)).claim
    assert claim == "lora drifts at least 20% less from the base than full"


def test_a_tenth_of_the_drift_is_at_least_twenty_percent_less():
    result = analyse(make_drift(lora=0.01, full=0.1)).hypotheses[0]
    assert (result.verdict, result.would_decide) == ("supported", "decided")
    assert (result.metric, result.threshold, result.num_seeds) == ("drift", 0.8, 5)
    assert result.num_examples == 2 * NUM_EXAMPLES
    part = result.parts[0]
    assert part.estimate is not None and part.estimate.high < 0.8
    assert part.estimate.method == "t over seeds and examples, log scale"
    assert part.reason == "the whole 90% interval lies at or below 80% of full"


def test_as_much_drift_is_not_less():
    result = analyse(make_drift(lora=0.1, full=0.1)).hypotheses[0]
    assert result.verdict == "refuted"
    assert "no part of the 90% interval lies at or below 80% of full" in result.reason


def test_seeds_that_disagree_leave_it_open_and_more_seeds_would_decide():
    made = make_drift(lora=0.06, full=0.1, seed_sd=0.2, example_sd=1e-4)
    result = analyse(made).hypotheses[0]
    assert result.verdict == "inconclusive"
    assert "seeds (80% power" in result.would_decide
    assert "more examples cannot help: variance between seeds dominates" in result.would_decide
    assert "now 5 seeds and 400 probe examples" in result.would_decide


def test_a_small_probe_leaves_it_open_and_more_examples_would_decide():
    table, draws = make_drift(lora=0.07, full=0.1, seed_sd=0.001, example_sd=1e-4)
    wobble = np.exp(np.random.default_rng(3).normal(0, 0.3, (NUM_DRAWS, 1, 1)))
    for key in draws:
        if key[2] == "lora":
            drawn = draws[key].draws * wobble
            draws[key] = make_draws(SEEDS, drawn)
    result = analyse((table, draws)).hypotheses[0]
    assert result.verdict == "inconclusive"
    assert "probe examples (80% power" in result.would_decide
    assert "more seeds cannot help: there are too few probe examples" in result.would_decide


def test_one_seed_decides_nothing_about_drift():
    result = analyse(make_drift(seeds=("1",)), study=make_study(seeds=[1])).hypotheses[0]
    assert result.verdict == "inconclusive" and "one seed" in result.reason


def test_an_arm_that_failed_a_gate_decides_nothing_about_drift():
    broken_arms = {("m", "rte", "lora"): "fails the gate `beats majority`"}
    result = analyse(make_drift(), broken_arms=broken_arms).hypotheses[0]
    assert result.verdict == "inconclusive"
    assert "lora fails the gate `beats majority`" in result.reason
    assert "an arm that beats its baselines: search its learning rate (`search: {}`)" in result.would_decide


@pytest.mark.parametrize("over", ["every", "average"])
def test_an_arm_that_did_not_drift_decides_nothing_and_says_so(over):
    table, draws = make_drift()
    still = (table["metric"] == "drift") & (table["method"] == "lora") & (table["task"] == "mrpc")
    table.loc[still & (table["split"] == "probe"), "value"] = 0.0
    study = make_study(hypotheses={"H1b": {**H1B, "over": over}})
    result = analyse((table, draws), study=study).hypotheses[0]
    assert result.verdict == "inconclusive"
    assert "lora, seed 1, did not drift" in result.reason
    assert "a drift above 0 in every run" in result.would_decide


def test_drift_that_is_not_measured_yet_leaves_it_open():
    table, draws = make_drift()
    result = analyse((table[table["task"] != "rte"], draws)).hypotheses[0]
    assert result.verdict == "inconclusive"
    assert "m on rte: the drift of lora and full is not measured yet" in result.reason


def test_the_average_over_tasks_is_the_geometric_mean_of_their_ratios():
    study = make_study(hypotheses={"H1b": {**H1B, "over": "average"}})
    made = make_drift(lora=0.03)
    analysis = analyse(made, study=study)
    result = analysis.hypotheses[0]
    assert result.verdict == "supported" and result.average is not None and analysis.drift is not None
    overall = [r for r in analysis.drift.reductions if (r.site, r.part) == ("residual", "overall")]
    ratios = {r.task: r.ratio for r in overall if r.ratio is not None}
    assert result.average.estimate == pytest.approx(math.sqrt(ratios["mrpc"].estimate * ratios["rte"].estimate))
    assert result.average.estimate == pytest.approx(ratios["*"].estimate)
    assert ratios["*"].low < result.average.low < result.average.high < ratios["*"].high, "90% within 95%"


def test_seeds_that_tasks_share_are_averaged_over_tasks_first():
    """Both tasks start from the same numbers and move alike: two tasks then say no more about seeds than one."""
    study = make_study(hypotheses={"H1b": {**H1B, "over": "average"}})
    alone = make_study(hypotheses={"H1b": H1B}, tasks=[{"name": "mrpc"}])
    table, draws = make_drift(tasks=("mrpc",), seed_sd=0.3, example_sd=1e-6)
    table = pd.concat([table, table.assign(task="rte", run=table["run"] + "-rte")])
    draws = {**draws, **{(m, "rte", arm): found for (m, _, arm), found in draws.items()}}
    shared, derived = (analyse((table, draws), study=study, seeding=seeding) for seeding in ("shared", "derived"))
    one = analyse(make_drift(tasks=("mrpc",), seed_sd=0.3, example_sd=1e-6), study=alone)
    bounds = [a.hypotheses[0].average for a in (shared, derived, one)]
    assert bounds[0].low == pytest.approx(bounds[2].low) and bounds[0].high == pytest.approx(bounds[2].high)
    assert bounds[1].low > bounds[0].low and bounds[1].high < bounds[0].high
    overall = [
        next(r.ratio for r in a.drift.reductions if (r.task, r.part) == ("*", "overall")) for a in (shared, derived)
    ]
    assert overall[0].high > overall[1].high


def test_two_models_of_a_task_are_both_parts_of_the_claim():
    study = make_study(models=[{"name": "m"}, {"name": "n"}], hypotheses={"H1b": {**H1B, "over": "average"}})
    result = analyse(make_drift(models=("m", "n")), study=study).hypotheses[0]
    assert result.verdict == "supported"
    assert {(part.model, part.task) for part in result.parts} == {
        *((model, task) for model in "mn" for task in ("mrpc", "rte")), ("*", "*"),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- correlations


def test_spearman_has_the_bonett_wright_interval():
    generator = np.random.default_rng(4)
    x = generator.normal(size=40)
    y = x + generator.normal(size=40)
    found = spearman(x, y)
    rho = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    reach = stats.norm.ppf(0.975) * math.sqrt((1 + rho**2 / 2) / 37)
    assert found is not None and found.estimate == pytest.approx(rho)
    assert (found.low, found.high) == pytest.approx(
        (np.tanh(np.arctanh(rho) - reach), np.tanh(np.arctanh(rho) + reach))
    )


def test_a_perfect_order_has_a_finite_lower_limit_and_reaches_one():
    x = np.arange(8.0)
    up, down = spearman(x, x**3), spearman(x, -x)
    assert up is not None and (up.estimate, up.high) == (pytest.approx(1.0), 1.0) and 0 < up.low < 1
    assert down is not None and (down.estimate, down.low) == (pytest.approx(-1.0), -1.0)
    assert -down.high == pytest.approx(up.low)


def test_partial_spearman_removes_what_a_third_brings_to_both():
    generator = np.random.default_rng(5)
    cause = generator.normal(size=400)
    x, y = cause + 0.3 * generator.normal(size=400), cause + 0.3 * generator.normal(size=400)
    plain, partial = spearman(x, y), partial_spearman(x, y, given=cause)
    assert plain is not None and plain.low > 0.8
    assert partial is not None and partial.low < 0 < partial.high
    ranks = [stats.rankdata(values) for values in (x, y, cause)]
    residuals = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert partial.estimate == pytest.approx(np.corrcoef(*residuals)[0, 1])
    reach = stats.norm.ppf(0.975) * math.sqrt((1 + partial.estimate**2 / 2) / (400 - 4))
    assert np.arctanh(partial.high) - np.arctanh(partial.estimate) == pytest.approx(reach)


def test_correlations_that_cannot_be_estimated_are_none():
    x = np.arange(6.0)
    assert spearman(x[:3], x[:3]) is None and spearman(x, np.ones(6)) is None
    assert partial_spearman(x, x, given=x) is None and partial_spearman(x[:4], x[:4], given=x[:4] ** 2) is None


def test_drift_is_correlated_with_other_measures_over_all_runs():
    found = drift_of(make_drift()).correlations
    assert [(c.task, c.x, c.y) for c in found] == [
        (task, "drift", y) for task in ("mrpc", "rte") for y in ("quality", "weight_change", "forgetting")
    ]
    quality, change, forgetting = found[:3]
    assert {c.num_runs for c in found} == {10}
    assert quality.rho is not None and quality.partial is not None
    assert quality.note == "10 runs of 2 methods, taken as independent"
    assert change.rho is not None and change.partial is None
    assert forgetting.rho is None and "forgetting is the same in all runs" in forgetting.note


def test_few_runs_are_called_few_and_too_few_have_no_correlation():
    few = drift_of(make_drift(seeds=("1", "2", "3"))).correlations[0]
    assert few.rho is not None and "few, so the interval is rough" in few.note
    one = drift_of(make_drift(seeds=("1",))).correlations[0]
    assert one.rho is None and one.num_runs == 2
    assert "2 runs have both drift and quality; an interval takes 4" in one.note


def test_rows_of_references_and_of_other_probes_have_no_part():
    table, draws = make_drift()
    extra = table[(table["metric"] == "drift") & (table["method"] == "full")].assign(method="reference:other-examples")
    extra = extra.assign(run="step", seed="*").drop_duplicates(["run", "task", "site", "layer", "split"])
    assert analyse((pd.concat([table, extra]), draws)) == analyse((table, draws))
    assert len(validate_measurements(pd.concat([table, extra]))) == len(table) + len(extra)


# ------------------------------------------------------------------------------------------------ before anything runs

HYPOTHESIS = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc]
methods: [full, lora]
hypotheses:
  H1b: {lower: lora, than: full, on: drift, by: 20%}
"""


def error_of(text: str, folder: Path) -> str:
    path = folder / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_hypothesis_on_drift_that_nothing_measures_is_refused(tmp_path: Path):
    assert error_of(HYPOTHESIS, tmp_path) == (
        "study.yaml:7: hypotheses.H1b: it is about drift, which the study does not measure\n"
        "  hint: add `measure: {drift: {}}`"
    )


def test_a_hypothesis_on_drift_without_the_residual_stream_is_refused(tmp_path: Path):
    assert error_of(HYPOTHESIS + "measure: {drift: {sites: [mlp]}}\n", tmp_path) == (
        "study.yaml:7: hypotheses.H1b: it is about the drift of the residual stream, which `measure.drift.sites` leaves "
        "out\n  hint: add `residual` to `measure.drift.sites`"
    )


def test_a_hypothesis_on_drift_that_is_measured_loads(tmp_path: Path):
    path = tmp_path / "study.yaml"
    path.write_text(HYPOTHESIS + "measure: {drift: {examples: 100}}\n")
    assert load_study(path).hypotheses["H1b"].on == "drift"


def test_drift_is_no_quality(tmp_path: Path):
    text = HYPOTHESIS.replace("{lower: lora, than: full, on: drift, by: 20%}", "{superior: lora, to: full, on: drift}")
    assert "hypotheses.H1b: `drift` is not a quality metric" in error_of(text, tmp_path)


# ------------------------------------------------------------------------------------------------- other definitions


def make_robust(lora: float, full: float, *, elsewhere: float, unhealthy=()):
    """Drift by the decision token, and by a plain mean by which lora drifts `elsewhere` times as much; layers that are
    unhealthy by the mean."""
    rows, draws = [], {}
    for task in ("mrpc", "rte"):
        for method, level in (("lora", lora), ("full", full)):
            values, drawn = make_arm(level, index=len(draws))
            factor = elsewhere if method == "lora" else 1.0
            mine = pd.DataFrame(make_rows(task, method, SEEDS, values))
            theirs = pd.DataFrame(make_rows(task, method, SEEDS, factor * values))
            is_drift = (mine["metric"] == "drift") & (mine["split"] == "probe")
            theirs = theirs[is_drift & (theirs["site"] == "residual")]
            whole = theirs["layer"].isna()
            counted = [i for i, p in enumerate(POINTS) if p[0] == "residual" and p[1] > 0 and p not in unhealthy]
            theirs.loc[whole, "value"] = factor * values[:, counted].mean(1)
            rows += [
                mine.assign(pooling=is_drift.map({True: "decision-token", False: None})),
                theirs.assign(pooling="mean"),
            ]
            residual = [i for i, (site, _) in enumerate(POINTS) if site == "residual"]
            sites, layers = zip(*(POINTS[i] for i in residual), strict=True)
            by_mean = DriftDraws(
                SEEDS, sites, layers, factor * drawn[:, :, residual], factor * drawn[:, :, counted].mean(2), NUM_EXAMPLES,
                pooling="mean", unhealthy=frozenset(unhealthy),
            )  # fmt: skip
            draws["m", task, method] = replace(make_draws(SEEDS, drawn), pooling="decision-token", others=(by_mean,))
    return pd.concat(rows, ignore_index=True), draws


def test_the_primary_pooling_alone_decides_and_is_reported():
    found = analyse(make_robust(0.01, 0.1, elsewhere=50.0))
    plain = analyse(make_drift(0.01, 0.1))
    assert found.drift is not None and plain.drift is not None
    assert found.drift.profiles == plain.drift.profiles and found.drift.reductions == plain.drift.reductions
    assert found.drift.correlations == plain.drift.correlations
    assert replace(found.hypotheses[0], elsewhere=[]) == plain.hypotheses[0]
    assert plain.hypotheses[0].elsewhere == [] and plain.drift.robustness == []


def test_a_verdict_that_another_pooling_turns_says_so():
    (result,) = analyse(make_robust(0.01, 0.1, elsewhere=50.0)).hypotheses
    (other,) = result.elsewhere
    assert (result.verdict, other.pooling, other.verdict) == ("supported", "mean", "refuted")
    assert other.differs.startswith("refuted instead of supported; the ratio lies on the other side of 1 on average")
    (same,) = analyse(make_robust(0.01, 0.1, elsewhere=1.5)).hypotheses[0].elsewhere
    assert (same.verdict, same.differs) == ("supported", "")


def test_averages_leave_out_the_layers_that_are_unhealthy_by_their_pooling():
    unhealthy = (("residual", 2), ("residual", 3))
    made = make_robust(0.01, 0.1, elsewhere=1.0, unhealthy=unhealthy)
    rows = {(r.task, r.method, r.pooling, r.every_layer): r for r in drift_of(made).robustness}
    shape = np.linspace(0.5, 1.5, len(POINTS))
    token, mean, every = (
        rows["mrpc", "full", *which] for which in (("decision-token", False), ("mean", False), ("mean", True))
    )
    assert [(row.num_layers, row.num_all, row.is_primary) for row in (token, mean, every)] == [
        (6, 6, True), (4, 6, False), (6, 6, False),
    ]  # fmt: skip
    assert mean.drift.estimate / every.drift.estimate == pytest.approx(shape[[1, 4, 5, 6]].mean() / shape[1:7].mean())
    assert every.drift == token.drift and ("mrpc", "full", "decision-token", True) not in rows
    assert rows["*", "lora", "mean", True].ratio.estimate == pytest.approx(0.1, rel=0.2)
    assert [one.every_layer for one in analyse(made).hypotheses[0].elsewhere] == [False, True]


def test_where_no_layer_is_healthy_there_is_no_average_but_a_reason():
    unhealthy = frozenset(("residual", layer) for layer in range(1, 7))
    table, draws = make_drift()
    table = table[~((table["metric"] == "drift") & table["layer"].isna())]
    draws = {k: replace(d, unhealthy=unhealthy, summary=np.full(d.summary.shape, np.nan)) for k, d in draws.items()}
    found = analyse((table, draws))
    (result,) = found.hypotheses
    assert result.verdict == "inconclusive" and result.average is None
    assert all("all 6 layers of the residual stream have an effective rank below 3" in p.reason for p in result.parts)
    assert found.drift is not None
    assert {r.part for r in found.drift.reductions if r.site == "residual"} == {"layer"}
    assert {r.part for r in found.drift.reductions if r.site == "attention"} >= {"overall", "early"}


def test_an_analysis_with_other_definitions_survives_json():
    analysis = analyse(make_robust(0.01, 0.1, elsewhere=50.0, unhealthy=(("residual", 2),)))
    assert Analysis.from_json(json.loads(json.dumps(analysis.to_json()))) == analysis


def test_draws_by_several_poolings_survive_their_file(tmp_path):
    table, draws = make_robust(0.01, 0.1, elsewhere=50.0, unhealthy=(("residual", 2),))
    write_draws(tmp_path / "draws.npz", draws)
    assert analyse((table, read_draws(tmp_path / "draws.npz"))) == analyse((table, draws))
