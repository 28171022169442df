"""How alike two models represent the same examples, layer by layer: four measures, each blind to something else.

- linear CKA: are the same examples alike in both? Blind to rotations and to scale (Kornblith et al. 2019).
- cosine: does each example point where it did, feature by feature? Blind to scale only, so it needs the same features.
- Procrustes angle: what remains after the best rotation. It weighs all directions by their standard deviation, where CKA
  weighs them by their variance and so follows the few largest (Williams et al. 2021; Ding et al. 2021).
- mutual k-nearest neighbours: do the neighbourhoods agree? Blind to everything but order (Huh et al. 2024).

Drift is 1 - CKA, 1 - cosine, the angle, and 1 - overlap. docs/drift.md says how to read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorascope.drift.grams import Grams, centred_layers, on_double_device
from lorascope.errors import StudyError

_POLAR_STEPS = 50
_ROWS_AT_ONCE = 32  # rows of all layers' Gram matrices held in float64 at a time


def linear_cka(first: Grams, second: Grams) -> Float64[Tensor, " layers"]:
    """Linear CKA of each layer with the same layer of the other model: <A, B> / (||A||_F ||B||_F).

    Biased: in 0..1 (Kornblith et al. 2019, eq. 4). Debiased: in -1..1, about 0 for independent features whatever their
    number (Nguyen et al. 2020, eq. 3). Raises StudyError where examples or layers differ in number.
    """
    check_comparable(first, second, same_layers=True)
    products = [
        torch.dot(a.flatten().double(), b.flatten().double())
        for a, b in zip(first.matrices, second.matrices, strict=True)
    ]
    return torch.stack(products) / (first.norms * second.norms)


def linear_cka_pairs(first: Grams, second: Grams) -> Float64[Tensor, "layers_first layers_second"]:
    """Linear CKA of every layer with every layer of the other model: one matrix product over all pairs of examples."""
    check_comparable(first, second, same_layers=False)
    products = torch.zeros(first.num_layers, second.num_layers, dtype=torch.float64, device=first.matrices.device)
    for start in range(0, first.num_examples, _ROWS_AT_ONCE):
        a, b = (g.matrices[:, start : start + _ROWS_AT_ONCE].flatten(1).double() for g in (first, second))
        products.addmm_(a, b.T)
    return products / torch.outer(first.norms, second.norms)


def expected_biased_cka(num_examples: int, hidden: int, *, hidden_second: int | None = None) -> float:
    """About what biased CKA gives for two independent sets of isotropic Gaussian features.

    For Wishart matrices E tr(KL) = (n-1) d1 d2 and E tr(K^2) = (n-1) d1 (n + d1), so the ratio is near
    sqrt(d1 d2 / ((n + d1)(n + d2))), which is d / (n + d) for equal widths: 0.92 at n = 64, d = 768 and 0.51 at n = 750.
    Real features vary in fewer directions than they have: for them put the participation ratio tr(S)^2 / tr(S^2) of
    their covariance S in the place of d.
    """
    other = hidden if hidden_second is None else hidden_second
    return math.sqrt(hidden * other / ((num_examples + hidden) * (num_examples + other)))


def centred_cosine(
    first: Float[Tensor, "layers examples hidden"], second: Float[Tensor, "layers examples hidden"]
) -> Float64[Tensor, "layers examples"]:
    """The cosine of each example's features in both models, each model centred over its own examples first.

    The layer's value is the mean over examples. Raises StudyError as `grams` does, and for an example at the very mean.
    """
    return _cosines(first, second, centre=True)


def raw_cosine(
    first: Float[Tensor, "layers examples hidden"], second: Float[Tensor, "layers examples hidden"]
) -> Float64[Tensor, "layers examples"]:
    """The cosine of each example's features as they are. An offset that all examples share brings it near 1."""
    return _cosines(first, second, centre=False)


def preshapes(
    features: Float[Tensor, "layers examples hidden"], *, standardise: bool = False, site: str = "features"
) -> Float64[Tensor, "layers examples reduced"]:
    """Features centred, of unit Frobenius norm, in reduced = min(examples, hidden) columns: what rotations leave alone.

    With more features than examples, X = R' Q' (the QR factors of X') is the rotation Q' of the small R', and no
    rotation changes a Procrustes angle. Computed once a model. Raises StudyError as `grams` does.
    """
    values = on_double_device(features)
    shapes = []
    for x in centred_layers(values, dtype=torch.float64, standardise=standardise, site=site):
        reduced = torch.linalg.qr(x.T, mode="r").R.T if x.shape[1] > x.shape[0] else x
        shapes.append(reduced / torch.linalg.matrix_norm(reduced))
    return torch.stack(shapes)


