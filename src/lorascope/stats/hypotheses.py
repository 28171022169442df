"""A hypothesis as a test: what it claims about one number, and how an estimate of that number speaks for or against it.

Every claim with a direction is one-sided at 5%, so the interval that decides is the 90% interval. An equivalence claims
two directions at once (Schuirmann 1987). How the parts of a hypothesis make one verdict is in stats/verdicts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorascope.metrics.metric import Direction
from lorascope.metrics.quality import common_direction
from lorascope.stats.analysis import Interval
from lorascope.stats.claims import (
    amount,
    edge,
    lower_claim,
    margin_claim,
    overhead_claim,
    relative_claim,
    spoken,
    superior_claim,
)
from lorascope.stats.quality.multibootstrap import BootstrapEstimate
from lorascope.stats.serving.repeats import ratio_over_repeats
from lorascope.study.hypothesis import Equivalent, Hypothesis, Lower, NonInferior, Overhead, RelativeMargin, Superior

ONE_SEED = "one seed: nothing can be said about other seeds"


@dataclass(frozen=True)
class Test:
    """A claim about one number. p_support, p_refute: of an estimate. show: the interval that decides.

    tail: one-sided level of the deciding bound. distance: how far an estimate is from the nearest threshold.
    low, high: bounds of what the claim allows, on the scale of `show` (None: open); bounds: the same in words.
    is_ratio: estimates are the arm's mean as a share of the reference's.
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
    is_ratio: bool = False


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
    if isinstance(hypothesis.margin, RelativeMargin):
        return _relative_non_inferiority_test(arm, to, hypothesis.margin.relative, metrics, direction)
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


def _relative_non_inferiority_test(
    arm: str, to: str, share: float, metrics: Sequence[str], direction: Direction
) -> Test:
    """Estimates are ratios of means: at least 1 - share where higher is better, at most 1 + share where lower is."""
    is_higher = direction == "higher"
    limit = 1 - share if is_higher else 1 + share
    claim, bounds = relative_claim(arm, to, metrics, limit, direction)
    above, below = (lambda e: e.p_above(limit)), (lambda e: e.p_below(limit))
    return Test(
        "non_inferior", arm, to, claim, limit, 0.05,
        above if is_higher else below, below if is_higher else above,
        lambda e: e.interval(0.90), lambda e: abs(e.mean - limit),
        limit if is_higher else None, None if is_higher else limit, bounds, is_ratio=True,
    )  # fmt: skip


def _relative_equivalence_test(arm: str, to: str, share: float, metrics: Sequence[str]) -> Test:
    low, high = 1 - share, 1 + share
    claim = f"the {spoken(metrics)} of {arm} lies within {100 * share:g}% of that of {to}"
    return Test(
        "equivalent", arm, to, claim, share, 0.05,
        lambda e: max(e.p_above(low), e.p_below(high)),
        lambda e: min(1.0, 2 * min(e.p_below(low), e.p_above(high))),
        lambda e: e.interval(0.90), lambda e: abs(share - abs(e.mean - 1)),
        low, high, f"between {100 * low:g}% and {100 * high:g}% of {to}", is_ratio=True,
    )  # fmt: skip


def _equivalence_test(hypothesis: Equivalent, metrics: Sequence[str]) -> Test:
    """Two one-sided tests, which know no direction."""
    margin, arm, to = hypothesis.margin, hypothesis.equivalent, hypothesis.to
    if isinstance(margin, RelativeMargin):
        return _relative_equivalence_test(arm, to, margin.relative, metrics)
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
        "superior", arm, to, claim, 0.0, 0.05,
        lambda e: better(e, 0.0), lambda e: worse(e, 0.0),
        lambda e: e.interval(0.90), lambda e: abs(e.mean),
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
        log = estimate.interval(0.90)
        return Interval(math.exp(log.estimate), math.exp(log.low), math.exp(log.high), 0.90, how)

    return Test(
        "lower", arm, than, claim, ratio, 0.05,
        lambda e: 0.0 if e.mean == log_edge and not e.variance else e.p_below(log_edge),
        lambda e: e.p_above(log_edge),
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
