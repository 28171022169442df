"""Hypotheses about the overhead of serving: verdicts by hand, what they rest on, and what leaves them open."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_study import make_measurements, make_study
from scipy import stats
from served_fixture import MODEL, served_frame, served_gates
from served_rows import rows

from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.stats.serving.analyse import analyse_serving
from lorascope.stats.serving.analysis import ServingAnalysis
from lorascope.stats.serving.evidence import metric_of, overhead_evidence
from lorascope.stats.verdicts import NOTHING, judge
from lorascope.study.hypothesis import Overhead
from lorascope.study.spec import Study

NOISE = np.array([-0.02, 0.01, 0.0, -0.01, 0.02])


def study_with(hypothesis: dict[str, Any], *, models: tuple[str, ...] = ("m",)) -> Study:
    return Study.model_validate(
        {"name": "s", "question": "?", "models": [{"name": m, "source": {"path": "."}} for m in models], "tasks": ["mrpc"],
         "methods": ["full", "lora"], "hypotheses": {"H2": hypothesis}}
    )  # fmt: skip


def verdict_of(serving: ServingAnalysis | None, *, models: tuple[str, ...] = ("m",), **given):
    hypothesis = {"overhead": "adapters-4", "over": "merged", "on": "latency_p95", "at_most": "30%", **given}
    study = study_with(hypothesis, models=models)
    declared = study.hypotheses["H2"]
    assert isinstance(declared, Overhead)
    parts, average = overhead_evidence(study, declared, serving)
    return judge(
        "H2",
        hypothesis_test(declared),
        metric=declared.on,
        parts=parts,
        average=average,
        over=declared.at,
        alpha=0.05,
    )


def measured(overheads: dict[float, float], *, noise: np.ndarray = NOISE, gates: list | None = None, **keys):
    """merged at 100 ms in every repeat, adapters-4 dearer by so much at each batch size."""
    found: list[dict] = []
    for level, overhead in overheads.items():
        found += rows("merged", [100.0] * len(noise), level=level, **keys)
        found += rows("adapters-4", list(100 * (1 + overhead) * np.exp(noise)), level=level, **keys)
    return analyse_serving(pd.DataFrame(found), gates=gates or [])


def test_an_overhead_below_the_bound_at_every_batch_is_supported():
    result, p = verdict_of(measured({1.0: 0.2, 4.0: 0.1}))
    assert result.verdict == "supported"
    assert (
        result.claim
        == "adapters-4 costs at most 30% more p95 latency than merged at every model, workload and batch size"
    )
    assert [part.task for part in result.parts] == ["generation, batch 1", "generation, batch 4", "*"]
    assert "m, generation, batch 1, the weakest part" in result.reason
    assert (result.num_seeds, result.num_examples) == (5, 0), "n is repeats; requests are no replication"
    assert result.would_decide == "decided"
    logs = math.log(1.2) + NOISE
    error = NOISE.std(ddof=1) / math.sqrt(5)
    assert p.support == pytest.approx(stats.t.cdf((logs.mean() - math.log(1.3)) / error, 4))
    interval = result.parts[0].estimate
    assert interval is not None and interval.confidence == 0.90
    assert interval.high == pytest.approx(math.exp(logs.mean() + stats.t.ppf(0.95, 4) * error))


def test_one_batch_above_the_bound_refutes_the_claim_for_every_batch():
    result, p = verdict_of(measured({1.0: 0.8, 4.0: 0.1}))
    assert result.verdict == "refuted" and p.support > 0.9
    assert result.reason == "m, generation, batch 1: no part of the 90% interval lies at or below 130% of merged"


def test_refutation_is_corrected_over_the_parts():
    noise = NOISE * 5
    one, _ = verdict_of(measured({4.0: 0.48}, noise=noise))
    many, _ = verdict_of(measured({4.0: 0.48, **{float(2**k): 0.1 for k in range(5, 12)}}, noise=noise))
    assert one.verdict == "refuted" and many.verdict == "inconclusive"


def test_an_interval_across_the_bound_says_what_would_decide():
    result, _ = verdict_of(measured({4.0: 0.26}, noise=3 * NOISE))
    assert result.verdict == "inconclusive"
    assert "only part of the 90% interval lies at or below 130% of merged" in result.reason
    assert result.would_decide.startswith("m, generation, batch 4: about ")
    assert "repeats (80% power, if the estimate is the truth); now 5 repeats" in result.would_decide
    assert "seed" not in result.would_decide and "example" not in result.would_decide


def test_parts_are_averaged_within_repeats_before_the_variance():
    """Two batches whose noise cancels within each repeat: the average is known exactly."""
    found = []
    for level, sign in ((1.0, 1), (4.0, -1)):
        found += rows("merged", [100.0] * 5, level=level)
        found += rows("adapters-4", list(120 * np.exp(sign * 5 * NOISE + NOISE / 1000)), level=level)
    result, p = verdict_of(analyse_serving(pd.DataFrame(found), gates=[]), at="average")
    assert result.verdict == "supported" and p.support < 1e-6
    assert result.average is not None and result.average.estimate == pytest.approx(1.2)
    assert result.claim.endswith("on average over models, workloads and batch sizes")


def test_models_are_averaged_as_independent():
    frames = [served_frame(model=name, repeats=5, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    serving = analyse_serving(pd.concat(frames), gates=[])
    result, _ = verdict_of(serving, models=("a", "b"), at="average", at_most="60%")
    assert result.verdict == "supported" and len(result.parts) == 2 * 2 * 5 + 1


def test_throughput_is_a_claim_about_the_time_a_token_takes():
    merged = rows("merged", [300.0, 303.0, 297.0], metric="tokens_per_second")
    adapters = rows("adapters-4", [150.0, 151.0, 149.0], metric="tokens_per_second")
    result, _ = verdict_of(analyse_serving(pd.DataFrame(merged + adapters), gates=[]), on="tokens_per_second")
    assert result.verdict == "refuted" and result.average and result.average.estimate == pytest.approx(2.0, rel=0.01)
    assert "30% more time per token" in result.claim


def test_two_repeats_decide_nothing():
    result, p = verdict_of(measured({4.0: 0.05}, noise=NOISE[:2]))
    assert (result.verdict, p) == ("inconclusive", NOTHING)
    assert result.reason == "m, generation, batch 4: 2 repeats: an interval takes at least 3"
    assert result.would_decide == "m, generation, batch 4: at least 3 repeats of both arms"


def test_an_arm_with_a_failed_gate_leaves_the_claim_open_with_the_reason():
    serving = analyse_serving(served_frame(), gates=served_gates(failing=["adapters-4"]))
    result, p = verdict_of(serving, models=(MODEL,))
    assert (result.verdict, p) == ("inconclusive", NOTHING)
    assert "adapters-4 failed its equivalence gate: token match" in "; ".join(part.reason for part in result.parts)
    assert all(part.estimate is None for part in result.parts)


def test_a_batch_that_one_arm_lacks_leaves_the_claim_open():
    frame = pd.DataFrame(
        [*rows("merged", [1.0, 1.1, 1.2]), *rows("adapters-4", [1.0, 1.1, 1.21]), *rows("merged", [1.0] * 3, level=8.0)]
    )
    result, _ = verdict_of(analyse_serving(frame, gates=[]))
    assert result.verdict == "inconclusive" and "m, generation, batch 8: adapters-4 was not measured" in result.reason


def test_a_study_that_did_not_serve_leaves_the_claim_open():
    for serving in (None, analyse_serving(served_frame(), gates=[])):
        result, p = verdict_of(serving, models=("m",))
        assert (result.verdict, p) == ("inconclusive", NOTHING)


def test_only_greedy_default_round_robin_closed_loop_figures_decide():
    dear = {"setting": "tuned"}, {"sampling": "sampled"}, {"choice": "zipf"}, {"loop": "rate"}
    extra = [
        row for keys in dear for row in rows("adapters-4", [900.0] * 3, **keys) + rows("merged", [1.0] * 3, **keys)
    ]
    frame = pd.DataFrame([*extra, *rows("merged", [100.0, 101.0, 99.0]), *rows("adapters-4", [110.0, 111.0, 109.0])])
    result, _ = verdict_of(analyse_serving(frame, gates=[]))
    assert result.verdict == "supported" and len(result.parts) == 1


def test_metrics_of_hypotheses_are_those_of_the_table():
    assert [metric_of(on) for on in ("latency_p95", "ttft_p50", "tokens_per_second", "requests_per_second")] == [
        "latency_ms_p95", "ttft_ms_p50", "tokens_per_second", "requests_per_second",
    ]  # fmt: skip


def test_a_whole_study_judges_it_within_its_family_and_its_conclusion():
    hypotheses = {
        "H1": {"lower": "lora", "than": "full", "on": "training_seconds", "by": "20%"},
        "H2": {"overhead": "adapters-4", "over": "merged", "on": "latency_p95", "at_most": "30%"},
    }
    study = make_study(hypotheses=hypotheses, conclusion="H1 and H2")
    for overhead, verdict in ((0.1, "supported"), (0.6, "refuted")):
        serving = measured({1.0: overhead, 4.0: 0.1})
        analysis = analyse_study(
            study, make_measurements(), primary={"mrpc": "accuracy", "rte": "accuracy"}, serving=serving
        )
        assert analysis.conclusion is not None and analysis.conclusion["values"] == {"H1": "supported", "H2": verdict}
        assert analysis.conclusion["verdict"] == verdict
        assert analysis.serving is serving and analysis.hypotheses[1].p_holm is not None
        assert Analysis.from_json(json.loads(json.dumps(analysis.to_json()))) == analysis
