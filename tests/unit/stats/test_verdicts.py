"""How parts and their average make one verdict, at one level, with the p-value of what is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorascope.stats.analysis import HypothesisResult
from lorascope.stats.hypotheses import Evidence, hypothesis_test
from lorascope.stats.serving.repeats import estimate_of_logs
from lorascope.stats.verdicts import AVERAGE, Sides, apply_family, judge
from lorascope.study.hypothesis import Overhead

CLAIM = Overhead(overhead="adapters-4", over="merged", on="latency_p95", at_most=0.3)
NOISE = np.array([-0.09, -0.03, 0.0, 0.04, 0.08])


def evidence(overhead: float, *, noise: np.ndarray = NOISE, task: str = "batch 1", usable: bool = True) -> Evidence:
    return Evidence("m", task, estimate_of_logs(math.log(1 + overhead) + noise), usable, "" if usable else "left out")


def verdict(parts: list[Evidence], average: Evidence, over: str = "every") -> tuple[HypothesisResult, Sides]:
    return judge(
        "H", hypothesis_test(CLAIM), metric=CLAIM.on, parts=parts, average=average, over=over, alpha=0.05  # type: ignore[arg-type]
    )  # fmt: skip


def parts_of(count: int, overhead: float, spread: float = 3.0) -> list[Evidence]:
    return [evidence(overhead, noise=spread * NOISE, task=f"batch {k}") for k in range(count)]


def average_of(overhead: float, spread: float = 1.0) -> Evidence:
    return Evidence(AVERAGE, AVERAGE, evidence(overhead, noise=spread * NOISE).estimate, True)


def test_the_average_refutes_a_claim_about_every_part():
    """No part is far enough above the bound by itself, all of them together are."""
    result, sides = verdict(parts_of(5, 0.5), average_of(0.5))
    assert {part.verdict for part in result.parts if part.task != AVERAGE} == {"inconclusive"}
    assert result.verdict == "refuted"
    assert result.reason == "average: no part of the 90% interval lies at or below 130% of merged"
    alone = hypothesis_test(CLAIM).p_refute(average_of(0.5).estimate)  # type: ignore[arg-type]
    assert sides.refute == pytest.approx(2 * alone), "the average has half the level"
    assert result.parts[-1].p_holm == pytest.approx(2 * alone)


def test_an_average_that_holds_only_at_the_whole_level_refutes_nothing():
    average = average_of(0.42, spread=1.26)
    alone = hypothesis_test(CLAIM).p_refute(average.estimate)  # type: ignore[arg-type]
    assert 0.025 < alone < 0.05
    assert verdict(parts_of(5, 0.42), average)[0].verdict == "inconclusive"
    assert verdict(parts_of(5, 0.42), average, over="average")[0].verdict == "refuted"


def test_a_part_is_refuted_after_holm_at_half_the_level():
    parts = [evidence(0.6), *parts_of(4, 0.1)]
    result, sides = verdict(parts, average_of(0.2))
    alone = hypothesis_test(CLAIM).p_refute(parts[0].estimate)  # type: ignore[arg-type]
    assert sides.refute == pytest.approx(2 * 5 * alone) and result.verdict == "refuted"
    assert result.reason.startswith("m, batch 1: no part of the 90% interval")


def test_one_part_alone_has_the_whole_level():
    part = evidence(0.42, noise=1.26 * NOISE)
    assert verdict([part], Evidence(AVERAGE, AVERAGE, part.estimate, True))[0].verdict == "refuted"


def test_parts_keep_the_whole_level_where_the_average_cannot_be_tested():
    parts = [evidence(0.6), evidence(0.1, task="batch 4"), evidence(0.1, task="batch 8", usable=False)]
    _, sides = verdict(parts, Evidence(AVERAGE, AVERAGE, None, False, "batch 8 was left out"))
    alone = hypothesis_test(CLAIM).p_refute(parts[0].estimate)  # type: ignore[arg-type]
    assert sides.refute == pytest.approx(2 * alone), "Holm over the two parts that can be tested"


@pytest.mark.parametrize("over", ["every", "average"])
@pytest.mark.parametrize("overhead", [0.0, 0.1, 0.25, 0.3, 0.36, 0.45, 0.8])
def test_every_verdict_agrees_with_the_p_value_next_to_it(over, overhead):
    parts = [evidence(overhead * factor, task=f"batch {factor}") for factor in (0.5, 1, 1.5)]
    result, sides = verdict(parts, average_of(overhead), over)
    for part in result.parts:
        decided = part.verdict != "inconclusive"
        assert part.p_holm is not None and decided == (part.p_holm <= 0.05), part
        assert part.side == ("refutation" if part.verdict == "refuted" else "support")
    (final,) = apply_family([result], [sides], 0.05)
    assert final.p_holm is not None and (final.verdict != "inconclusive") == (final.p_holm <= 0.05)
    assert final.side == ("refutation" if final.verdict == "refuted" else "support")


def test_supports_and_refutations_are_corrected_over_the_hypotheses():
    refuted, against = verdict([evidence(0.42, noise=1.26 * NOISE)], average_of(0.42))
    supported, sides = verdict([evidence(0.0)], average_of(0.0))
    first, second = apply_family([refuted, supported], [against, sides], 0.05)
    assert second.verdict == "supported" and second.p_holm == pytest.approx(2 * sides.support)
    assert first.verdict == "inconclusive" and first.p_holm == pytest.approx(2 * against.refute)
    assert "refuted alone (p = 0.0" in first.reason and "not among the study's 2 hypotheses" in first.reason


def test_the_average_is_shown_next_to_the_parts():
    for over in ("every", "average"):
        result, _ = verdict(parts_of(3, 0.2), average_of(0.2), over)
        assert [part.task for part in result.parts] == ["batch 0", "batch 1", "batch 2", AVERAGE]
