"""The analysis of a study as data: what was estimated, how sure it is, and what it decides.

`Analysis` is what the `analysis` step commits (analysis.json) and all that reports read beside the measurements table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lorascope.stats.interval import Interval as Interval
from lorascope.stats.interval import rebuild
from lorascope.stats.serving.analysis import ServingAnalysis
from lorascope.study.conclusion import Verdict as Verdict

Side = Literal["support", "refutation"]


@dataclass(frozen=True)
class Score:
    """One arm's score on the test set: the mean over seeds with a t interval on seed means (None below 2 seeds)."""

    model: str
    task: str
    method: str
    metric: str
    mean: float
    sd: float | None
    interval: Interval | None
    seeds: dict[str, float]
    num_examples: int


@dataclass(frozen=True)
class McNemar:
    """Per-seed exact McNemar test. b: only the first arm right, c: only the second right."""

    seed: str
    b: int
    c: int
    p_value: float
    odds_ratio: Interval | None


@dataclass(frozen=True)
class Comparison:
    """method v reference on one (model, task), paired by example and seed. difference = method - reference.

    permutation_p is None where its floor exceeds alpha; then permutation_floor and seeds_needed say why.
    detectable_difference: what 80% power could have seen with these seeds and examples.
    """

    model: str
    task: str
    method: str
    reference: str
    metric: str
    difference: Interval
    difference_90: Interval
    p_value: float | None
    p_holm: float | None
    p_bonferroni: float | None
    seed_difference: Interval | None
    hedges_g: Interval | None
    odds_ratio: Interval | None
    mcnemar: list[McNemar]
    permutation_p: float | None
    permutation_floor: float
    seeds_needed: int
    detectable_difference: float | None
    num_seeds: int
    num_examples: int


@dataclass(frozen=True)
class Part:
    """One (model, task) of a hypothesis, or the average over them ("*").

    side: what the p-values are of: the claim's support, or its refutation. p_value: of this part alone. p_holm: what the
    verdict is decided by, at most alpha where it is not inconclusive; p_bonferroni: the same by Bonferroni.
    """

    model: str
    task: str
    verdict: Verdict
    estimate: Interval | None
    p_value: float | None
    p_holm: float | None
    p_bonferroni: float | None
    num_seeds: int
    num_examples: int
    reason: str
    side: Side = "support"


@dataclass(frozen=True)
class VerdictElsewhere:
    """What a hypothesis on drift would be by another definition: another pooling, or with no layer left out. differs: whether
    its verdict is another, or the sign of a comparison."""

    pooling: str
    every_layer: bool
    verdict: Verdict
    average: Interval | None
    differs: str


@dataclass(frozen=True)
class HypothesisResult:
    """One hypothesis: its claim in plain words, its verdict, the parts it rests on, and what would decide it. elsewhere: of a
    claim about drift, the same by other definitions of it.

    side: what the p-values are of: the support, or where it is refuted the refutation. p_value: of the whole hypothesis;
    p_holm, p_bonferroni: adjusted over all hypotheses of the study. is_ratio: estimates are shares of the reference's mean.
    """

    name: str
    kind: str
    claim: str
    verdict: Verdict
    metric: str
    threshold: float | None
    average: Interval | None
    parts: list[Part]
    num_seeds: int
    num_examples: int
    reason: str
    would_decide: str
    p_value: float | None = None
    p_holm: float | None = None
    p_bonferroni: float | None = None
    side: Side = "support"
    without_collapsed: SoundRunsResult | None = None
    is_ratio: bool = False
    elsewhere: list[VerdictElsewhere] = field(default_factory=list)


@dataclass(frozen=True)
class CollapsedRun:
    """A run that learnt nothing, and how that shows ("predicts class 1 for all 408 test examples")."""

    model: str
    task: str
    method: str
    seed: str
    why: str


@dataclass(frozen=True)
class SoundRunsResult:
    """A hypothesis without the collapsed runs of its arms: secondary, for the claim is about all runs.

    num_left_out: those runs. average: as of the hypothesis. verdict: what it would be alone, not corrected over the study.
    unstable: the arms that lost more than one run in five, "lora on mrpc with m: 2 of 5 runs collapsed".
    """

    num_left_out: int
    average: Interval | None
    verdict: Verdict
    unstable: list[str]