def procrustes_angle(
    first: Float64[Tensor, "layers examples reduced_first"], second: Float64[Tensor, "layers examples reduced_second"]
) -> Float64[Tensor, " layers"]:
    """The angle between two `preshapes` after the best rotation, in radians: arccos ||Y'X||_* (Williams et al. 2021); 0
    for the same shape, pi/2 at most, and a metric.

    The nuclear norm is the sum of the singular values of Y'X. The eigenvalues of the Gram product K L are their squares
    and would lose half of the digits of the small ones, which here all add up; that is why this measure alone does not
    start from Gram matrices. Rounding is seen in angles below 1e-6 on the CPU and 1e-4 on a GPU (`nuclear_norms`).
    """
    if first.shape[:2] != second.shape[:2]:
        raise StudyError(
            f"shapes of {first.shape[0]} layers x {first.shape[1]} examples and of {second.shape[0]} x "
            f"{second.shape[1]} cannot be compared"
        )
    products = second.mT @ first
    norms = nuclear_norms(products) if products.is_cuda else torch.linalg.svdvals(products).sum(-1)
    return norms.clamp(max=1).arccos()


def nuclear_norms(matrices: Float64[Tensor, "matrices rows columns"]) -> Float64[Tensor, " matrices"]:
    """The sum of each matrix's singular values by matrix products alone, for devices on which a decomposition is slow.

    It is <U, M> with U the orthogonal factor of the polar decomposition, which the Newton-Schulz iteration X (3 - X'X) / 2
    finds from M / ||M||_F (Higham 2008, section 8.3). A singular value grows by half at each step until it is 1, so after
    50 steps those below 1e-9 of the norm still count less than they are: the sum is too small by less than 1e-9 times their
    number.
    """
    sizes = torch.linalg.matrix_norm(matrices, keepdim=True)
    factor = matrices / sizes
    for _ in range(_POLAR_STEPS):
        factor = torch.baddbmm(factor, factor, factor.mT @ factor, beta=1.5, alpha=-0.5)
    return (factor * matrices).sum((-2, -1))


def mutual_knn(first: Grams, second: Grams, *, k: int = 10) -> Float64[Tensor, "layers examples"]:
    """The share of each example's k nearest neighbours that it has in both models (Huh et al. 2024).

    Nearest by cosine between centred features, taken from biased Grams (Huh et al. do not centre). The layer's value is
    the mean over examples; by chance it is k / (examples - 1). Raises StudyError if k is not below examples - 1.
    """
    check_comparable(first, second, same_layers=True)
    assert first.estimator == "biased", "distances need the diagonal, which only biased Grams have"
    if not 1 <= k < first.num_examples - 1:
        raise StudyError(
            f"{k} nearest neighbours of {first.num_examples} examples say nothing",
            hint=f"k must be at least 1 and at most {first.num_examples - 2}",
        )
    pairs = zip(first.matrices, second.matrices, strict=True)
    both = [(_is_neighbour(a, k, first.site) & _is_neighbour(b, k, second.site)).sum(1).double() / k for a, b in pairs]
    return torch.stack(both)


def check_comparable(first: Grams, second: Grams, *, same_layers: bool) -> None:
    """Raises StudyError unless both are of as many examples (and layers)."""
    assert first.estimator == second.estimator, f"{first.estimator} and {second.estimator} Grams do not compare"
    if first.num_examples != second.num_examples:
        raise StudyError(
            f"{first.site} of {first.num_examples} examples cannot be compared with {second.num_examples}",
            hint="all models must see the same examples in the same order",
        )
    if same_layers and first.num_layers != second.num_layers:
        raise StudyError(
            f"{first.site} has {first.num_layers} layers in one model and {second.num_layers} in the other",
            hint="models of different depth are compared layer by layer with `linear_cka_pairs`",
        )


def _cosines(first: Tensor, second: Tensor, *, centre: bool) -> Float64[Tensor, "layers examples"]:
    if first.shape != second.shape:
        raise StudyError(
            f"features of shape {tuple(first.shape)} and {tuple(second.shape)} have no cosine",
            hint="the cosine needs the same layers, examples and features in both models; CKA does not",
        )
    x, y = on_double_device(first), on_double_device(second)
    layers = zip(_directions(x, centre=centre), _directions(y, centre=centre), strict=True)
    return torch.stack([(a * b).sum(1) for a, b in layers])


def _directions(features: Tensor, *, centre: bool) -> Iterator[Tensor]:
    """Each layer's examples at unit length."""
    layers = centred_layers(features, dtype=torch.float64) if centre else (x.double() for x in features)
    for layer, x in enumerate(layers):
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        lengths = norms.squeeze(1)
        if not (lengths > 0).all() or not torch.isfinite(lengths).all():
            example = int((~((lengths > 0) & torch.isfinite(lengths))).nonzero()[0])
            where = "at the mean of all examples" if centre and lengths[example] == 0 else f"of norm {lengths[example]}"
            raise StudyError(f"layer {layer}: example {example} is {where}, so its cosine is undefined")
        yield x / norms


def _is_neighbour(gram: Float[Tensor, "examples examples"], k: int, site: str) -> Tensor:
    """[examples, examples] bool: is the column among the row's k nearest?"""
    squares = gram.diagonal().double()
    if not (squares > 0).all():
        example = int((squares <= 0).nonzero()[0])
        raise StudyError(f"{site}: example {example} is at the mean of all examples, so it has no direction")
    lengths = squares.sqrt()
    cosines = (gram.double() / lengths).div_(lengths.unsqueeze(1)).fill_diagonal_(-math.inf)
    nearest = cosines.topk(k, dim=1).indices
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(1, nearest, True)
