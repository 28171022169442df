"""Claims and reasons in words: points for accuracy, bare numbers for a correlation, and where an interval lies."""

from __future__ import annotations

import pytest

from lorascope.stats.analysis import Interval
from lorascope.stats.claims import amount, edge, relation, saving
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.study.hypothesis import Lower, NonInferior


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 0.90, "t")


@pytest.mark.parametrize(
    ("metrics", "value", "text"),
    [
        (("accuracy",), 0.03, "3 points of accuracy"),
        (("f1",), 0.01, "1 point of f1"),
        (("accuracy",), 0.025, "2.5 points of accuracy"),
        (("mcc",), 0.03, "0.03 of mcc"),
        (("exact_match",), 0.03, "3 points of exact match"),
        (("accuracy", "f1"), 0.07, "7 points of accuracy / f1"),
        (("accuracy", "mcc"), 0.07, "0.07 of accuracy / mcc"),
    ],
)
def test_amounts_of_accuracy_are_points_and_of_a_correlation_are_not(metrics, value, text):
    assert amount(metrics, value) == text


def test_edges_have_a_true_minus_sign():
    assert [edge(("accuracy",), value) for value in (-0.03, 0.03, 0.0)] == ["−3 points", "+3 points", "0"]


def test_claims_are_sentences_in_points_and_percent():
    margin = NonInferior(non_inferior="lora", to="full", margin=0.03)
    assert hypothesis_test(margin, ("accuracy",)).claim == "lora loses at most 3 points of accuracy to full"
    fewer = Lower(lower="lora", than="full", on="trainable_parameters", by=0.9)
    assert hypothesis_test(fewer).claim == "lora needs at least 90% fewer trainable parameters than full"
    assert saving("peak_memory_bytes", 0.125) == "at least 12.5% less peak memory"


@pytest.mark.parametrize(
    ("low", "high", "verdict", "text"),
    [
        (-0.02, 0.01, "supported", "the whole 90% interval lies above −3 points"),
        (-0.09, -0.04, "refuted", "no part of the 90% interval lies above −3 points"),
        (-0.05, 0.01, "inconclusive", "only part of the 90% interval lies above −3 points"),
    ],
)
def test_reason_says_where_the_interval_lies(low, high, verdict, text):
    assert relation(interval(low, high), verdict, low=-0.03, high=None, bounds="above −3 points") == text


def test_a_refutation_that_its_correction_undoes_is_not_called_partial():
    text = relation(interval(-0.09, -0.04), "inconclusive", low=-0.03, high=None, bounds="above −3 points")
    assert (
        text == "no part of the 90% interval lies above −3 points, but the refutation does not survive its correction"
    )
