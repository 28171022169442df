"""How far CKA would move with other examples: the bootstrap, for many models at once.

A bootstrap resample is n examples drawn with replacement: counts w_i that sum to n. HSIC_1 averages over four different
examples at a time; in a resample some of the n rows are copies of one example, and taking copies for different ones
puts the diagonal of K back in, the very bias that HSIC_1 removes (the centre of the draws moves from 0 to 0.8 for
independent features at n = 64, d = 256). So copies never meet: a resample's value is the weighted U-statistic

    HSIC_w = sum over different i, j, q, r of w_i w_j w_q w_r (K_ij L_ij + K_ij L_qr - 2 K_ij L_iq)
             / sum over different i, j, q, r of w_i w_j w_q w_r,

which is HSIC_1 at w = 1, unbiased for every fixed w, and does not change when the features are shifted. No entry is
gathered: with zero diagonals, P = K o L, a = K w, b = L w, a2 = K w^2, b2 = L w^2, p_kl = (w^k)' P w^l and
S_k = sum w^k, inclusion and exclusion of equal indices give the three sums of the numerator as

    (S_1^2 - S_2) p_11 - 4 S_1 p_12 + 4 p_13 + 2 p_22
    (w'a)(w'b) - 4 (w^2)'(a o b) + 2 p_22
    S_1 (w'(a o b) - p_12) - ((w^2)'(a o b) - p_22) - w'(a2 o b + a o b2) + 2 p_13,

so all draws of a layer are products of [draws, examples] counts with L, K o L and L o L. The denominator cancels in
CKA. K and L may be U-centred beforehand, as `grams` leaves them, since shifts do not matter. All of it is float64.

The counts are an argument: the same ones for every model make the difference of two models' draws the draw of their
difference. For the parts of CKA that are linear in single examples the spread of the draws is right; what comes from
pairs counts up to three times in the variance (Owen 2007 has the same factor for two-way data), so intervals are too
wide, never too narrow for it, where features are many and isotropic; docs/drift.md has simulated coverage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lorascope.drift.grams import RESOLUTION, Grams
from lorascope.drift.similarity import check_comparable
from lorascope.errors import StudyError

NUM_DRAWS = 1000


def bootstrap_counts(
    num_examples: int, *, generator: np.random.Generator, draws: int = NUM_DRAWS
) -> Float64[Tensor, "draws examples"]:
    """How often each example is in each resample. On the CPU."""
    return torch.from_numpy(
        generator.multinomial(num_examples, np.full(num_examples, 1 / num_examples), draws)
    ).double()


def bootstrap_cka(
    base: Grams, models: Sequence[Grams], *, counts: Float64[Tensor, "draws examples"]
) -> Float64[Tensor, "draws models layers"]:
    """Debiased CKA of each model to the base, layer by layer, in each resample of the examples.

    Models may come in several calls with the same counts. Features keep the standardisation of the whole sample. Raises
    StudyError for a resample in which a layer has nothing to compare (fewer than four different examples, or no spread).
    """
    for model in models:
        check_comparable(base, model, same_layers=True)
        assert model.estimator == "debiased", "the biased estimator has no unbiased resample"
    if int((counts > 0).sum(1).min()) < 4:
        raise StudyError(
            f"a resample of {base.num_examples} examples has fewer than four different ones",
            hint="that is too few examples for a bootstrap; take hundreds",
        )
    weights = Weights.of(counts.to(base.matrices.device))
    draws = base.matrices.new_empty(len(counts), len(models), base.num_layers, dtype=torch.float64)
    for layer in range(base.num_layers):
        reference = base.matrices[layer].double()
        reference_sums = weights.row_sums(reference)
        reference_self = _spread(weights, base, layer, reference, reference_sums)
        for index, model in enumerate(models):
            other = model.matrices[layer].double()
            sums = weights.row_sums(other)
            own = _spread(weights, model, layer, other, sums)
            product = weights.hsic(reference, other, reference_sums, sums)
            draws[:, index, layer] = product / (own.sqrt() * reference_self.sqrt())
    return draws


class Weights:
    """The powers of the counts and their sums. All methods are linear algebra over all draws at once."""

    def __init__(self, powers: Sequence[Tensor]) -> None:
        self.one, self.two, self.three = powers
        self.s1, self.s2 = self.one.sum(1), self.two.sum(1)
        self.stacked = torch.cat([self.one, self.two])

    @classmethod
    def of(cls, counts: Float64[Tensor, "draws examples"]) -> Weights:
        return cls((counts, counts.square(), counts**3))

    def row_sums(self, gram: Float64[Tensor, "examples examples"]) -> tuple[Tensor, Tensor]:
        """K w and K w^2, each [draws, examples]."""
        first, second = (self.stacked @ gram).chunk(2)
        return first, second

    def hsic(
        self,
        k: Float64[Tensor, "examples examples"],
        l: Float64[Tensor, "examples examples"],  # noqa: E741 (Song et al.'s letter)
        k_sums: tuple[Tensor, Tensor],
        l_sums: tuple[Tensor, Tensor],
    ) -> Float64[Tensor, " draws"]:
        """The numerator of HSIC_w for two symmetric matrices of zero diagonal."""
        pw, pw2 = self.row_sums(k * l)
        p11, p12, p13 = (pw * self.one).sum(1), (pw * self.two).sum(1), (pw * self.three).sum(1)
        p22 = (pw2 * self.two).sum(1)
        (a, a2), (b, b2) = k_sums, l_sums
        ab = a * b
        w_ab, w2_ab = (self.one * ab).sum(1), (self.two * ab).sum(1)
        crossed = (self.one * (a2 * b + a * b2)).sum(1)
        pairs = (self.s1.square() - self.s2) * p11 - 4 * self.s1 * p12 + 4 * p13 + 2 * p22
        apart = (self.one * a).sum(1) * (self.one * b).sum(1) - 4 * w2_ab + 2 * p22
        shared = self.s1 * (w_ab - p12) - (w2_ab - p22) - crossed + 2 * p13
        return pairs + apart - 2 * shared


def _spread(
    weights: Weights, model: Grams, layer: int, gram: Tensor, sums: tuple[Tensor, Tensor]
) -> Float64[Tensor, " draws"]:
    """HSIC_w of a layer with itself, refused where it is rounding beside that of the whole sample."""
    own = weights.hsic(gram, gram, sums, sums)
    if float(own.min()) <= (RESOLUTION * model.num_examples * float(model.norms[layer])) ** 2:
        raise StudyError(
            f"layer {layer} of {model.site} has no spread in a resample of the {model.num_examples} examples",
            hint="a few examples differ from all others there; take more examples, or leave the layer out",
        )
    return own
