"""Views of a model on a probe: what is compared, what is left out, and which layer is which."""

from __future__ import annotations

import pytest
import torch

from lorascope.drift.views import Points, View, debiased_grams, distances, drift_between, mean_drift, mean_rows
from lorascope.errors import StudyError


def features(*, seed: int = 0, examples: int = 30) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "residual": torch.randn(3, examples, 8, generator=generator),
        "attention": torch.randn(2, examples, 8, generator=generator),
    }


def test_a_model_is_at_no_distance_from_itself() -> None:
    base = features()
    points = Points.of(base)
    view = View.of(base, points)
    for site, layer, metric, value in distances(view, view, points, neighbours=5):
        assert value == pytest.approx(0, abs=1e-5), (site, layer, metric)


def test_every_measure_sees_a_changed_layer_and_only_that() -> None:
    base, run = features(), features()
    run["attention"][1] += torch.randn(30, 8, generator=torch.Generator().manual_seed(5))
    points = Points.of(base)
    rows = distances(View.of(base, points), View.of(run, points), points, neighbours=5)
    changed = {(site, layer) for site, layer, _, value in rows if value > 1e-3}
    assert changed == {("attention", 2)}
    assert len([row for row in rows if row[:2] == ("attention", 2) and row[3] > 1e-3]) == 7


def test_layers_are_numbered_by_block_and_the_embedding_is_layer_zero() -> None:
    assert list(Points.of(features())) == [
        ("residual", 0), ("residual", 1), ("residual", 2), ("attention", 1), ("attention", 2),
    ]  # fmt: skip


def test_a_constant_layer_of_the_base_is_left_out_of_all_views() -> None:
    base, run = features(), features(seed=1)
    base["residual"][0] = 1.5
    points = Points.of(base)
    assert points.left_out(base) == ["residual layer 0"]
    rows = distances(View.of(base, points), View.of(run, points), points, neighbours=5)
    assert ("residual", 0) not in {row[:2] for row in rows}
    assert {("residual", 1), ("residual", 2)} <= {row[:2] for row in rows}


def test_a_layer_that_a_run_made_constant_is_refused_by_name() -> None:
    base, run = features(), features(seed=1)
    run["attention"][0] = 0.0
    with pytest.raises(StudyError, match="layer 0 of attention is the same for all 30 examples"):
        View.of(run, Points.of(base))


def test_drift_in_one_number_is_the_mean_over_residual_blocks() -> None:
    rows = [("residual", 0, "drift", 9.0), ("residual", 1, "drift", 0.1), ("residual", 2, "drift", 0.3),
            ("attention", 1, "drift", 5.0), ("residual", 1, "cosine_distance", 7.0)]  # fmt: skip
    assert mean_drift(rows) == pytest.approx(0.2)
    assert mean_drift([("mlp", 1, "drift", 1.0)]) is None


def test_means_over_pairs_are_taken_point_by_point() -> None:
    first = [("mlp", 1, "drift", 0.2), ("mlp", 2, "drift", 0.4)]
    second = [("mlp", 1, "drift", 0.4), ("mlp", 2, "drift", 0.0)]
    assert mean_rows([first, second]) == [
        ("mlp", 1, "drift", pytest.approx(0.3)),
        ("mlp", 2, "drift", pytest.approx(0.2)),
    ]


def test_unrelated_examples_drift_by_about_one() -> None:
    base, other = features(examples=200), features(seed=3, examples=200)
    points = Points.of(base)
    rows = drift_between(debiased_grams(base, points), debiased_grams(other, points, examples=200), points)
    for _, _, _, value in rows:
        assert value == pytest.approx(1.0, abs=0.1)
