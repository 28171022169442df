"""From an estimate to a verdict: supported, refuted or inconclusive, and what would decide it.

Every hypothesis is one test per (model, task) part, or one on their average. "every" is an intersection-union test
(Berger 1982): supported only if each part is, at the unadjusted level; it is refuted as soon as one part is refuted
after Holm's correction over the parts. Supporting p-values are then Holm-adjusted over all hypotheses of the study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import common_direction
from lorascope.stats.analysis import HypothesisResult, Interval, Part, Verdict
from lorascope.stats.claims import amount, edge, lower_claim, margin_claim, overhead_claim, relation, superior_claim
from lorascope.stats.quality.multibootstrap import BootstrapEstimate
from lorascope.stats.quality.power import what_would_decide, what_would_decide_by_repeats
from lorascope.stats.serving.repeats import ratio_over_repeats
from lorascope.study.hypothesis import Equivalent, Hypothesis, Lower, NonInferior, Overhead, Superior

ONE_SEED = "one seed: nothing can be said about other seeds"


@dataclass(frozen=True)
class Test:
    """A claim about one number. p_support, p_refute: of an estimate. show: the interval that decides.

    tail: one-sided level of the deciding bound. distance: how far an estimate is from the nearest threshold.
    low, high: bounds of what the claim allows, on the scale of `show` (None: open); bounds: the same in words.
    examples: what the examples are called that the estimate is also a sample of (None: it is of none). unit: what is
    repeated. scope: what "every" and "average" range over. joint: between a part's model and its place.
    """

    kind: str
    method: str
    reference: str
    claim: str
    threshold: float | None
    tail: float
    p_support: Callable[[BootstrapEstimate], float]
    p_refute: Callable[[BootstrapEstimate], float]
    show: Callable[[BootstrapEstimate], Interval]
    distance: Callable[[BootstrapEstimate], float]
    low: float | None
    high: float | None
    bounds: str
    examples: str | None = "test examples"
    unit: str = "seeds"
    scope: tuple[str, str] = ("on every model and task", "on average over models and tasks")
    joint: str = " on "


def hypothesis_test(hypothesis: Hypothesis, metrics: Sequence[str] = ()) -> Test:
    """The test a hypothesis of the study stands for. metrics: of a claim about quality, those it is about. Where they are
    not of one direction only the claim means anything: nothing may be judged by it."""
    if isinstance(hypothesis, Lower):
        return _lower_test(hypothesis)
    if isinstance(hypothesis, Overhead):
        return _overhead_test(hypothesis)
    direction = common_direction(metrics) or "higher"
    if isinstance(hypothesis, NonInferior):
        return _non_inferiority_test(hypothesis, metrics, direction)
    if isinstance(hypothesis, Superior):
        return _superiority_test(hypothesis, metrics, direction)
    return _equivalence_test(hypothesis, metrics)


def _non_inferiority_test(hypothesis: NonInferior, metrics: Sequence[str], direction: Direction) -> Test:
    """Differences are method - reference in the metric's unit: a loss is below 0 where higher is better, else above."""
    arm, to = hypothesis.non_inferior, hypothesis.to
    claim = margin_claim(arm, to, metrics, hypothesis.margin, direction)
    if direction == "higher":
        edge_at = -hypothesis.margin
        return Test(
            "non_inferior", arm, to, claim, edge_at, 0.05,
            lambda e: e.p_above(edge_at), lambda e: e.p_below(edge_at),
            lambda e: e.interval(0.90), lambda e: abs(e.mean - edge_at),
            edge_at, None, f"above {edge(metrics, edge_at)}",
        )  # fmt: skip
    limit = hypothesis.margin
    return Test(
        "non_inferior", arm, to, claim, limit, 0.05,
        lambda e: e.p_below(limit), lambda e: e.p_above(limit),
        lambda e: e.interval(0.90), lambda e: abs(e.mean - limit),
        None, limit, f"below {edge(metrics, limit)}",
    )  # fmt: skip


