"""Spectra of batches of matrices in float64: singular values, the ranks they imply, singular vectors and which are new.

The eigenvalues of a matrix's smaller Gram matrix are its squared singular values; they cost a fraction of a full
decomposition. Squaring loses the smallest values to rounding, so whatever is lost is noticed.

Products are the device's work, decompositions always the processor's: at these sizes (hundreds to a few thousand) one core
takes about as long as a GPU, which solves matrices one after the other, and there are many cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TOP_VECTORS = 10
INTRUDER_THRESHOLD = 0.5
# Relative to a matrix's largest singular value: those above 1e-5 come out of a Gram matrix within about 1e-10, and
# directions below 1e-6 are rounding.
_GRAM_IS_EXACT = 1e-5
_NO_DIRECTION = 1e-6


@dataclass(frozen=True)
class Intruders:
    """count: how many of the top left singular vectors of W + dW are unlike all of W's. energy: the sum of their squared
    singular values."""

    count: int
    energy: float


def singular_values(matrices: Float[Tensor, "*matrices out in"]) -> Float[Tensor, "*matrices values"]:
    """Singular values in descending order, float64, by the eigenvalues of the smaller Gram matrix.

    Matrices whose smallest values the Gram matrix does not resolve (below 1e-5 of the largest) are decomposed directly.
    """
    matrices = matrices.double()
    values = torch.linalg.eigvalsh(_smaller_gram(matrices).cpu()).flip(-1).clamp_min(0).sqrt()
    unresolved = values[..., -1] < _GRAM_IS_EXACT * values[..., 0]
    if bool(unresolved.any()):
        values[unresolved] = torch.linalg.svdvals(matrices[unresolved.to(matrices.device)].cpu())
    return values.to(matrices.device)


def low_rank_singular_values(
    left: Float[Tensor, "*matrices out rank"], right: Float[Tensor, "*matrices rank in"]
) -> Float[Tensor, "*matrices rank"]:
    """The singular values of left @ right, descending, float64: those of R_left R_right', where left = Q_left R_left and
    right' = Q_right R_right, for the Q are orthonormal."""
    cores = [torch.linalg.qr(factor.cpu().double()).R for factor in (left, right.mT)]
    return torch.linalg.svdvals(cores[0] @ cores[1].mT).to(left.device)


def stable_rank(values: Float[Tensor, "*matrices values"]) -> Float[Tensor, " *matrices"]:
    """||dW||_F^2 / ||dW||_2^2 (Rudelson and Vershynin 2007) from singular values, largest first; 0 for a zero matrix."""
    largest = values[..., 0].square()
    return torch.where(largest > 0, values.square().sum(-1) / largest.clamp_min(torch.finfo(largest.dtype).tiny), 0)


def effective_rank(values: Float[Tensor, "*matrices values"]) -> Float[Tensor, " *matrices"]:
    """exp of the entropy of p = sigma / sum sigma (Roy and Vetterli 2007); 0 for a zero matrix."""
    total = values.sum(-1, keepdim=True)
    p = values / total.clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(total[..., 0] > 0, (-torch.xlogy(p, p).sum(-1)).exp(), 0)


# ------------------------------------------------------------------------------------------------ intruder dimensions


def left_singular_vectors(
    matrices: Float[Tensor, "*matrices out in"], *, top: int | None = None
) -> tuple[Float[Tensor, "*matrices out k"], Float[Tensor, "*matrices k"]]:
    """(vectors, singular values), descending, float64. top: how many (default min(out, in)).

    A direction whose singular value is below 1e-6 of the largest is none of the matrix's: its vector is 0.
    """
    matrices = matrices.double()
    out, width = matrices.shape[-2:]
    top = min(out, width) if top is None else min(top, out, width)
    eigenvectors = torch.linalg.eigh(_smaller_gram(matrices).cpu()).eigenvectors
    vectors = eigenvectors[..., -top:].flip(-1).to(matrices.device)
    if out <= width:
        values = (matrices.mT @ vectors).norm(dim=-2)
    else:
        vectors = matrices @ vectors
        values = vectors.norm(dim=-2)
        vectors = vectors / values.clamp_min(torch.finfo(values.dtype).tiny)[..., None, :]
    exists = values > _NO_DIRECTION * values[..., :1]
    return vectors * exists[..., None, :], values * exists


def find_intruders(
    base_vectors: Float[Tensor, "*matrices out in"],
    tuned: Float[Tensor, "*matrices out in"],
    *,
    top: int = TOP_VECTORS,
    threshold: float = INTRUDER_THRESHOLD,
) -> list[Intruders]:
    """Intruder dimensions of each tuned matrix (Shuttleworth et al. 2024): those of its `top` left singular vectors whose
    absolute cosine with every left singular vector of its base is below `threshold`."""
    vectors, values = left_singular_vectors(tuned, top=top)
    cosines = (base_vectors.mT.double() @ vectors).abs().amax(dim=-2)
    is_intruder: Bool[Tensor, "*matrices k"] = (cosines < threshold) & (values > 0)
    energies = (values.square() * is_intruder).sum(-1)
    pairs = zip(is_intruder.sum(-1).flatten().tolist(), energies.flatten().tolist(), strict=True)
    return [Intruders(*pair) for pair in pairs]


def _smaller_gram(matrices: Float[Tensor, "*matrices out in"]) -> Float[Tensor, "*matrices n n"]:
    return matrices @ matrices.mT if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT @ matrices
