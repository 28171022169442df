"""Functional change: flips and divergences of two runs' predictions, in closed form."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lorascope.errors import DataError
from lorascope.tasks.change import jensen_shannon_divergence, prediction_change


def predictions(rows: dict[str, tuple[float, ...]], *, labels: dict[str, int] | None = None) -> pd.DataFrame:
    """example id -> class probabilities, as `predict` lays them out."""
    table = np.array(list(rows.values()), dtype=np.float64)
    return pd.DataFrame(
        {
            "example_id": list(rows),
            "label": [(labels or {}).get(name, 0) for name in rows],
            "prediction": table.argmax(axis=1),
            "loss": -np.log(np.maximum(table[:, 0], 1e-300)),
            **{f"probability_{i}": table[:, i] for i in range(table.shape[1])},
        }
    )


REFERENCE = {"a": (0.5, 0.5), "b": (0.9, 0.1), "c": (0.2, 0.8)}


def test_a_run_changes_nothing_against_itself() -> None:
    change = prediction_change(predictions(REFERENCE), predictions(REFERENCE))
    assert change["example_id"].tolist() == ["a", "b", "c"]
    assert (change[["flip", "kl", "js"]] == 0).all(axis=None)


def test_flips_and_divergences_are_their_closed_forms() -> None:
    run = predictions({"a": (0.25, 0.75), "b": (0.9, 0.1), "c": (0.8, 0.2)})
    change = prediction_change(predictions(REFERENCE), run).set_index("example_id")
    assert change["flip"].tolist() == [1, 0, 1]
    assert change["kl"].tolist() == pytest.approx([0.5 * math.log(4 / 3), 0, 0.6 * math.log(4)])
    middle = (0.5 * math.log(0.2 / 0.5) * 0.2 + 0.5 * math.log(0.8 / 0.5) * 0.8) * 2
    assert change.loc["c", "js"] == pytest.approx(middle)


def test_examples_are_joined_by_id_whatever_their_order() -> None:
    run = predictions({"c": (0.8, 0.2), "a": (0.5, 0.5), "b": (0.9, 0.1)})
    change = prediction_change(predictions(REFERENCE), run)
    assert change["example_id"].tolist() == ["a", "b", "c"]
    assert change["flip"].tolist() == [0, 0, 1]
    assert change["kl"].tolist() == pytest.approx([0, 0, 0.6 * math.log(4)])


def test_the_floor_bounds_the_divergence_of_what_a_model_excludes() -> None:
    sure, opposite = predictions({"a": (1.0, 0.0)}), predictions({"a": (0.0, 1.0)})
    for floor in (1e-12, 1e-3):
        change = prediction_change(sure, opposite, floor=floor)
        assert change["kl"][0] == pytest.approx(-math.log(floor), rel=3 * floor)
    assert prediction_change(sure, opposite)["js"][0] == pytest.approx(math.log(2))


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    generator = np.random.default_rng(0)
    p, q = (generator.dirichlet(np.full(5, 0.2), size=200) + 1e-15 for _ in range(2))
    there, back = jensen_shannon_divergence(p, q), jensen_shannon_divergence(q, p)
    np.testing.assert_allclose(there, back, atol=1e-12)
    assert there.min() > 0 and there.max() <= math.log(2)


def refusal(reference: pd.DataFrame, run: pd.DataFrame) -> str:
    with pytest.raises(DataError) as caught:
        prediction_change(reference, run)
    return str(caught.value)


def test_different_examples_are_refused() -> None:
    run = predictions({"b": (0.9, 0.1), "c": (0.2, 0.8), "d": (0.5, 0.5), "e": (0.5, 0.5)})
    assert refusal(predictions(REFERENCE), run) == (
        "the two runs predict different examples: 1 of the reference's 3 are not in the run, 2 of the run's 4 not in the "
        "reference (first: a)\n"
        "  hint: only predictions of one test set can be compared; were the runs made from different data?"
    )


def test_an_example_predicted_twice_is_refused() -> None:
    run = predictions(REFERENCE)
    assert refusal(predictions(REFERENCE), pd.concat([run, run[1:2]])) == (
        "the run predicts example b twice\n  hint: give the predictions of one run, one row an example"
    )


def test_other_labels_are_refused() -> None:
    assert refusal(predictions(REFERENCE), predictions(REFERENCE, labels={"b": 1})) == (
        "1 examples have another label in the run than in the reference (first: b)\n"
        "  hint: the runs were scored on different versions of the data; run the study again in one store"
    )


def test_other_classes_are_refused() -> None:
    run = predictions({name: (*row, 0.0) for name, row in REFERENCE.items()})
    assert refusal(predictions(REFERENCE), run) == (
        "the reference has 2 classes and the run 3\n  hint: compare two runs of the same task"
    )


@pytest.mark.parametrize(("row", "total"), [((0.5, 0.6), "1.1"), ((math.nan, 0.5), "nan"), ((1.5, -0.5), "1")])
def test_what_is_no_distribution_is_refused(row: tuple[float, float], total: str) -> None:
    assert refusal(predictions(REFERENCE), predictions({**REFERENCE, "b": row})) == (
        f"the class probabilities of the run are no distribution in 1 examples (first: b, sum {total})\n"
        "  hint: a diverged run cannot be compared; remove it or train it again"
    )
