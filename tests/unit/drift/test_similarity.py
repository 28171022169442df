"""Similarity measures against their definitions in feature space, their invariances, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from lorascope.drift import grams as grams_module
from lorascope.drift import similarity
from lorascope.drift.grams import Estimator, constant_layers, grams, layers_at_once
from lorascope.drift.similarity import (
    centred_cosine,
    expected_biased_cka,
    linear_cka,
    linear_cka_pairs,
    mutual_knn,
    nuclear_norms,
    preshapes,
    procrustes_angle,
    raw_cosine,
)
from lorascope.errors import StudyError

ESTIMATORS: tuple[Estimator, ...] = ("biased", "debiased")
estimators = st.sampled_from(ESTIMATORS)
few = settings(max_examples=25, deadline=None)


@st.composite
def two_models(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Related features of two models, [layers, examples, hidden], wide or tall, with an offset and unequal scales."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    layers, examples, hidden = draw(st.tuples(st.integers(1, 3), st.integers(8, 40), st.integers(2, 60)))
    offset = draw(st.sampled_from([0.0, 1.0, 100.0]))
    scales = torch.rand(hidden, generator=generator) + 0.1
    first = torch.randn(layers, examples, hidden, generator=generator) * scales + offset
    second = first + draw(st.sampled_from([0.1, 1.0])) * torch.randn(first.shape, generator=generator)
    return first, second, generator


def rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def biased_cka_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019 in feature space."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(yc.T @ xc) ** 2 / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))


def debiased_cka_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Nguyen et al. 2020, eq. 3, with every term of HSIC_1 written in feature space."""
    x, y = x - x.mean(0), y - y.mean(0)  # shifts do not matter; large ones cost digits

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        squares = np.square(a).sum(1), np.square(b).sum(1)
        rows = a @ a.sum(0) - squares[0], b @ b.sum(0) - squares[1]
        trace = np.linalg.norm(b.T @ a) ** 2 - squares[0] @ squares[1]
        return trace + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)) - 2 * (rows[0] @ rows[1]) / (n - 2)

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


DEFINITIONS = {"biased": biased_cka_by_definition, "debiased": debiased_cka_by_definition}


@few
@given(two_models(), estimators)
def test_cka_equals_its_definition_in_feature_space(models, estimator):
    first, second, _ = models
    value = linear_cka(grams(first, estimator=estimator), grams(second, estimator=estimator))
    expected = [
        DEFINITIONS[estimator](x, y) for x, y in zip(first.double().numpy(), second.double().numpy(), strict=True)
    ]
    assert value.tolist() == pytest.approx(expected, abs=1e-5)


@few
@given(two_models(), estimators)
def test_cka_of_a_model_with_itself_is_one(models, estimator):
    first, _, _ = models
    own = grams(first, estimator=estimator)
    assert linear_cka(own, own).tolist() == pytest.approx([1] * len(first), abs=1e-6)


@few
@given(two_models(), estimators)
def test_cka_does_not_see_rotation_scale_or_shift(models, estimator):
    first, second, generator = models
    hidden = first.shape[2]
    moved = 3.7 * second.double() @ rotation(hidden, generator) + torch.randn(hidden, generator=generator)
    base = grams(first.double(), estimator=estimator)
    before = linear_cka(base, grams(second.double(), estimator=estimator))
    after = linear_cka(base, grams(moved, estimator=estimator))
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


@few
@given(two_models(), estimators)
def test_the_order_of_examples_does_not_matter(models, estimator):
    first, second, generator = models
    order = torch.randperm(first.shape[1], generator=generator)
    before = linear_cka(grams(first, estimator=estimator), grams(second, estimator=estimator))
    after = linear_cka(grams(first[:, order], estimator=estimator), grams(second[:, order], estimator=estimator))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


@few
@given(two_models(), estimators)
def test_pairs_of_layers_hold_each_layers_own_cka_on_the_diagonal(models, estimator):
    first, second, _ = models
    a, b = grams(first, estimator=estimator), grams(second, estimator=estimator)
    pairs = linear_cka_pairs(a, b)
    torch.testing.assert_close(pairs.diagonal(), linear_cka(a, b))
    torch.testing.assert_close(linear_cka_pairs(b, a), pairs.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_of_any_precision_with_or_without_gradients_are_measured(dtype):
    features = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    own = grams(features)
    assert linear_cka(own, own).tolist() == pytest.approx([1, 1], abs=1e-6)
    with torch.inference_mode():
        inside = features.clone()
    for same in (features.clone().requires_grad_(), inside):
        torch.testing.assert_close(grams(same).matrices, own.matrices)
        assert not grams(same).matrices.requires_grad


def test_products_stay_exact_where_the_process_allows_reduced_ones():
    features = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert grams(features).matrices.dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)
    assert grams(features).matrices.dtype == torch.float32


