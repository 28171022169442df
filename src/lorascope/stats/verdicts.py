"""From evidence to a verdict: supported, refuted or inconclusive, with the p-value of what is claimed.

A claim over every part is an intersection-union test (Berger 1982): it is supported only if each part is, at the
unadjusted level. It is refuted by a part, after Holm's correction over the parts, or by the average of the parts, which a
claim about every part bounds too. Each of the two ways gets half the level, as a closed test of both (Marcus, Peritz and
Gabriel 1976). Supports and refutations are then corrected by Holm over the hypotheses of the study, each as a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorascope.stats.analysis import HypothesisResult, Part, Side, Verdict
from lorascope.stats.claims import relation
from lorascope.stats.hypotheses import Evidence, Test
from lorascope.stats.quality.power import what_would_decide, what_would_decide_by_repeats

AVERAGE = "*"
"""The model and the task of a part that is the average over all of them."""


@dataclass(frozen=True)
class Sides:
    """p-values of one claim: that it holds, and that it does not."""

    support: float
    refute: float

    def verdict(self, alpha: float) -> Verdict:
        """The estimate cannot speak for both sides at a level below one half."""
        if self.support <= alpha:
            return "supported"
        return "refuted" if self.refute <= alpha else "inconclusive"

    def of(self, verdict: Verdict) -> tuple[Side, float]:
        """The side that a verdict claims, and its p-value; where nothing is claimed, the support's."""
        return ("refutation", self.refute) if verdict == "refuted" else ("support", self.support)


NOTHING = Sides(1.0, 1.0)


@dataclass(frozen=True)
class _Judged:
    """A part with its p-values: raw, and corrected at the level that its verdict uses."""

    evidence: Evidence
    raw: Sides
    corrected: Sides
    bonferroni: Sides
    part: Part


def judge(
    name: str,
    test: Test,
    *,
    metric: str,
    parts: Sequence[Evidence],
    average: Evidence,
    over: Literal["every", "average"],
    alpha: float,
    explain: bool = True,
) -> tuple[HypothesisResult, Sides]:
    """The result before Holm over the study's hypotheses, and the p-values that Holm's correction takes. explain: say what
    would decide an open claim, which takes longer than the verdict."""
    judged, mean = _judge_parts(test, parts, average, over=over, alpha=alpha)
    basis = judged if over == "every" else [mean]
    sides = _whole(judged, mean, over)
    verdict = sides.verdict(alpha)
    shown = [item.part for item in judged]
    if average.estimate is not None and (over == "average" or len(parts) > 1):
        shown.append(mean.part)
    estimates = [item.evidence.estimate for item in basis if item.evidence.estimate is not None]
    result = HypothesisResult(
        name=name,
        kind=test.kind,
        claim=f"{test.claim} {test.scope[0] if over == 'every' else test.scope[1]}",
        verdict=verdict,
        metric=metric,
        threshold=test.threshold,
        average=test.show(average.estimate) if average.estimate is not None else None,
        parts=shown,
        num_seeds=min((estimate.num_seeds for estimate in estimates), default=0),
        num_examples=sum(estimate.num_examples for estimate in estimates),
        reason=_reason(test, verdict, basis, mean),
        would_decide=_would_decide(test, basis) if explain and verdict == "inconclusive" else "decided",
        is_ratio=test.is_ratio,
    )
    return result, sides


def _whole(judged: Sequence[_Judged], mean: _Judged, over: str) -> Sides:
    """Of the hypothesis. Corrected refutations hold the half level already, so the least of them is the whole's."""
    if over == "average":
        return mean.raw
    support = max((item.raw.support for item in judged), default=1.0)
    refute = min((item.corrected.refute for item in [*judged, mean]), default=1.0)
    return Sides(support, refute)


def _judge_parts(
    test: Test, parts: Sequence[Evidence], average: Evidence, *, over: str, alpha: float
) -> tuple[list[_Judged], _Judged]:
    """Every part, and their average."""
    raw = [_sides(test, part) for part in parts]
    usable = [index for index, part in enumerate(parts) if _is_usable(part)]
    holm, bonferroni = list(raw), list(raw)
    supports = adjust([raw[index].support for index in usable])
    refutes = adjust([raw[index].refute for index in usable])
    share = 2.0 if over == "every" and len(parts) > 1 and _is_usable(average) else 1.0
    for position, index in enumerate(usable):
        # Under "every" the support of a part needs no correction: all parts must be supported.
        support = [raw[index].support] * 2 if over == "every" else [supports[0][position], supports[1][position]]
        refute = [min(1.0, share * refutes[0][position]), min(1.0, share * refutes[1][position])]
        holm[index], bonferroni[index] = (Sides(s, r) for s, r in zip(support, refute, strict=True))
    judged = [
        _judged(test, part, raw[index], holm[index], bonferroni[index], alpha) for index, part in enumerate(parts)
    ]
    own = _sides(test, average)
    if over == "average":
        return judged, _judged(test, average, own, own, own, alpha)
    halved = Sides(own.support, min(1.0, share * own.refute)) if len(parts) > 1 else NOTHING
    return judged, _judged(test, average, own, halved, halved, alpha)


