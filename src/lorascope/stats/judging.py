"""Every hypothesis of a study with the evidence that belongs to its kind: quality, cost, drift or serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lorascope.errors import StudyError
from lorascope.metrics.quality import QUALITY, common_direction
from lorascope.registry import nearest
from lorascope.stats.analysis import CollapsedRun, HypothesisResult, SoundRunsResult
from lorascope.stats.drift.robustness import with_verdicts_elsewhere
from lorascope.stats.drift.runs import DriftArm, Key
from lorascope.stats.evidence import (
    Pairs,
    cost_evidence,
    drift_evidence,
    no_common_direction,
    quality_evidence,
    unless_broken,
)
from lorascope.stats.facts.study import Seeding
from lorascope.stats.hypotheses import Evidence, Test, hypothesis_test
from lorascope.stats.quality.collapse import unstable_arms, without_collapsed
from lorascope.stats.serving.analysis import ServingAnalysis
from lorascope.stats.serving.evidence import overhead_evidence
from lorascope.stats.verdicts import apply_family, judge
from lorascope.study.hypothesis import BASELINES, Equivalent, Lower, NonInferior, Overhead, Superior, compared
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
Trained = NonInferior | Equivalent | Superior | Lower
"""Hypotheses about trained runs."""


@dataclass(frozen=True)
class Grounds:
    """What hypotheses are judged by. primary: task -> its primary metric. broken: arm -> the gate it failed. collapsed: runs
    that learnt nothing; they count like all others."""

    study: Study
    pairs: Pairs
    table: pd.DataFrame
    primary: Mapping[str, str]
    broken: Mapping[Key, str]
    drift_arms: Mapping[Key, DriftArm]
    serving: ServingAnalysis | None
    seeding: Seeding
    collapsed: list[CollapsedRun] = field(default_factory=list)

    def sound(self) -> Grounds:
        """The same without the collapsed runs."""
        gone = {(run.model, run.task, run.method, run.seed) for run in self.collapsed}
        arms = without_collapsed(self.pairs.arms, self.collapsed)
        keys = zip(*(self.table[name] for name in ("model", "task", "method", "seed")), strict=True)
        drift = {
            key: arm.at(tuple(seed for seed in arm.seeds if (*key, seed) not in gone))
            for key, arm in self.drift_arms.items()
        }
        return replace(
            self,
            pairs=Pairs(arms, self.pairs.generator_seed),
            table=self.table[[key not in gone for key in keys]],
            drift_arms={key: arm for key, arm in drift.items() if arm.seeds},
            collapsed=[],
        )


def judge_hypotheses(measured: Grounds) -> list[HypothesisResult]:
    """Every hypothesis of the study, after the corrections that span them; those on drift with what they would be by its
    other definitions."""
    return with_verdicts_elsewhere(
        _judge_all(measured), measured.drift_arms, lambda arms: _judge_all(replace(measured, drift_arms=arms))
    )


def _judge_all(measured: Grounds) -> list[HypothesisResult]:
    results, sides = [], []
    sound = measured.sound() if measured.collapsed else measured
    for name, hypothesis in measured.study.hypotheses.items():
        if isinstance(hypothesis, Overhead):
            test, over = hypothesis_test(hypothesis), hypothesis.at
            parts, average = overhead_evidence(measured.study, hypothesis, measured.serving)
        else:
            test, over, parts, average = _trained(measured, name, hypothesis)
        result, own = judge(
            name, test, metric=hypothesis.on, parts=parts, average=average, over=over, alpha=ALPHA
        )  # fmt: skip
        if not isinstance(hypothesis, Overhead):
            result = replace(result, without_collapsed=_without_collapsed(measured, sound, name, hypothesis))
        results.append(result)
        sides.append(own)
    return apply_family(results, sides, ALPHA)


def _without_collapsed(measured: Grounds, sound: Grounds, name: str, hypothesis: Trained) -> SoundRunsResult | None:
    """What the hypothesis would be without the collapsed runs of its arms; None where it has none."""
    arms = compared(hypothesis)
    own = [run for run in measured.collapsed if run.method in arms]
    if not own:
        return None
    test, over, parts, average = _trained(sound, name, hypothesis)
    result, _ = judge(name, test, metric=hypothesis.on, parts=parts, average=average, over=over, alpha=ALPHA)
    unstable = [
        f"{method} on {task} with {model}: {count} of {total} runs collapsed"
        for (model, task, method), (count, total) in unstable_arms(measured.pairs.arms, own).items()
    ]
    return SoundRunsResult(len(own), result.average, result.verdict, unstable)


def _trained(
    measured: Grounds, name: str, hypothesis: Trained
) -> tuple[Test, Literal["every", "average"], list[Evidence], Evidence]:
    """The test and the evidence of a claim about trained runs: their quality, cost or drift."""
    study, on = measured.study, hypothesis.on
    metrics = {task.name: measured.primary[task.name] if on == "primary" else on for task in study.tasks}
    test = hypothesis_test(hypothesis, tuple(dict.fromkeys(metrics.values())))
    _require_methods(study, name, test, BASELINES if not isinstance(hypothesis, Lower) else ())
    if isinstance(hypothesis, Lower):
        if on != "drift":
            return (
                test,
                hypothesis.over,
                *cost_evidence(study, test, metrics, table=measured.table, seeding=measured.seeding),
            )
        found = drift_evidence(study, test, arms=measured.drift_arms, seeding=measured.seeding)
    else:
        _require_metrics(name, metrics, measured.pairs)
        one_way = common_direction(metrics.values()) is not None
        gather = quality_evidence if one_way else no_common_direction
        found = gather(study, test, metrics, pairs=measured.pairs, seeding=measured.seeding)
    return test, hypothesis.over, *unless_broken(*found, test, measured.broken)


def _require_methods(study: Study, name: str, test: Test, baselines: Sequence[str]) -> None:
    methods = [*(method.name for method in study.methods), *baselines]
    for arm in (test.method, test.reference):
        if arm not in methods:
            close = nearest(arm, methods)
            raise StudyError(
                f"hypothesis {name} names the method {arm!r}, which this study does not have",
                hint=f"Methods: {', '.join(methods)}." + (f" Did you mean {close!r}?" if close else ""),
                where=f"hypotheses.{name}",
            )


def _require_metrics(name: str, metrics: Mapping[str, str], pairs: Pairs) -> None:
    """Every metric of a claim about quality is made of columns that are measured on each test example."""
    measured = {column for arm in pairs.arms.values() for column in arm.rows}
    allowed = [
        row.name for row in QUALITY.values() if not measured or (row.estimator and measured >= {*row.estimator.columns})
    ]
    for metric in metrics.values():
        if metric not in allowed:
            close = nearest(metric, allowed)
            raise StudyError(
                f"hypothesis {name} is about {metric!r}, which is not a metric measured on each test example",
                hint=f"Allowed: primary, {', '.join(allowed)}." + (f" Did you mean {close!r}?" if close else ""),
                where=f"hypotheses.{name}.on",
            )
