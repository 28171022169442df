"""Centred Gram matrices of features: computed once a model, reused in every comparison.

One idea carries the whole package: linear CKA, biased or debiased, is the cosine between two centred Gram matrices.
With K = X X' over n examples,

- biased: A = H K H, H = I - 11'/n, and <A, B> = ||Yc' Xc||_F^2 (Kornblith et al. 2019, eq. 1, 3, 4);
- debiased: A is K with a zero diagonal, U-centred so that every row sums to zero (Szekely and Rizzo 2014, def. 2),
  and <A, B> / (n (n - 3)) is the unbiased HSIC_1 of Song et al. (2012) that Nguyen et al. (2020, eq. 3) put
  into CKA.

Everything else (all pairs of layers, bootstraps) is arithmetic on A.

Where float64 matters. Drift is 1 - CKA, a small difference of nearly equal numbers, so every sum over examples is taken
in float64. The products X X' need less: independent rounding errors of relative size e in A move a cosine near 1 by
about e^2, not e. They are float32 on the CPU, where float64 would double the time, and float64 on CUDA, where it is
cheap at these sizes and keeps out TF32. Features are centred before the product, not after it, because a shared offset
(one outlier dimension a thousand times the rest is common) would else use up the digits. MPS has no float64: its
features are taken to the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from lorascope.errors import StudyError

Estimator = Literal["biased", "debiased"]

FEWEST_EXAMPLES = {"biased": 2, "debiased": 4}  # HSIC_1 divides by n - 3
RESOLUTION = 1e-6  # a spread below this share of the values themselves is float32 rounding, not variation
_VALUES_AT_ONCE = 2**25
_BLOCK = 128  # rows of X X' computed at a time


@dataclass(frozen=True)
class Grams:
    """One centred Gram matrix a layer, of one site of one model.

    matrices: float32 or float64, symmetric. norms: their Frobenius norms, all positive. estimator: which centring they
    have; two Grams compare only if they have the same. site: what messages call the place ("residual").
    """

    matrices: Float[Tensor, "layers examples examples"]
    norms: Float64[Tensor, " layers"]
    estimator: Estimator
    site: str

    @property
    def num_layers(self) -> int:
        return self.matrices.shape[0]

    @property
    def num_examples(self) -> int:
        return self.matrices.shape[1]


def grams(
    features: Float[Tensor, "layers examples hidden"],
    *,
    estimator: Estimator = "debiased",
    standardise: bool = False,
    site: str = "features",
) -> Grams:
    """The centred Gram matrices of all layers, on the features' device (MPS: on the CPU).

    standardise: divide each feature by its standard deviation over the examples first; a feature that does not vary
    becomes 0. Raises StudyError for too few examples (biased 2, debiased 4), for values that are not finite, and for a
    layer whose examples are all the same: CKA is then 0/0. A NaN would travel silently into means and figures, so the
    layer is refused by name; `constant_layers` says beforehand which ones to leave out.
    """
    num_layers, num_examples, _ = features.shape
    if num_examples < FEWEST_EXAMPLES[estimator]:
        raise StudyError(
            f"{num_examples} examples are too few for {estimator} CKA of {site}",
            hint=f"it is defined from {FEWEST_EXAMPLES[estimator]} on; hundreds give a useful estimate",
        )
    values = on_double_device(features)
    dtype = _product_dtype(values)
    matrices = torch.empty(num_layers, num_examples, num_examples, dtype=dtype, device=values.device)
    norms = torch.empty(num_layers, dtype=torch.float64, device=values.device)
    for layers, centred in centred_layers(values, dtype=dtype, standardise=standardise, site=site):
        gram = _product_with_itself(centred, out=matrices[layers])
        traces = gram.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
        (_u_centre if estimator == "debiased" else _double_centre)(gram)
        norms[layers] = torch.linalg.vector_norm(gram, dim=(1, 2), dtype=torch.float64)
        layer = first_of(norms[layers] <= RESOLUTION * traces)
        if layer is not None:
            raise StudyError(
                f"layer {layers.start + layer} of {site}: debiased CKA is undefined, for the examples are all equally far "
                "apart",
                hint="debiased CKA compares distances between different examples; leave this layer out",
            )
    return Grams(matrices, norms, estimator, site)


def constant_layers(features: Float[Tensor, "layers examples hidden"]) -> list[int]:
    """The layers in which all examples have the same features, up to float32 rounding.

    They exist in sound models: the embedding of a first or last token that all examples share (CLS pooling, layer 0).
    """
    values = on_double_device(features)
    dtype = _product_dtype(values)
    constant = [_are_constant(*_centre(values[layers].to(dtype))) for layers in layers_at_once(values)]
    return torch.cat(constant).nonzero().flatten().tolist()


def centred_layers(
    features: Float[Tensor, "layers examples hidden"],
    *,
    dtype: torch.dtype,
    standardise: bool = False,
    site: str = "features",
) -> Iterator[tuple[slice, Float[Tensor, "some examples hidden"]]]:
    """The features in `dtype`, centred over the examples, and divided by their standard deviations if wanted: some layers at
    a time, with which those are (`layers_at_once`).

    Raises StudyError for the first layer that is not finite or does not vary.
    """
    for layers in layers_at_once(features):
        values = features[layers]
        centred, means = _centre(values.to(dtype))
        is_broken = ~torch.isfinite(torch.linalg.vector_norm(centred, dim=(1, 2)))
        layer = first_of(is_broken | _are_constant(centred, means))
        if layer is not None and is_broken[layer]:
            raise _not_finite(values[layer], layer=layers.start + layer, site=site)
        if layer is not None:
            raise StudyError(
                f"layer {layers.start + layer} of {site} is the same for all {values.shape[1]} examples, so no similarity "
                "is defined",
                hint="leave the layer out, or pool over all tokens: a first or last token that all examples share "
                "has the same embedding in each",
            )
        yield layers, _standardise(centred, means) if standardise else centred


def layers_at_once(values: Float[Tensor, "layers examples any"]) -> list[slice]:
    """Which layers to compute together. On a CPU one: it stays in the cache. On an accelerator, where a call costs more than
    a layer's arithmetic, as many as have 256 MiB of float64 features or Gram matrices."""
    num_layers, num_examples, width = values.shape
    size = 1 if values.device.type == "cpu" else max(1, _VALUES_AT_ONCE // (num_examples * max(num_examples, width)))
    return [slice(start, min(start + size, num_layers)) for start in range(0, num_layers, size)]


def first_of(flags: Bool[Tensor, " n"]) -> int | None:
    """The first that is true. Asking waits for the device, so one question is asked for many layers."""
    return int(flags.byte().argmax()) if bool(flags.any()) else None


def on_double_device(tensor: Tensor) -> Tensor:
    """The tensor where float64 exists, without its gradient: as it is, except that MPS's goes to the CPU."""
    return tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()


def _product_dtype(features: Tensor) -> torch.dtype:
    """float32 only where a float32 product is one: on a CPU that nobody has told to multiply in bfloat16."""
    full_precision = torch.get_float32_matmul_precision() == "highest"
    on_cpu = features.device.type == "cpu"
    return torch.float32 if on_cpu and full_precision and features.dtype != torch.float64 else torch.float64


def _centre(x: Float[Tensor, "layers examples hidden"]) -> tuple[Tensor, Tensor]:
    means = x.mean(1, keepdim=True)
    return x - means, means


def _are_constant(
    centred: Float[Tensor, "layers examples hidden"], means: Float[Tensor, "layers 1 hidden"]
) -> Bool[Tensor, " layers"]:
    spreads = torch.linalg.vector_norm(centred, dim=(1, 2)).double()
    shared = math.sqrt(centred.shape[1]) * torch.linalg.vector_norm(means, dim=(1, 2)).double()
    return spreads <= RESOLUTION * torch.hypot(spreads, shared)


def _standardise(
    centred: Float[Tensor, "layers examples hidden"], means: Float[Tensor, "layers 1 hidden"]
) -> Float[Tensor, "layers examples hidden"]:
    deviations = centred.square().mean(1, keepdim=True).sqrt()
    varies = deviations > RESOLUTION * torch.hypot(deviations, means)
    return centred * torch.where(varies, 1 / deviations, 0)


def _product_with_itself(
    x: Float[Tensor, "layers examples hidden"], *, out: Tensor
) -> Float[Tensor, "layers examples examples"]:
    """X X' into `out`, little more than half of it computed: rows up to the diagonal, mirrored."""
    num_examples = x.shape[1]
    for start in range(0, num_examples, _BLOCK):
        stop = min(start + _BLOCK, num_examples)
        out[:, start:stop, :stop] = x[:, start:stop] @ x[:, :stop].mT
        out[:, :start, start:stop] = out[:, start:stop, :start].mT
    return out


def _double_centre(gram: Float[Tensor, "layers examples examples"]) -> None:
    """H K H, in place."""
    means = gram.mean(1, dtype=torch.float64)
    means -= means.mean(1, keepdim=True) / 2
    _subtract_from_rows_and_columns(gram, means)


def _u_centre(gram: Float[Tensor, "layers examples examples"]) -> None:
    """A_ij = K_ij - sum_l K_il / (n-2) - sum_k K_kj / (n-2) + sum_kl K_kl / ((n-1)(n-2)) for i != j over the
    off-diagonal K, A_ii = 0 (Szekely and Rizzo 2014, def. 2), in place."""
    n, diagonal = gram.shape[1], gram.diagonal(dim1=1, dim2=2)
    diagonal.zero_()
    means = gram.sum(1, dtype=torch.float64) / (n - 2)
    means -= means.sum(1, keepdim=True) / (2 * (n - 1))
    _subtract_from_rows_and_columns(gram, means)
    diagonal.zero_()


def _subtract_from_rows_and_columns(gram: Tensor, values: Float64[Tensor, "layers examples"]) -> None:
    shift = values.to(gram.dtype)
    gram.sub_(shift.unsqueeze(1)).sub_(shift.unsqueeze(2))


def _not_finite(values: Float[Tensor, "examples hidden"], *, layer: int, site: str) -> StudyError:
    places = (~torch.isfinite(values)).nonzero()
    if len(places) == 0:
        return StudyError(
            f"layer {layer} of {site} has values up to {float(values.abs().max()):.1e}, whose squares overflow",
            hint="no sound model has such features: look at the weights",
        )
    example, feature = places[0].tolist()
    return StudyError(
        f"layer {layer} of {site} has {len(places)} values that are not finite, the first in example {example}, "
        f"feature {feature}: {float(values[example, feature])}",
        hint="the model diverged, or its activations overflow in this precision; extract in float32 or bfloat16",
    )
