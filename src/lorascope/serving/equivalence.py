"""The gate before any latency: what an engine served against what the offline model computes (`reference`).

Two programs that compute one model correctly still differ by rounding: they sum in another order, fuse other operations,
batch other requests together. A tolerance has to let that through and nothing else. It is chosen by dtype, not by
outcome:

float32 (24 bits). Sums over thousands of products err by about 1e-6 of their size, and some tens of layers do not let that
grow beyond 1e-4 of a logit. A probability moves by at most a quarter of a logit's error in two classes, so 1e-3 is ten
times what rounding explains, while a missing head, another adapter or half a scale moves probabilities by whole per cents.
bfloat16 (8 bits). One rounding errs by 2^-9 = 0.2%, and every layer adds to it: two correct programs differ by about 1% of
the largest logits. Probabilities may differ by 0.1 in the worst example, the mean KL divergence (which one bad example
does not make) stays below 1e-3 nats.

Decisions. A decision that rounding cannot change, because the reference's best and second-best probability are further
apart than twice the tolerance, must be the same. The flip rate over all examples is reported beside it.

Greedy tokens. After one different token the two texts answer different questions, so what can be compared is the text up
to the first step where rounding may decide: the first whose margin, the best logit minus the second-best, is below a bound
in proportion to the best logit's size. Every token before it must agree (float32) or nearly every one (bfloat16, whose
bound is not the worst case: that would leave nothing to compare). Too few comparable tokens are no evidence, and fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from lorascope.serving.export import Dtype
from lorascope.serving.reference import Continuations

What = Literal["token match", "probability", "decisions", "KL"]

PROBABILITY_TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.1}
KL_TOLERANCE: dict[Dtype, float] = {"float32": 1e-5, "bfloat16": 1e-3}
MARGIN_BOUND: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.02}  # fraction of the best logit's size
TOKEN_MATCH: dict[Dtype, float] = {"float32": 1.0, "bfloat16": 0.98}
FEWEST_COMPARABLE = 0.05  # of all tokens
_SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class EquivalenceGate:
    """value is held against tolerance: at least that much for "token match", at most for the others. n: tokens or
    examples compared."""

    what: What
    value: float
    tolerance: float
    passed: bool
    n: int
    detail: str


def classification_gates(
    reference: Float[np.ndarray, "examples classes"],
    served: Float[np.ndarray, "examples classes"],
    *,
    dtype: Dtype,
) -> list[EquivalenceGate]:
    """Class probabilities, example by example. What is no number counts as a probability of 0."""
    p = np.asarray(reference, dtype=np.float64)
    q = np.asarray(served, dtype=np.float64)
    assert p.shape == q.shape and p.size, f"{q.shape} served for {p.shape}"
    is_number = np.isfinite(q).all(axis=1)
    q = np.where(np.isfinite(q), q, 0.0)
    amiss = "" if is_number.all() else f"; {int((~is_number).sum())} examples have outputs that are no numbers"
    n, tolerance = len(p), PROBABILITY_TOLERANCE[dtype]
    difference = float(np.abs(p - q).max())
    kl = float(_kl_divergence(p, q).mean())
    flips = p.argmax(axis=1) != q.argmax(axis=1)
    firm = _top_two_margin(p) > 2 * tolerance
    wrong = float((flips & firm).sum() / n)
    return [
        EquivalenceGate(
            "probability", difference, tolerance, difference <= tolerance and bool(is_number.all()), n,
            f"largest difference of a class probability ({dtype}): {difference:.2g}{amiss}",
        ),
        EquivalenceGate(
            "decisions", wrong, 0.0, wrong == 0, n,
            f"{int(flips.sum())} of {n} decisions differ, {int((flips & firm).sum())} of the {int(firm.sum())} that "
            f"rounding cannot change (top two more than {2 * tolerance:g} apart)",
        ),
        EquivalenceGate(
            "KL", kl, KL_TOLERANCE[dtype], kl <= KL_TOLERANCE[dtype], n,
            f"mean KL divergence of the reference's classes from the served ones ({dtype}): {kl:.2g} nats",
        ),
    ]  # fmt: skip


def flip_rate(reference: Float[np.ndarray, "examples classes"], served: Float[np.ndarray, "examples classes"]) -> float:
    """The fraction of decisions that differ, rounding's own included."""
    return float((np.asarray(reference).argmax(axis=1) != np.asarray(served).argmax(axis=1)).mean())


def generation_gate(reference: Continuations, served: Sequence[Sequence[int]], *, dtype: Dtype) -> EquivalenceGate:
    """Greedy tokens, up to the first step of each prompt where rounding may decide. An output that ends early lacks
    the tokens it should have had."""
    assert len(served) == len(reference.tokens), f"{len(served)} outputs for {len(reference.tokens)} prompts"
    comparable, agrees = comparable_tokens(reference, dtype=dtype), _agreement(reference, served)
    n, total = int(comparable.sum()), comparable.size
    matched = int((comparable & agrees).sum())
    rate = matched / n if n else 0.0
    enough = n >= FEWEST_COMPARABLE * total
    wrong = np.flatnonzero((comparable & ~agrees).any(axis=1))
    detail = f"{matched} of {n} comparable tokens agree; {n} of {total} come before the first near-tie of their prompt"
    if len(wrong):
        first = wrong[0]
        step = int(np.flatnonzero(comparable[first] & ~agrees[first])[0])
        found = served[first][step] if step < len(served[first]) else None
        detail += (
            f"; prompt {first}, token {step}: {found} for {int(reference.tokens[first, step])}, which leads by a logit "
            f"difference of {reference.margins[first, step]:.3g}"
        )
    if not enough:
        detail += f"; fewer than {FEWEST_COMPARABLE:.0%} are no evidence"
    return EquivalenceGate("token match", rate, TOKEN_MATCH[dtype], enough and rate >= TOKEN_MATCH[dtype], n, detail)


def comparable_tokens(reference: Continuations, *, dtype: Dtype) -> Bool[np.ndarray, "prompts steps"]:
    """The steps before the first one of the prompt that rounding may decide."""
    bound = MARGIN_BOUND[dtype] * np.maximum(np.abs(reference.best), 1.0)
    return ~np.logical_or.accumulate(reference.margins < bound, axis=1)


def _agreement(reference: Continuations, served: Sequence[Sequence[int]]) -> Bool[np.ndarray, "prompts steps"]:
    """Whether all tokens up to and including this one are the reference's."""
    prompts, steps = reference.tokens.shape
    found = np.full((prompts, steps), -1, dtype=np.int64)
    for row, tokens in enumerate(served):
        kept = list(tokens)[:steps]
        found[row, : len(kept)] = kept
    return np.logical_and.accumulate(found == reference.tokens, axis=1)


def _kl_divergence(p: Float[np.ndarray, "n classes"], q: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    """KL(p || q) in nats; a probability below 1e-12 counts as that, so that it stays finite."""
    p, q = (np.maximum(values, _SMALLEST_PROBABILITY) for values in (p, q))
    return (p * np.log(p / q)).sum(axis=1)


def _top_two_margin(p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    ordered = np.sort(p, axis=1)
    return ordered[:, -1] - ordered[:, -2]