def _equivalence_test(hypothesis: Equivalent, metrics: Sequence[str]) -> Test:
    """Two one-sided tests, which know no direction."""
    margin, arm, to = hypothesis.margin, hypothesis.equivalent, hypothesis.to
    return Test(
        "equivalent", arm, to, f"{arm} and {to} differ by less than {amount(metrics, margin)}", margin, 0.05,
        lambda e: max(e.p_above(-margin), e.p_below(margin)),
        lambda e: min(1.0, 2 * min(e.p_below(-margin), e.p_above(margin))),
        lambda e: e.interval(0.90), lambda e: abs(margin - abs(e.mean)),
        -margin, margin, f"between {edge(metrics, -margin)} and {edge(metrics, margin)}",
    )  # fmt: skip


def _superiority_test(hypothesis: Superior, metrics: Sequence[str], direction: Direction) -> Test:
    arm, to = hypothesis.superior, hypothesis.to
    claim, is_higher = superior_claim(arm, to, metrics, direction), direction == "higher"
    better, worse = BootstrapEstimate.p_above, BootstrapEstimate.p_below
    if not is_higher:
        better, worse = worse, better
    return Test(
        "superior", arm, to, claim, 0.0, 0.025,
        lambda e: min(1.0, 2 * better(e, 0.0)), lambda e: min(1.0, 2 * worse(e, 0.0)),
        lambda e: e.interval(0.95), lambda e: abs(e.mean),
        0.0 if is_higher else None, None if is_higher else 0.0, "above 0" if is_higher else "below 0",
    )  # fmt: skip


def _lower_test(hypothesis: Lower) -> Test:
    """Estimates are logs of the ratio of geometric seed means; intervals and the threshold are shown as ratios."""
    import math

    arm, than, ratio = hypothesis.lower, hypothesis.than, 1 - hypothesis.by
    log_edge = math.log(ratio) if ratio > 0 else -math.inf
    claim = lower_claim(arm, than, hypothesis.on, hypothesis.by)
    examples = "probe examples" if hypothesis.on == "drift" else None
    how = f"t over seeds{' and examples' if examples else ''}, log scale"

    def show(estimate: BootstrapEstimate) -> Interval:
        log = estimate.interval(0.95)
        return Interval(math.exp(log.estimate), math.exp(log.low), math.exp(log.high), 0.95, how)

    return Test(
        "lower", arm, than, claim, ratio, 0.025,
        lambda e: 0.0 if e.mean == log_edge and not e.variance else min(1.0, 2 * e.p_below(log_edge)),
        lambda e: min(1.0, 2 * e.p_above(log_edge)),
        show, lambda e: abs(e.mean - log_edge),
        None, ratio, f"at or below {100 * ratio:g}% of {than}", examples,
    )  # fmt: skip


def _overhead_test(hypothesis: Overhead) -> Test:
    """Estimates are logs of how much dearer an arm is, over repeats; intervals and the threshold are shown as ratios."""
    import math

    arm, over, ratio = hypothesis.overhead, hypothesis.over, 1 + hypothesis.at_most
    log_edge = math.log(ratio)
    return Test(
        "overhead", arm, over, overhead_claim(arm, over, hypothesis.on, hypothesis.at_most), ratio, 0.05,
        lambda e: e.p_below(log_edge), lambda e: e.p_above(log_edge),
        lambda e: ratio_over_repeats(e, confidence=0.90), lambda e: abs(e.mean - log_edge),
        None, ratio, f"at or below {100 * ratio:g}% of {over}", None, "repeats",
        ("at every model, workload and batch size", "on average over models, workloads and batch sizes"), ", ",
    )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What the measurements say on one part. estimate is None where they say nothing; why: the reason.

    usable: whether the estimate may decide (False with one seed of anything that varies between seeds, or an arm that
    failed a gate). remedy: what would make it usable.
    """

    model: str
    task: str
    estimate: BootstrapEstimate | None
    usable: bool
    why: str = ""
    remedy: str = "at least two seeds of both arms (three or more to be of use)"


def judge(
    name: str, test: Test, *, metric: str, parts: Sequence[Evidence], average: Evidence, over: str, alpha: float
) -> tuple[HypothesisResult, float]:
    """The result before Holm over the study's hypotheses, and its supporting p-value (1.0: it cannot be)."""
    judged = _judge_parts(test, parts if over == "every" else [average], alpha)
    basis = parts if over == "every" else [average]
    refuted = [part for part in judged if part.verdict == "refuted"]
    undecided = [part for part in judged if part.verdict == "inconclusive"]
    if refuted:
        verdict, reason = "refuted", f"{_place(test, refuted[0])}: {refuted[0].reason}"
    elif undecided:
        more = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
        verdict, reason = "inconclusive", f"{_place(test, undecided[0])}{more}: {undecided[0].reason}"
    else:
        weakest = max(judged, key=lambda part: part.p_value or 0.0)
        verdict, reason = "supported", f"{_place(test, weakest)}, the weakest part: {weakest.reason}"
        if len(judged) == 1:
            reason = f"{_place(test, weakest)}: {weakest.reason}"
    shown = judged if over == "every" else [*_judge_parts(test, parts, alpha), *judged]
    estimates = [part.estimate for part in basis if part.estimate is not None]
    p_value = max((part.p_value if part.p_value is not None else 1.0) for part in judged)
    if any(not part.usable for part in basis):
        p_value = 1.0
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
        reason=reason,
        would_decide=_would_decide(test, basis, judged),
    )
    return result, p_value