def test_small_drift_keeps_its_digits_in_float32():
    """Drift of 1e-6, with one feature a thousand times the rest and far from zero: float32 sums would lose it."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 256, 384, generator=generator)
    first[..., 5] = 1000 * (10 + first[..., 5])
    second = first + 1e-3 * torch.randn(first.shape, generator=generator) * first.std(1, keepdim=True)
    for estimator in ESTIMATORS:
        exact = 1 - DEFINITIONS[estimator](first[0].double().numpy(), second[0].double().numpy())
        drift = 1 - linear_cka(grams(first, estimator=estimator), grams(second, estimator=estimator)).item()
        assert 1e-7 < exact < 1e-5
        assert drift == pytest.approx(exact, rel=1e-2)


def test_debiased_cka_of_independent_features_is_zero_on_average():
    """64 pairs at n = 64, d = 768. A single pair scatters by sqrt(2)/n = 0.022; only the mean is near 0."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 8, 64, 768, generator=generator)
    debiased = linear_cka_pairs(grams(first), grams(second))
    assert abs(float(debiased.mean())) < 0.01
    assert 0.015 < float(debiased.std()) < 0.03
    biased = linear_cka_pairs(grams(first, estimator="biased"), grams(second, estimator="biased"))
    assert float(biased.mean()) == pytest.approx(expected_biased_cka(64, 768), abs=0.005)


def test_expected_biased_cka_gives_the_figures_of_the_literature():
    assert expected_biased_cka(64, 768) == pytest.approx(0.92, abs=0.005)
    assert expected_biased_cka(750, 768) == pytest.approx(0.51, abs=0.005)
    generator = torch.Generator().manual_seed(0)
    first = grams(torch.randn(6, 100, 50, generator=generator), estimator="biased")
    second = grams(torch.randn(6, 100, 200, generator=generator), estimator="biased")
    expected = expected_biased_cka(100, 50, hidden_second=200)
    assert float(linear_cka_pairs(first, second).mean()) == pytest.approx(expected, abs=0.01)


def test_standardised_features_are_blind_to_the_scale_of_each_feature():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 60, 30, generator=generator)
    second = second + first
    scaled = second * torch.logspace(-3, 3, 30)
    base = grams(first, standardise=True)
    expected = linear_cka(base, grams(second, standardise=True))
    torch.testing.assert_close(linear_cka(base, grams(scaled, standardise=True)), expected, atol=1e-6, rtol=0)
    assert float((linear_cka(grams(first), grams(scaled)) - linear_cka(grams(first), grams(second))).abs().min()) > 0.1


def test_features_that_vary_by_rounding_alone_count_as_constant():
    """The same number computed in batches of different shape flickers in its last bit: no variation to blow up."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 41, 8, generator=generator)
    constants = torch.arange(1, 20).expand(1, 41, 19) * 0.1
    flickering = torch.where(
        torch.rand(constants.shape, generator=generator) < 0.5, constants, constants * (1 + 1.2e-7)
    )
    a, b = grams(first, standardise=True), grams(torch.cat([first, flickering], dim=2), standardise=True)
    torch.testing.assert_close(a.matrices, b.matrices, atol=1e-4, rtol=0)


def test_features_far_from_zero_keep_their_cka_in_float32():
    """At an offset of 3e5 the float32 mean is off by a share of the spread; centring the Gram matrix takes it out."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 200, 300, generator=generator) + 3e5
    second = first + torch.randn(first.shape, generator=generator)
    for estimator in ESTIMATORS:
        exact = DEFINITIONS[estimator](first[0].double().numpy(), second[0].double().numpy())
        value = linear_cka(grams(first, estimator=estimator), grams(second, estimator=estimator)).item()
        assert value == pytest.approx(exact, abs=1e-8)


def test_an_outlier_dimension_hides_what_standardising_shows():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 200, 64, generator=generator)
    outlier = 100 * torch.randn(1, 200, 1, generator=generator)
    first, second = torch.cat([first, outlier], 2), torch.cat([second, outlier], 2)
    assert linear_cka(grams(first), grams(second)).item() > 0.99
    assert linear_cka(grams(first, standardise=True), grams(second, standardise=True)).item() < 0.1


