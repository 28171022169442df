"""Serving as numbers: paired overheads by hand, the fit, switching, tuning, and what failing arms do."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from served_fixture import MODEL, served_facts, served_frame, served_gates, true_latency_ms
from served_rows import rows

from lorascope.stats.serving.analyse import analyse_serving
from lorascope.stats.serving.analysis import ServingAnalysis, ServingOverhead
from lorascope.stats.serving.repeats import BOOTSTRAP, OVER_REPEATS


def analysis_of(*parts: list[dict], **given) -> ServingAnalysis:
    return analyse_serving(pd.DataFrame([row for part in parts for row in part]), gates=given.pop("gates", []), **given)


def overhead(analysis: ServingAnalysis, **wanted) -> ServingOverhead:
    found = [o for o in analysis.overheads if all(getattr(o, key) == value for key, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_overhead_is_the_geometric_mean_of_ratios_within_repeats():
    merged, adapters = [100.0, 80.0, 125.0, 90.0], [150.0, 104.0, 200.0, 126.0]
    found = overhead(analysis_of(rows("merged", merged), rows("adapters-4", adapters)), arm="adapters-4")
    logs = np.log([1.5, 1.3, 1.6, 1.4])
    reach = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert found.estimate == pytest.approx(math.exp(logs.mean()))
    assert found.interval is not None and found.interval.method == OVER_REPEATS
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (math.exp(logs.mean() - reach), math.exp(logs.mean() + reach))
    )
    assert (found.median, found.mad) == pytest.approx((1.45, 0.1))
    assert found.bootstrap is not None and found.bootstrap.method == BOOTSTRAP
    assert 1.3 <= found.bootstrap.low < found.estimate < found.bootstrap.high <= 1.6
    assert found.bootstrap.low > found.interval.low, "percentiles of four repeats are narrower than t"


def test_less_throughput_is_a_dearer_arm():
    merged = rows("merged", [300.0, 310.0, 290.0], metric="tokens_per_second")
    adapters = rows("adapters-1", [150.0, 155.0, 145.0], metric="tokens_per_second")
    assert overhead(analysis_of(merged, adapters)).estimate == pytest.approx(2.0)


def test_repeats_that_one_arm_lacks_are_left_out_of_the_pairs_and_counted():
    analysis = analysis_of(rows("merged", [100.0, 100.0, 100.0, 900.0]), rows("adapters-4", [110.0, 120.0, 130.0]))
    found = overhead(analysis)
    assert (found.num_repeats, found.num_dropped) == (3, 1)
    assert found.estimate == pytest.approx((1.1 * 1.2 * 1.3) ** (1 / 3))


def test_two_repeats_have_an_estimate_but_no_interval_and_say_why():
    found = overhead(analysis_of(rows("merged", [100.0, 100.0]), rows("adapters-4", [110.0, 121.0])))
    assert found.interval is None and found.bootstrap is None
    assert found.estimate == pytest.approx(1.1 * math.sqrt(1.1))
    assert found.reason == "2 repeats: an interval takes at least 3"


def test_every_arm_but_the_base_is_compared_with_the_base():
    analysis = analysis_of(*(rows(arm, [1.0, 2.0, 3.0]) for arm in ("base", "merged", "adapters-4")))
    assert {(o.arm, o.reference) for o in analysis.overheads} == {
        ("merged", "base"), ("adapters-4", "base"), ("adapters-4", "merged"),
    }  # fmt: skip


def test_a_tuned_arm_is_compared_with_the_default_and_says_so():
    analysis = analysis_of(
        rows("merged", [10.0, 10.0, 10.1]), rows("adapters-4", [15.0, 15.0, 15.1]),
        rows("adapters-4", [12.0, 12.0, 12.1], setting="tuned"),
        rows("adapters-4", [14.0, 14.0, 14.1], choice="zipf"),
    )  # fmt: skip
    tuned = overhead(analysis, setting="tuned")
    assert tuned.reference_setting == "default" and tuned.estimate == pytest.approx(1.2, rel=0.01)
    assert overhead(analysis, choice="zipf").estimate == pytest.approx(1.4, rel=0.01)
    (gain,) = analysis.tuning
    assert gain.estimate == pytest.approx(1.25, rel=0.01), "default / tuned"


def test_a_cell_has_median_mad_and_an_interval_of_its_geometric_mean():
    analysis = analysis_of(rows("merged", [100.0, 80.0, 125.0]), rows("merged", [200.0] * 3, metric="num_requests"))
    (cell,) = analysis.cells
    assert (cell.median, cell.mad, cell.num_requests, cell.num_repeats) == (100.0, 20.0, 600, 3)
    assert cell.interval is not None and cell.interval.estimate == pytest.approx(100.0)
    assert cell.repeats == {"0": 100.0, "1": 80.0, "2": 125.0}


def test_an_arm_with_a_failing_gate_is_in_no_number_and_named():
    analysis = analyse_serving(served_frame(), gates=served_gates(failing=["adapters-4"]), facts=[])
    assert "adapters-4" not in {cell.arm for cell in analysis.cells} | {o.arm for o in analysis.overheads}
    assert not analysis.tuning and not analysis.switching
    assert {left.arm for left in analysis.left_out} == {"adapters-4"}
    assert "token match" in analysis.left_out[0].reason


def test_a_setting_with_a_failing_gate_takes_its_own_figures_only():
    gates = [{**gate, "setting": "tuned"} for gate in served_gates(failing=["adapters-4"])]
    analysis = analyse_serving(served_frame(), gates=gates, facts=[])
    settings = {cell.setting for cell in analysis.cells if cell.arm == "adapters-4"}
    assert settings == {"default", "switching"} and not analysis.tuning
    assert {(left.arm, left.setting) for left in analysis.left_out} == {("adapters-4", "tuned")}


def test_an_engine_that_failed_is_named_with_its_first_reason():
    facts = [
        *served_facts(),
        {"model": MODEL, "arm": "full", "repeat": 0, "workload": "generation", "text": "no memory"},
    ]
    analysis = analyse_serving(served_frame(), gates=[], facts=facts)
    assert [left.reason for left in analysis.left_out] == ["its engine failed in 1 process: no memory"]
    assert analysis.engines == ["vllm (vllm 0.32.0, torch 2.13.0) on CPU, 2 cores"]


def test_the_fit_finds_the_slopes_that_the_figures_were_made_with():
    analysis = analyse_serving(served_frame(repeats=10), gates=[])
    fit = next(r for r in analysis.regressions if (r.workload, r.metric) == ("generation", "latency_ms_p50"))
    assert fit.per_adapter and fit.per_doubling and fit.intercept and fit.r_squared
    assert fit.per_adapter.low < 0.04 < fit.per_adapter.high
    assert fit.per_doubling.low < -0.03 < fit.per_doubling.high
    assert fit.intercept.low < 0.25 < fit.intercept.high
    assert (fit.num_cells, fit.num_repeats) == (15, 10) and fit.r_squared > 0.5
    at = next(p for p in fit.points if p.num_adapters == 4.0 and p.level == 16.0)
    truth = true_latency_ms("adapters-4", 16) / true_latency_ms("merged", 16)
    assert at.ratio.low < truth < at.ratio.high


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"arms": ("merged", "adapters-4")}, "numbers of adapters"),
        ({"batches": (4,)}, "batch sizes"),
        ({"repeats": 2}, "2 repeats have every cell"),
    ],
)
def test_a_fit_that_the_cells_do_not_carry_is_none_with_a_reason(given, why):
    analysis = analyse_serving(served_frame(**given), gates=[])
    assert all(fit.per_adapter is None and why in fit.reason for fit in analysis.regressions)


def test_switching_is_a_ratio_to_the_resident_adapter_within_repeats():
    def probes(state: str, values: list[float]) -> list[dict]:
        keys = {"loop": "switch", "level": float("nan"), "choice": state, "setting": "switching"}
        return rows("adapters-4", values, metric="latency_ms", **keys)

    analysis = analysis_of(probes("resident", [10.0, 20.0, 40.0]), probes("disk", [30.0, 60.0, 121.0]))
    resident, disk = analysis.switching
    assert resident.ratio is None and resident.median_ms == 20.0
    assert disk.ratio is not None and disk.ratio.estimate == pytest.approx(3.0, rel=0.01)
    assert disk.ratio.high < 3.1, "the hour's luck is in both"


def test_the_analysis_survives_json():
    analysis = analyse_serving(served_frame(), gates=served_gates(), facts=served_facts())
    assert analysis.recommendations and analysis.traffic and analysis.one_machine and analysis.memory
    assert ServingAnalysis.from_json(json.loads(json.dumps(analysis.to_json()))) == analysis


def test_no_sentence_is_said_without_its_numbers():
    assert not analyse_serving(served_frame(arms=("base", "merged")), gates=[]).recommendations
    even = pd.concat(
        [
            served_frame(arms=("merged",), luck=0.1),
            served_frame(arms=("merged",), luck=0.1, seed=2).assign(arm="adapters-1"),
        ]
    )
    assert not analyse_serving(served_frame(repeats=2), gates=[]).recommendations, "two repeats carry no advice"
    assert not any("merge it" in r.text for r in analyse_serving(even, gates=[]).recommendations)
