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

from lorascope.drift.grams import Grams, centred_layers, first_of, layers_at_once, on_double_device
from lorascope.errors import StudyError

_RESOLVED = 1e-9  # of a matrix's norm
_NEARLY_ONE = 1 - 1e-8  # one step from here ends within rounding of 1
_ROWS_AT_ONCE = 32  # rows of all layers' Gram matrices held in float64 at a time


def linear_cka(first: Grams, second: Grams) -> Float64[Tensor, " layers"]:
    """Linear CKA of each layer with the same layer of the other model: <A, B> / (||A||_F ||B||_F).

    Biased: in 0..1 (Kornblith et al. 2019, eq. 4). Debiased: in -1..1, about 0 for independent features whatever their
    number (Nguyen et al. 2020, eq. 3). Raises StudyError where examples or layers differ in number.
    """
    check_comparable(first, second, same_layers=True)
    products = []
    for layers in layers_at_once(first.matrices):
        a, b = (grams.matrices[layers].flatten(1).double() for grams in (first, second))
        products.append(torch.linalg.vecdot(a, b))
    return torch.cat(products) / (first.norms * second.norms)


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
    features: Float[Tensor, "layers examples hidden"],
    *,
    standardise: bool = False,
    reduce: bool = True,
    site: str = "features",
) -> Float64[Tensor, "layers examples columns"]:
    """Features centred, of unit Frobenius norm: what rotations leave alone. Computed once a model.

    reduce: in min(examples, hidden) columns. With more features than examples, X = R' Q' (the QR factors of X') is the
    rotation Q' of the small R', and no rotation changes a Procrustes angle. An accelerator takes milliseconds a layer for
    that, so there only the base is reduced, which makes every product with it smaller. Raises StudyError as `grams` does.
    """
    values = on_double_device(features)
    shapes = []
    for _, x in centred_layers(values, dtype=torch.float64, standardise=standardise, site=site):
        reduced = torch.linalg.qr(x.mT, mode="r").R.mT if reduce and x.shape[2] > x.shape[1] else x
        shapes.append(reduced / torch.linalg.matrix_norm(reduced, keepdim=True))
    return torch.cat(shapes)


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
    finds from M / ||M||_F (Higham 2008, section 8.3): each singular value x becomes x (3 - x^2) / 2, at last 1. There a small
    one grows by half at a step. Where all are known to be in [l, 1], the iteration on aX with a^2 = 3 / (1 + l + l^2) keeps
    them in [p(l), 1], p(x) = ax (3 - a^2 x^2) / 2, and a small one grows 2.6-fold (Chen and Chow 2014). l begins at 1e-9:
    singular values below that share of the norm count less than they are, so the sum is too small by less than 1e-9 times
    their number.
    """
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    factor = tall / torch.linalg.matrix_norm(tall, keepdim=True)
    least = _RESOLVED
    while least < 1:
        a = math.sqrt(3 / (1 + least + least**2))
        factor = torch.baddbmm(factor, factor, factor.mT @ factor, beta=1.5 * a, alpha=-0.5 * a**3)
        least = 1.0 if least > _NEARLY_ONE else a * least * (3 - (a * least) ** 2) / 2
    return (factor * tall).sum((-2, -1))


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
    shares = []
    for layers in layers_at_once(first.matrices):
        in_first, in_second = (_are_neighbours(grams.matrices[layers], k, grams.site) for grams in (first, second))
        shares.append((in_first & in_second).sum(2).double() / k)
    return torch.cat(shares)


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
    sides = (_directions(on_double_device(features), centre=centre) for features in (first, second))
    return torch.cat([torch.linalg.vecdot(a, b) for a, b in zip(*sides, strict=True)])


def _directions(features: Tensor, *, centre: bool) -> Iterator[Tensor]:
    """The examples at unit length, some layers at a time."""
    parts = (
        centred_layers(features, dtype=torch.float64)
        if centre
        else ((layers, features[layers].double()) for layers in layers_at_once(features))
    )
    for layers, x in parts:
        norms = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        undefined = first_of(~((norms > 0) & torch.isfinite(norms)).flatten())
        if undefined is not None:
            layer, example = divmod(undefined, x.shape[1])
            length = norms[layer, example].item()
            where = "at the mean of all examples" if centre and length == 0 else f"of norm {length}"
            raise StudyError(f"layer {layers.start + layer}: example {example} is {where}, so its cosine is undefined")
        yield x / norms


def _are_neighbours(gram: Float[Tensor, "layers examples examples"], k: int, site: str) -> Tensor:
    """[layers, examples, examples] bool: is the column among the row's k nearest?"""
    squares = gram.diagonal(dim1=1, dim2=2).double()
    central = first_of(~(squares > 0).flatten())
    if central is not None:
        example = central % gram.shape[1]
        raise StudyError(f"{site}: example {example} is at the mean of all examples, so it has no direction")
    lengths = squares.sqrt()
    cosines = (gram.double() / lengths.unsqueeze(1)).div_(lengths.unsqueeze(2))
    cosines.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    nearest = cosines.topk(k, dim=2).indices
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(2, nearest, True)