def _is_usable(part: Evidence) -> bool:
    return part.usable and part.estimate is not None


def _sides(test: Test, part: Evidence) -> Sides:
    if part.estimate is None or not part.usable:
        return NOTHING
    return Sides(test.p_support(part.estimate), test.p_refute(part.estimate))


def _judged(test: Test, evidence: Evidence, raw: Sides, corrected: Sides, bonferroni: Sides, alpha: float) -> _Judged:
    estimate = evidence.estimate
    verdict = corrected.verdict(alpha)
    side, p_value = raw.of(verdict)
    is_tested = _is_usable(evidence)
    reason = evidence.why
    if is_tested:
        assert estimate is not None
        reason = relation(test.show(estimate), verdict, low=test.low, high=test.high, bounds=test.bounds)
    part = Part(
        model=evidence.model,
        task=evidence.task,
        verdict=verdict,
        estimate=test.show(estimate) if estimate is not None else None,
        p_value=p_value if is_tested else None,
        p_holm=corrected.of(verdict)[1] if is_tested else None,
        p_bonferroni=bonferroni.of(verdict)[1] if is_tested else None,
        num_seeds=estimate.num_seeds if estimate else 0,
        num_examples=estimate.num_examples if estimate else 0,
        reason=reason,
        side=side,
    )
    return _Judged(evidence, raw, corrected, bonferroni, part)


def _reason(test: Test, verdict: Verdict, basis: Sequence[_Judged], mean: _Judged) -> str:
    """What the verdict rests on: the part or the average that decided, or the first that is open."""
    if verdict == "refuted":
        against = min([*basis, mean], key=lambda item: item.corrected.refute)
        return f"{_place(test, against.part)}: {against.part.reason}"
    if verdict == "supported":
        weakest = max(basis, key=lambda item: item.raw.support)
        label = ", the weakest part" if len(basis) > 1 else ""
        return f"{_place(test, weakest.part)}{label}: {weakest.part.reason}"
    undecided = [item.part for item in basis if item.part.verdict == "inconclusive"] or [item.part for item in basis]
    more = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
    return f"{_place(test, undecided[0])}{more}: {undecided[0].reason}"


def _place(test: Test, part: Part) -> str:
    return "average" if part.task == AVERAGE else f"{part.model}{test.joint}{part.task}"


def _would_decide(test: Test, basis: Sequence[_Judged]) -> str:
    needs = []
    for item in basis:
        evidence, part = item.evidence, item.part
        if part.verdict != "inconclusive":
            continue
        if not evidence.usable or evidence.estimate is None:
            need = evidence.remedy
        elif test.unit == "repeats":
            need = what_would_decide_by_repeats(
                evidence.estimate, distance=test.distance(evidence.estimate), tail=test.tail
            )
        elif test.examples is None:
            need = "more seeds: examples play no part in a cost"
        else:
            distance = test.distance(evidence.estimate)
            need = what_would_decide(evidence.estimate, distance=distance, tail=test.tail, kind=test.examples)
        needs.append(f"{_place(test, part)}: {need}")
    return ". ".join(needs) if needs else "decided"


def adjust(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """(Holm 1979, Bonferroni) adjusted p-values, in the order given.

    Written out because statsmodels' function runs the garbage collector at every call, a tenth of a second each time.
    """
    count = len(p_values)
    holm, largest = [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        holm[index] = largest
    return holm, [min(1.0, count * p) for p in p_values]


def apply_family(results: Sequence[HypothesisResult], sides: Sequence[Sides], alpha: float) -> list[HypothesisResult]:
    """Holm over the declared hypotheses, supports and refutations apart: a verdict that holds alone but not within the
    family becomes inconclusive."""
    supports, refutes = adjust([side.support for side in sides]), adjust([side.refute for side in sides])
    final = []
    for index, (result, own) in enumerate(zip(results, sides, strict=True)):
        holm = Sides(supports[0][index], refutes[0][index])
        bonferroni = Sides(supports[1][index], refutes[1][index])
        side, p_value = own.of(result.verdict)
        p_holm, p_bonferroni = holm.of(result.verdict)[1], bonferroni.of(result.verdict)[1]
        result = replace(result, p_value=p_value, p_holm=p_holm, p_bonferroni=p_bonferroni, side=side)
        if result.verdict != "inconclusive" and p_holm > alpha:
            result = replace(
                result,
                verdict="inconclusive",
                reason=f"{result.reason}; {result.verdict} alone (p = {p_value:.3f}), but not among the study's "
                f"{len(results)} hypotheses (Holm-adjusted p = {p_holm:.3f})",
                would_decide="fewer hypotheses declared beforehand, or more "
                + ("repeats" if result.kind == "overhead" else "seeds or examples"),
            )
        final.append(result)
    return final
