"""The gate before any latency: what an engine served against what the offline model computes (`reference`).

Two programs that compute one model correctly still differ by rounding: they sum in another order, fuse other operations,
batch other requests together. A tolerance has to let that through and nothing else. It is one a
dtype, the same for every arm and engine; those of bfloat16 were set after the first measurement named below:

float32 (24 bits). Sums over thousands of products err by about 1e-6 of their size, and some tens of layers do not let that
grow beyond 1e-4 of a logit. A probability moves by at most a quarter of a logit's error in two classes, so 1e-3 is ten
times what rounding explains, while a missing head, another adapter or half a scale moves probabilities by whole per cents.
bfloat16 (8 bits). One rounding errs by up to 2^-9 = 0.2%, and every layer adds to it. Probabilities may differ by 0.05 in
the worst example, and the mean KL divergence, to which no single example adds much, stays below 1e-3 nats. (A first
measurement, SmolLM2-135M in vLLM against transformers on a processor: 2e-6 and 1e-8 in float32, 0.02 and 7e-5 in bfloat16.)

Decisions. A decision that rounding cannot change, because the reference's best and second-best probability are further
apart than twice the tolerance, must be the same. The flip rate over all examples is reported beside it.

Greedy tokens. Each generated token is judged in its own context: the prompt and the tokens that the engine generated before
it. It has to be the reference's best one there, or trail it by no more than rounding explains. In float32 that is 1e-4 of the
best logit's size. In bfloat16 it depends on the model (activations of a model that was trained far from its base are larger,
and so are their errors), so it is measured: the reference computes the same contexts in bfloat16 and in float32, and the
standard deviation s of a logit's error, relative to its rivals', is taken over all steps. Two logits of which each errs by s
change places only if they lie within some sqrt(2) s; the bound is four times that. All tokens must hold in float32, 99% in
bfloat16, whose errors are no normal distribution's. Tokens that are missing count as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lorascope.serving.export import Dtype
from lorascope.serving.reference import Judgement

What = Literal["token match", "probability", "decisions", "KL"]

PROBABILITY_TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.05}
KL_TOLERANCE: dict[Dtype, float] = {"float32": 1e-5, "bfloat16": 1e-3}
TOKEN_MATCH: dict[Dtype, float] = {"float32": 1.0, "bfloat16": 0.99}
_FLOAT32_BOUND = 1e-4  # fraction of the best logit's size
_ROUNDING_SIGMAS = 4.0
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


def generation_gate(judged: Judgement, *, num_tokens: int, dtype: Dtype) -> EquivalenceGate:
    """Greedy tokens, each in its own context. num_tokens: how many should have been generated."""
    bound = rounding_bound(judged, dtype=dtype)
    exact, close = judged.behind <= 0, judged.behind <= bound
    rate = int(close.sum()) / num_tokens
    detail = f"{int(exact.sum())} of {num_tokens} tokens are the reference's own choice in their context"
    if others := int((close & ~exact).sum()):
        detail += f"; {others} trail it by less than rounding explains ({float(np.max(bound[close & ~exact])):.2g} of a logit)"
    if wrong := int((~close).sum()):
        detail += f"; {wrong} trail it by more, up to {float(judged.behind.max()):.3g}"
    if missing := num_tokens - len(close):
        detail += f"; {missing} are missing"
    return EquivalenceGate("token match", rate, TOKEN_MATCH[dtype], rate >= TOKEN_MATCH[dtype], num_tokens, detail)


def rounding_bound(judged: Judgement, *, dtype: Dtype) -> Float[np.ndarray, " tokens"]:
    """By how much a token that rounding chose may trail the best one."""
    if dtype == "float32":
        return _FLOAT32_BOUND * np.maximum(np.abs(judged.best), 1.0)
    return np.full(judged.best.shape, _ROUNDING_SIGMAS * np.sqrt(2) * judged.rounding)


def _kl_divergence(p: Float[np.ndarray, "n classes"], q: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    """KL(p || q) in nats; a probability below 1e-12 counts as that, so that it stays finite."""
    p, q = (np.maximum(values, _SMALLEST_PROBABILITY) for values in (p, q))
    return (p * np.log(p / q)).sum(axis=1)


def _top_two_margin(p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    ordered = np.sort(p, axis=1)
    return ordered[:, -1] - ordered[:, -2]