def _judge_parts(test: Test, parts: Sequence[Evidence], alpha: float) -> list[Part]:
    usable = [part for part in parts if part.usable and part.estimate is not None]
    support = {id(part): test.p_support(part.estimate) for part in usable if part.estimate is not None}
    refute = {id(part): test.p_refute(part.estimate) for part in usable if part.estimate is not None}
    holm, bonferroni = adjust(list(support.values()))
    refute_holm, _ = adjust(list(refute.values()))
    position = {id(part): index for index, part in enumerate(usable)}
    judged = []
    for part in parts:
        interval = test.show(part.estimate) if part.estimate is not None else None
        seeds = part.estimate.num_seeds if part.estimate else 0
        examples = part.estimate.num_examples if part.estimate else 0
        if id(part) not in position:
            judged.append(
                Part(part.model, part.task, "inconclusive", interval, None, None, None, seeds, examples, part.why)
            )
            continue
        index = position[id(part)]
        verdict: Verdict = "inconclusive"
        if support[id(part)] <= alpha:
            verdict = "supported"
        elif refute_holm[index] <= alpha:
            verdict = "refuted"
        assert interval is not None
        reason = relation(interval, verdict, low=test.low, high=test.high, bounds=test.bounds)
        judged.append(
            Part(part.model, part.task, verdict, interval, support[id(part)], holm[index], bonferroni[index],
                 seeds, examples, reason)
        )  # fmt: skip
    return judged


def _place(test: Test, part: Part) -> str:
    return "average" if part.task == "*" else f"{part.model}{test.joint}{part.task}"


def _would_decide(test: Test, basis: Sequence[Evidence], judged: Sequence[Part]) -> str:
    needs = []
    for evidence, part in zip(basis, judged, strict=True):
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


def apply_family(
    results: Sequence[HypothesisResult], p_values: Sequence[float], alpha: float
) -> list[HypothesisResult]:
    """Holm over the declared hypotheses: one supported alone but not within the family becomes inconclusive."""
    holm, bonferroni = adjust(p_values)
    final = []
    for result, p, p_holm, p_bonferroni in zip(results, p_values, holm, bonferroni, strict=True):
        result = replace(result, p_value=p, p_holm=p_holm, p_bonferroni=p_bonferroni)
        if result.verdict == "supported" and p_holm > alpha:
            result = replace(
                result,
                verdict="inconclusive",
                reason=f"{result.reason}; supported alone (p = {p:.3f}), but not among the study's {len(results)} "
                f"hypotheses (Holm-adjusted p = {p_holm:.3f})",
                would_decide="fewer hypotheses declared beforehand, or more "
                + ("repeats" if result.kind == "overhead" else "seeds or examples"),
            )
        final.append(result)
    return final