@dataclass(frozen=True)
class DriftProfile:
    """An arm's drift from its base at one site and layer: the mean over seeds, its interval over seeds and examples.

    With one seed the interval is over examples only, and its `method` says so.
    """

    model: str
    task: str
    method: str
    site: str
    layer: int
    drift: Interval
    num_seeds: int


@dataclass(frozen=True)
class DriftReduction:
    """Drift of method / drift of reference: the geometric mean over seeds.

    task: "*" is the average over tasks. part: "overall" (the mean over layers), "early", "middle" or "late" (thirds of
    the layers), or "layer". p_value: of a ratio of 1, two-sided (None with one seed). p_holm: over the layers of one
    (model, task, site); None where there is no such family. ratio is None where `reason` says why there is no estimate.
    hedges_g: of the seeds' log ratios, in units of their standard deviation; of one task, with several seeds.
    """

    model: str
    task: str
    method: str
    reference: str
    site: str
    part: str
    layer: int | None
    ratio: Interval | None
    p_value: float | None
    p_holm: float | None
    num_seeds: int
    reason: str = ""
    hedges_g: Interval | None = None


@dataclass(frozen=True)
class DriftCorrelation:
    """Spearman correlation over the runs of one (model, task), all methods together. partial: given the weight change."""

    model: str
    task: str
    x: str
    y: str
    rho: Interval | None
    partial: Interval | None
    num_runs: int
    note: str


@dataclass(frozen=True)
class DriftRobustness:
    """The drift of an arm in one number by one definition: a pooling, over the layers that are healthy in the base by it or
    over every layer. drift: None where no layer counts. ratio: to the reference arm, None for that arm itself and where
    `reason` says why. num_layers: of num_all that are averaged."""

    model: str
    task: str
    method: str
    reference: str
    pooling: str
    every_layer: bool
    is_primary: bool
    num_layers: int
    num_all: int
    drift: Interval | None
    ratio: Interval | None
    num_seeds: int
    reason: str = ""


@dataclass(frozen=True)
class DriftAnalysis:
    """What a study says about drift. num_draws: resamples of the examples; num_examples: task -> probe examples. robustness:
    drift in one number by every definition that was measured; empty where that is one."""

    num_draws: int
    num_examples: dict[str, int]
    profiles: list[DriftProfile]
    reductions: list[DriftReduction]
    correlations: list[DriftCorrelation]
    robustness: list[DriftRobustness] = field(default_factory=list)


@dataclass(frozen=True)
class Analysis:
    """Everything a report states. anova: method x task on seed scores (None if not estimable); drift, serving: None if
    they were not measured. scores, comparisons: of each task's primary metric; other_scores, other_comparisons: of its
    further metrics, a family of their own. baselines: scores of what needs no training. collapsed: runs that learnt
    nothing."""

    alpha: float
    family: str
    scores: list[Score]
    comparisons: list[Comparison]
    hypotheses: list[HypothesisResult]
    conclusion: dict[str, Any] | None
    anova: list[dict[str, Any]] | None
    notes: list[str] = field(default_factory=list)
    drift: DriftAnalysis | None = None
    serving: ServingAnalysis | None = None
    collapsed: list[CollapsedRun] = field(default_factory=list)
    other_scores: list[Score] = field(default_factory=list)
    other_comparisons: list[Comparison] = field(default_factory=list)
    baselines: list[Score] = field(default_factory=list)

    def metric_of(self, result: HypothesisResult) -> str | None:
        """What the estimate of a hypothesis is of, by name; None for the primary metric where nothing was scored."""
        if result.metric != "primary":
            return result.metric
        return next((row.metric for row in (*self.comparisons, *self.scores)), None)

    def to_json(self) -> dict[str, Any]:
        """JSON literals; `from_json` gives an equal object back. Numbers that do not exist are None, never NaN.

        A study that does not serve has no key "serving": its analysis is what it was before serving could be measured.
        """
        data = asdict(self)
        return data if self.serving is not None else {name: data[name] for name in data if name != "serving"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Analysis:
        """The analysis that `to_json` wrote. Raises TypeError for a record of another shape."""
        return rebuild(cls, data)