def test_a_constant_layer_is_refused_by_name():
    features = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    features[1] = features[1, :1] + 1000
    assert constant_layers(features) == [1]
    for refused in (grams, preshapes):
        with pytest.raises(StudyError, match="layer 1 of residual is the same for all 10 examples"):
            refused(features, site="residual")
    kept = grams(features[[0, 2]], site="residual")
    assert linear_cka(kept, kept).tolist() == pytest.approx([1, 1])


def test_the_debiased_estimator_refuses_equidistant_examples():
    simplex = torch.eye(12).unsqueeze(0)
    with pytest.raises(StudyError, match="equally far apart"):
        grams(simplex)
    assert linear_cka(*[grams(simplex, estimator="biased")] * 2).item() == pytest.approx(1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_with_its_place(value):
    features = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    features[1, 7, 3] = value
    with pytest.raises(StudyError, match=r"layer 1 of mlp has 1 values that are not finite.*example 7, feature 3"):
        grams(features, site="mlp")


def test_debiased_cka_refuses_fewer_than_four_examples():
    features = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(StudyError, match="3 examples are too few for debiased CKA"):
        grams(features)
    own = grams(features, estimator="biased")
    assert linear_cka(own, own).item() == pytest.approx(1)


def test_models_of_different_examples_or_depth_do_not_compare():
    generator = torch.Generator().manual_seed(0)
    base = grams(torch.randn(2, 10, 4, generator=generator))
    with pytest.raises(StudyError, match="10 examples cannot be compared with 11"):
        linear_cka(base, grams(torch.randn(2, 11, 4, generator=generator)))
    deeper = grams(torch.randn(3, 10, 4, generator=generator))
    with pytest.raises(StudyError, match="2 layers in one model and 3 in the other"):
        linear_cka(base, deeper)
    assert linear_cka_pairs(base, deeper).shape == (2, 3)


@few
@given(two_models())
def test_cosines_equal_their_definitions(models):
    first, second, _ = models
    x, y = first.double().numpy(), second.double().numpy()

    def cosine(a, b):
        return (a * b).sum(2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)

    np.testing.assert_allclose(raw_cosine(first, second), cosine(x, y), atol=1e-12)
    centred = cosine(x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True))
    np.testing.assert_allclose(centred_cosine(first, second), centred, atol=1e-9)


def test_a_shared_offset_raises_the_raw_cosine_and_not_the_centred_one():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 100, 50, generator=generator)
    assert raw_cosine(first + 10, second + 10).mean().item() > 0.98
    assert abs(centred_cosine(first + 10, second + 10).mean().item()) < 0.05


def test_an_example_without_direction_is_refused_by_name():
    features = torch.randn(1, 10, 4, generator=torch.Generator().manual_seed(0))
    features[0, 3] = 0
    with pytest.raises(StudyError, match="example 3"):
        raw_cosine(features, features + 1)
    with pytest.raises(StudyError, match="have no cosine"):
        raw_cosine(features, features[..., :3])


@few
@given(two_models())
def test_the_procrustes_angle_is_that_of_the_best_rotation(models):
    first, second, _ = models
    angles = procrustes_angle(preshapes(first), preshapes(second))
    for angle, x, y in zip(angles.tolist(), first.double().numpy(), second.double().numpy(), strict=True):
        x, y = x - x.mean(0), y - y.mean(0)
        best, _ = orthogonal_procrustes(x, y)
        expected = np.arccos(min(1, np.sum((x @ best) * y) / np.linalg.norm(x) / np.linalg.norm(y)))
        assert angle == pytest.approx(expected, abs=1e-6)


@few
@given(two_models())
def test_the_procrustes_angle_does_not_see_rotation_scale_or_shift(models):
    first, _, generator = models
    hidden = first.shape[2]
    moved = 0.2 * first.double() @ rotation(hidden, generator) + torch.randn(hidden, generator=generator)
    assert procrustes_angle(preshapes(first), preshapes(moved)).max().item() < 2e-5


def test_procrustes_compares_models_of_different_width():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, 30, 10, generator=generator)
    wider = torch.cat([first, torch.zeros(2, 30, 90)], dim=2).double() @ rotation(100, generator)
    assert procrustes_angle(preshapes(first), preshapes(wider)).max().item() < 1e-5


@few
@given(two_models(), st.integers(1, 5))
def test_mutual_neighbours_equal_a_search_by_hand(models, k):
    first, second, _ = models

    def neighbours(x: np.ndarray) -> list[set[int]]:
        x = x - x.mean(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return [
            set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -(x[i] @ x[j]))[:k]) for i in range(len(x))
        ]

    x, y = (f.double() for f in (first, second))
    overlap = mutual_knn(grams(x, estimator="biased"), grams(y, estimator="biased"), k=k)
    for layer in range(len(first)):
        both = zip(neighbours(x[layer].numpy()), neighbours(y[layer].numpy()), strict=True)
        assert overlap[layer].tolist() == [len(a & b) / k for a, b in both]


