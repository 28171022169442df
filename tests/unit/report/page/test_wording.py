"""How numbers are written: signs, digits, units, and never "nan"."""

from __future__ import annotations

import math

import pytest

from lorascope.report.page import wording
from lorascope.stats.analysis import Comparison, Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4, "+0.4"), (-2.14, "−2.1"), (-0.04, "0.0"), (0.04, "0.0"), (math.nan, "–"), (None, "–"), (math.inf, "∞")],
)
def test_signed_decimal_has_a_true_minus_and_no_sign_on_zero(value, text):
    assert wording.decimal(value, 1, signed=True) == text


def test_thousands_are_separated():
    assert wording.count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (42, "42.0 s"), (119, "119 s"), (750, "12.5 min"), (11520, "3.20 h"), (math.nan, "–")],
)
def test_duration_chooses_its_unit(seconds, text):
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (2**20 * 1.5, "1.50 MiB"), (3 * 2**40, "3.00 TiB"), (None, "–")]
)
def test_bytes_choose_their_unit(size, text):
    assert wording.bytes_text(size) == text


def test_parameters_are_counted_in_thousands_and_millions():
    assert [wording.magnitude(n) for n in (384, 294_912, 22_713_728, 1.1e9)] == ["384", "295 k", "22.7 M", "1.10 B"]


def test_small_p_is_a_bound():
    assert [wording.p_value(p) for p in (0.0004, 0.0312, None)] == ["<0.001", "0.031", "–"]


def test_tiny_thresholds_are_written_with_an_exponent():
    assert [wording.compact(value) for value in (1e-5, 0.1, 0.0412, 0, None)] == ["1e-5", "0.100", "0.0412", "0", "–"]


def test_learning_rate_keeps_no_padding():
    assert wording.rate(5e-5) == "5e-5"


def test_score_and_difference_of_accuracy_carry_percent_and_points():
    assert wording.score("accuracy", 0.8634) == "86.3%"
    assert wording.gap("accuracy", -0.0041) == "−0.4 points"
    assert wording.margin_text("accuracy", 0.03) == "3.0 points"


def test_matthews_correlation_has_no_percent():
    assert wording.score("mcc", 0.5432) == "0.543"
    assert wording.gap("mcc", 0.0212) == "+0.021"


def test_cost_is_a_share_of_the_reference_with_three_digits():
    assert wording.gap("peak_memory_bytes", 0.412) == "41.2%"
    assert wording.gap_range("peak_memory_bytes", Interval(0.41, 0.37, 0.46, 0.95, "t")) == "37.0% to 46.0%"


def test_listing_joins_with_and():
    assert [wording.listing(x) for x in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def _comparison(estimate: float) -> Comparison:
    interval = Interval(estimate, -0.021, 0.013, 0.95, "multi-bootstrap")
    return Comparison(
        model="m",
        task="rte",
        method="lora",
        reference="full",
        metric="accuracy",
        difference=interval,
        difference_90=interval,
        p_value=0.5,
        p_holm=None,
        p_bonferroni=None,
        seed_difference=None,
        hedges_g=None,
        odds_ratio=None,
        mcnemar=[],
        permutation_p=None,
        permutation_floor=0.1,
        seeds_needed=4,
        detectable_difference=None,
        num_seeds=5,
        num_examples=277,
    )


@pytest.mark.parametrize(
    ("estimate", "start"),
    [
        (-0.004, "LoRA loses 0.4 points of accuracy against full fine-tuning on RTE"),
        (0.012, "LoRA gains 1.2 points of accuracy against full fine-tuning on RTE"),
        (0.0001, "LoRA scores the same accuracy as full fine-tuning on RTE"),
    ],
)
def test_difference_is_a_plain_sentence(estimate, start):
    sentence = wording.gap_sentence(_comparison(estimate), place="RTE")
    assert sentence == f"{start} (95% interval −2.1 to +1.3; 5 seeds × 277 examples)."
