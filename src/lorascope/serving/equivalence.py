"""The gate before any latency: what an engine served against what the offline model computes (`reference`).

Two programs that compute one model correctly still differ by rounding: they sum in another order, fuse other operations,
batch other requests together. A bound has to let that through and nothing else. It is on differences of two logits, of a
token or a class and its rival: what moves all logits alike decides nothing.

float32 (24 bits). Sums over thousands of products err by about 1e-6 of their size, and some tens of layers do not let that
grow beyond 1e-4 of a logit. The bound is fixed, and everything has to keep it.
bfloat16 (8 bits). What rounding does depends on the model (activations of a model that was trained far from its base are
larger, and so are their errors), so it is measured: the reference computes the same prompts in bfloat16 and in float32, and s
is the standard deviation of a logit's error relative to its rivals', over all of them. The difference of two logits of which
each errs by s has standard deviation sqrt(2) s; the bound is four times that, and never less than float32's. 99% have to keep
it, for the errors of bfloat16 are no normal distribution's. It is always float32 that is compared with.

Classes. An engine's log-odds are the logarithms of its probabilities, in which nothing is lost: they are the softmax, in
float64, of the logits it gave, and one of 1e-12 is as exact as one of a half. Each log-odds of the reference's best class
against another has to differ by no more than the bound; in float32 that is 0.004, which moves a probability by 0.001 at most.
Here every error is seen, not only one that changes a choice, so it counts that an engine's rounding is not the reference's own
(vLLM on a processor: 0.8 to 1.2 times it): in bfloat16 s is taken twice, and one log-odds may differ by more where there
are fewer than a hundred. Half an adapter's scale moved SmolLM2-135M's by 12 sqrt(2) s, another run's adapter by 48.
Decisions. One that rounding cannot change, because the reference's best class leads by more than the bound, must be the same.
KL divergence. Its mean, to which a few examples that are far off add much (one adapter of many that is wrong), grows with the
square of an error: it may be 4^2 times that of the reference in bfloat16, and never has to be less than 1e-5 nats.

Greedy tokens. Each generated token is judged in its own context: the prompt and the tokens that the engine generated before
it. It has to be the reference's best one there, or trail it by no more than the bound; in float32 that is 1e-4 of the best
logit's size. Tokens that are missing count as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from lorascope.serving.export import Dtype
from lorascope.serving.reference import Classified, Judgement, rounding_error

What = Literal["token match", "log-odds", "decisions", "KL"]

HAVE_TO_HOLD: dict[Dtype, float] = {"float32": 1.0, "bfloat16": 0.99}
_ROUNDING_SIGMAS = 4.0
_ENGINES_ROUNDING = 2.0  # an engine's over the reference's, at most
_FLOAT32_LOGIT = 1e-4  # fraction of the best logit's size
_FLOAT32_LOG_ODDS = 4e-3
_FLOAT32_KL = 1e-5  # nats
_SMALLEST_PROBABILITY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class EquivalenceGate:
    """value is held against tolerance: at least that much for "token match", at most for the others. n: tokens, log-odds or
    examples compared."""

    what: What
    value: float
    tolerance: float
    passed: bool
    n: int
    detail: str


def classification_gates(
    reference: Classified, served: Float[np.ndarray, "examples classes"], *, dtype: Dtype
) -> list[EquivalenceGate]:
    """Class probabilities, example by example. What is no number counts as a probability of 0."""
    p, q = reference.exact, np.asarray(served, dtype=np.float64)
    assert p.shape == q.shape and p.size and p.shape[1] > 1, f"{q.shape} served for {p.shape}"
    is_number = np.isfinite(q).all(axis=1)
    q = np.where(np.isfinite(q), q, 0.0)
    amiss = "" if is_number.all() else f"; {int((~is_number).sum())} examples have outputs that are no numbers"
    rounding = rounding_error(_logs(reference.rounded) - _logs(p))
    bound = float(rounding_bound(_ENGINES_ROUNDING * rounding, least=_FLOAT32_LOG_ODDS))
    leads, served_leads = _leads(p, best=p), _leads(q, best=p)
    differences = np.abs(leads - served_leads)
    difference = float(np.quantile(differences, HAVE_TO_HOLD[dtype], method="lower"))
    flips = p.argmax(axis=1) != q.argmax(axis=1)
    firm = (leads > bound).all(axis=1)
    wrong = float((flips & firm).mean())
    kl, rounded_kl = (float(_kl_divergence(p, other).mean()) for other in (q, reference.rounded))
    kl_tolerance = max(_FLOAT32_KL, _ROUNDING_SIGMAS**2 * rounded_kl)
    measured = (
        f"; {dtype} alone moves one of this model by {np.sqrt(2) * rounding:.2g} (standard deviation)"
        if rounding
        else ""
    )
    return [
        EquivalenceGate(
            "log-odds", difference, bound, difference <= bound and bool(is_number.all()), differences.size,
            f"{int((differences <= bound).sum())} of {differences.size} log-odds differ by no more than rounding explains, "
            f"the worst by {differences.max():.2g} ({np.abs(p - q).max():.2g} of a probability){measured}{amiss}",
        ),
        EquivalenceGate(
            "decisions", wrong, 0.0, wrong == 0, len(p),
            f"{int(flips.sum())} of {len(p)} decisions differ, {int((flips & firm).sum())} of the {int(firm.sum())} that "
            f"rounding cannot change (the best class leads by log-odds of more than {bound:.2g})",
        ),
        EquivalenceGate(
            "KL", kl, kl_tolerance, kl <= kl_tolerance, len(p),
            f"mean KL divergence of the reference's classes from the served ones: {kl:.2g} nats"
            + (f"; from its own in {dtype}: {rounded_kl:.2g}" if rounding else ""),
        ),
    ]  # fmt: skip


def generation_gate(judged: Judgement, *, num_tokens: int, dtype: Dtype) -> EquivalenceGate:
    """Greedy tokens, each in its own context. num_tokens: how many should have been generated."""
    bound = rounding_bound(judged.rounding, least=_FLOAT32_LOGIT * np.maximum(np.abs(judged.best), 1.0))
    exact, close = judged.behind <= 0, judged.behind <= bound
    rate = int(close.sum()) / num_tokens
    detail = f"{int(exact.sum())} of {num_tokens} tokens are the reference's own choice in their context"
    if others := int((close & ~exact).sum()):
        detail += f"; {others} trail it by less than rounding explains ({float(np.max(bound[close & ~exact])):.2g} of a logit)"
    if wrong := int((~close).sum()):
        detail += f"; {wrong} trail it by more, up to {float(judged.behind.max()):.3g}"
    if missing := num_tokens - len(close):
        detail += f"; {missing} are missing"
    return EquivalenceGate("token match", rate, HAVE_TO_HOLD[dtype], rate >= HAVE_TO_HOLD[dtype], num_tokens, detail)


def rounding_bound(rounding: float, *, least: float | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """By how much rounding may move the difference of two logits. rounding: of one of them. least: what float32 explains."""
    return np.maximum(least, _ROUNDING_SIGMAS * np.sqrt(2) * rounding)


def _logs(p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    return np.log(np.maximum(p, _SMALLEST_PROBABILITY))


def _leads(
    p: Float[np.ndarray, "n classes"], *, best: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, "n classes-1"]:
    """Log-odds in p of the class that is likeliest in `best` against each other one."""
    logs, chosen = _logs(p), best.argmax(axis=1)[:, None]
    leads = np.take_along_axis(logs, chosen, axis=1) - logs
    return leads[np.arange(p.shape[1]) != chosen].reshape(len(p), -1)


def _kl_divergence(p: Float[np.ndarray, "n classes"], q: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    """KL(p || q) in nats."""
    return (p * (_logs(p) - _logs(q))).sum(axis=1)