def test_mutual_neighbours_are_all_with_itself_and_few_with_others():
    generator = torch.Generator().manual_seed(0)
    first, second = (grams(x, estimator="biased") for x in torch.randn(2, 4, 101, 32, generator=generator))
    assert mutual_knn(first, first).min().item() == 1
    assert mutual_knn(first, second).mean().item() == pytest.approx(10 / 100, abs=0.03)
    with pytest.raises(StudyError, match="100 nearest neighbours of 101"):
        mutual_knn(first, second, k=100)


@pytest.mark.parametrize("shape", [(3, 60, 60), (2, 40, 70), (2, 70, 40)])
def test_nuclear_norms_by_products_equal_those_by_singular_values(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -12, shape[2], dtype=torch.float64)
    matrices = torch.cat([matrices, matrices * scales])
    expected = torch.linalg.svdvals(matrices).sum(-1)
    torch.testing.assert_close(nuclear_norms(matrices), expected, rtol=2e-7, atol=0)


def test_an_accelerator_computes_as_many_layers_together_as_fit() -> None:
    def parts(*shape: int, device: str) -> list[slice]:
        return layers_at_once(torch.empty(shape, device=device))

    assert parts(31, 750, 576, device="meta") == [slice(0, 31)]
    assert parts(20, 1024, 4096, device="meta") == [slice(0, 8), slice(8, 16), slice(16, 20)]
    assert parts(1, 4, 2**26, device="meta") == [slice(0, 1)]
    assert parts(2, 750, 576, device="cpu") == [slice(0, 1), slice(1, 2)]


@pytest.fixture
def three_layers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def slices(values: torch.Tensor) -> list[slice]:
        return [slice(start, min(start + 3, len(values))) for start in range(0, len(values), 3)]

    for module in (grams_module, similarity):
        monkeypatch.setattr(module, "layers_at_once", slices)


def measures(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    settings: list[dict[str, Any]] = [{}, {"estimator": "biased"}, {"standardise": True}]
    return [
        *(linear_cka(grams(first, **chosen), grams(second, **chosen)) for chosen in settings),
        centred_cosine(first, second),
        raw_cosine(first, second),
        procrustes_angle(preshapes(first), preshapes(second)),
        mutual_knn(grams(first, estimator="biased"), grams(second, estimator="biased"), k=5),
    ]


@pytest.mark.parametrize("hidden", [20, 90])
def test_layers_computed_together_are_each_as_alone(hidden: int, request: pytest.FixtureRequest) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(5, 60, hidden, generator=generator) * torch.logspace(0, 2, 5)[:, None, None] + 3
    second = first + torch.randn(5, 60, hidden, generator=generator)
    alone = measures(first, second)
    request.getfixturevalue("three_layers_at_once")
    for found, expected in zip(measures(first, second), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("three_layers_at_once")
def test_of_layers_computed_together_the_first_broken_one_is_named() -> None:
    def features() -> torch.Tensor:
        return torch.randn(5, 12, 8, generator=torch.Generator().manual_seed(0))

    constant, broken, central = features(), features(), features()
    constant[4] = 2.0
    broken[3, 7, 2], broken[4] = math.nan, 1.0
    central[4, 6] = 0.0
    assert constant_layers(constant) == [4]
    with pytest.raises(StudyError, match="layer 4 of features is the same for all 12 examples"):
        grams(constant)
    for refused in (grams, preshapes):
        with pytest.raises(StudyError, match=r"layer 3 of features has 1 values .* example 7, feature 2: nan"):
            refused(broken)
    with pytest.raises(StudyError, match=r"layer 4: example 6 is of norm 0\.0"):
        raw_cosine(central, features())


@pytest.mark.parametrize("hidden", [20, 90])
def test_only_one_side_needs_to_be_reduced(hidden: int) -> None:
    """Of a run whose products are taken on an accelerator; nuclear_norms is what it uses there."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 60, hidden, generator=generator)
    second = first + 0.1 * torch.randn(3, 60, hidden, generator=generator)
    base, run = preshapes(first), preshapes(second, reduce=False)
    assert run.shape[2] == hidden and base.shape[2] == min(60, hidden)
    expected = procrustes_angle(base, preshapes(second))
    torch.testing.assert_close(procrustes_angle(base, run), expected, rtol=1e-9, atol=0)
    for products in (run.mT @ base, base.mT @ run):
        torch.testing.assert_close(nuclear_norms(products).arccos(), expected, rtol=1e-6, atol=0)
