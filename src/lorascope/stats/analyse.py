"""The analysis of a study: measurements in, `Analysis` out; top-down: scores, comparisons, hypotheses, conclusion.

The study may be unfinished: arms are compared on the seeds they share and every gap is noted. Arms scored on different
examples are an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.errors import DataError, StudyError
from lorascope.registry import nearest
from lorascope.stats.analysis import Analysis, Comparison, HypothesisResult, Score, Verdict
from lorascope.stats.anova import method_by_task_anova
from lorascope.stats.arms import Arm, example_metric, read_arms
from lorascope.stats.conclusion import parse_conclusion
from lorascope.stats.hypotheses import (
    ONE_SEED,
    Evidence,
    Test,
    adjust,
    apply_family,
    hypothesis_test,
    judge,
)
from lorascope.stats.measurements import validate_measurements
from lorascope.stats.metrics import CONFUSION_METRICS
from lorascope.stats.multibootstrap import (
    Estimate,
    SeedDifferences,
    average_differences,
    average_estimates,
    confusion_differences,
    estimate_difference,
    mean_differences,
)
from lorascope.stats.paired import (
    discordance_odds_ratio,
    hedges_g,
    mcnemar,
    permutation_floor,
    seeds_needed_to_permute,
    sign_flip_p,
    t_interval,
)
from lorascope.stats.power import detectable_after
from lorascope.study.spec import Lower, Study

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
_LOWER_IS_BETTER = ("loss",)
_SAME_IN_EVERY_SEED = ("trainable_parameters", "export_bytes")
_SUMMARY_TOLERANCE = 1e-6

Arms = Mapping[tuple[str, str, str], Arm]


def analyse_study(
    study: Study,
    measurements: pd.DataFrame,
    *,
    primary: Mapping[str, str],
    broken_arms: Mapping[tuple[str, str, str], str] | None = None,
    generator_seed: int = 0,
) -> Analysis:
    """Scores, paired comparisons, verdicts and the conclusion of a study.

    measurements: the table of `lorascope.stats.measurements`. primary: task -> its primary metric. broken_arms: (model,
    task, method) -> the gate it failed; no hypothesis about quality rests on such an arm. generator_seed: of the
    bootstrap over examples (F1 and MCC only; accuracy needs no draws).
    Raises DataError if arms were scored on different examples or summaries contradict the per-example rows, StudyError
    for a hypothesis on an unknown metric or method.
    """
    table = validate_measurements(measurements)
    for task in study.tasks:
        if task.name not in primary:
            raise StudyError(
                f"task {task.name} has no primary metric", hint=f"Given for: {', '.join(primary) or 'none'}."
            )
    arms = read_arms(study, table)
    pairs = _Pairs(arms, generator_seed)
    scores = [_score(arm, primary[arm.task]) for arm in arms.values()]
    _require_agreeing_summaries(scores, table)
    comparisons = _correct_comparisons([
        _compare(pairs, arms[model, task, method], arms[model, task, reference], primary[task])
        for model, task, method, reference in _pairs_to_compare(study)
        if pairs.seeds((model, task, method), (model, task, reference))
    ])  # fmt: skip
    hypotheses = _judge_hypotheses(study, pairs, table, primary, broken_arms or {})
    return Analysis(
        alpha=ALPHA,
        family=_families(len(hypotheses), len(comparisons)),
        scores=scores,
        comparisons=comparisons,
        hypotheses=hypotheses,
        conclusion=_conclude(study, hypotheses),
        anova=method_by_task_anova(scores),
        notes=_notes(study, arms),
    )


# ----------------------------------------------------------------------------------------------------------- scores


def _score(arm: Arm, metric: str) -> Score:
    values = arm.seed_scores(metric)
    return Score(
        model=arm.model,
        task=arm.task,
        method=arm.method,
        metric=metric,
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        interval=t_interval(values),
        seeds={seed: float(value) for seed, value in zip(arm.seeds, values, strict=True)},
        num_examples=len(arm.examples),
    )


def _require_agreeing_summaries(scores: Sequence[Score], table: pd.DataFrame) -> None:
    """A summary row on the test split must be what its per-example rows give: or one of them is not the run's."""
    rows = table[(table["split"] == "test") & table["example_id"].isna()]
    columns = zip(rows["model"], rows["task"], rows["method"], rows["metric"], rows["seed"], rows["value"], strict=True)
    stated = {tuple(key): float(value) for *key, value in columns}
    for score in scores:
        for seed, value in score.seeds.items():
            summary = stated.get((score.model, score.task, score.method, score.metric, seed), value)
            if abs(summary - value) > _SUMMARY_TOLERANCE:
                raise DataError(
                    f"{score.method} on {score.task} with {score.model}, seed {seed}: the summary says {score.metric} "
                    f"{summary:.6f}, its test examples give {value:.6f}",
                    hint="The table mixes two evaluations of the run; evaluate it again.",
                )


# ------------------------------------------------------------------------------------------------------ comparisons


class _Pairs:
    """Paired differences of two methods of a (model, task), on the seeds both have."""

    def __init__(self, arms: Arms, generator_seed: int) -> None:
        self.arms, self.generator_seed = arms, generator_seed

    def seeds(self, *keys: tuple[str, str, str]) -> tuple[str, ...]:
        """Seeds that every one of these arms has, in the study's order; none if an arm is absent."""
        if any(key not in self.arms for key in keys):
            return ()
        return tuple(s for s in self.arms[keys[0]].seeds if all(s in self.arms[key].seeds for key in keys[1:]))

    def differences(self, method: Arm, reference: Arm, *, metric: str, seeds: tuple[str, ...]) -> SeedDifferences:
        if metric not in CONFUSION_METRICS:
            name = example_metric(metric)
            return mean_differences(method.at(seeds, name), reference.at(seeds, name))
        return confusion_differences(
            reference.at(seeds, "label")[0].astype(int),
            method.at(seeds, "prediction").astype(int),
            reference=reference.at(seeds, "prediction").astype(int),
            metric=metric,
            num_classes=max(method.num_classes, reference.num_classes, 2),
            generator=np.random.default_rng(self.generator_seed),
        )


def _families(num_hypotheses: int, num_comparisons: int) -> str:
    """What the corrections span, in words."""
    comparisons = "the one comparison" if num_comparisons == 1 else f"the {num_comparisons} comparisons"
    if not num_hypotheses:
        return f"Holm over {comparisons}"
    hypotheses = "the one declared hypothesis is" if num_hypotheses == 1 else f"the {num_hypotheses} hypotheses are"
    return f"Holm over {comparisons}; {hypotheses} a family apart"


def _pairs_to_compare(study: Study) -> list[tuple[str, str, str, str]]:
    """Every method against full fine-tuning (or, without it, the first method), and what the hypotheses compare."""
    reference = next((method.name for method in study.methods if method.kind == "full"), study.methods[0].name)
    wanted = [(method.name, reference) for method in study.methods if method.name != reference]
    for hypothesis in study.hypotheses.values():
        test = hypothesis_test(hypothesis, "")
        pair = (test.method, test.reference)
        if not isinstance(hypothesis, Lower) and pair not in wanted and pair[::-1] not in wanted:
            wanted.append(pair)
    return [
        (model.name, task.name, method, reference)
        for model in study.models
        for task in study.tasks
        for method, reference in wanted
        if method != reference
    ]


def _compare(pairs: _Pairs, method: Arm, reference: Arm, metric: str) -> Comparison:
    seeds = pairs.seeds((method.model, method.task, method.method), (method.model, method.task, reference.method))
    differences = pairs.differences(method, reference, metric=metric, seeds=seeds)
    estimate = estimate_difference(differences)
    how = "multi-bootstrap" if len(seeds) > 1 else "paired by example, this seed only"
    tables = []
    odds = None
    if "correct" in method.rows and "correct" in reference.rows:
        first, second = method.at(seeds, "correct"), reference.at(seeds, "correct")
        tables = [mcnemar(a, b, seed=seed) for a, b, seed in zip(first, second, seeds, strict=True)]
        odds = discordance_odds_ratio(first, second)
    return Comparison(
        model=method.model,
        task=method.task,
        method=method.method,
        reference=reference.method,
        metric=metric,
        difference=estimate.interval(0.95, method=how),
        difference_90=estimate.interval(0.90, method=how),
        p_value=estimate.p_two_sided() if len(seeds) > 1 else None,
        p_holm=None,
        p_bonferroni=None,
        seed_difference=t_interval(differences.values),
        hedges_g=hedges_g(differences.values),
        odds_ratio=odds,
        mcnemar=tables,
        permutation_p=sign_flip_p(differences.values, alpha=ALPHA),
        permutation_floor=permutation_floor(len(seeds)),
        seeds_needed=seeds_needed_to_permute(ALPHA),
        detectable_difference=detectable_after(estimate) if len(seeds) > 1 else None,
        num_seeds=len(seeds),
        num_examples=estimate.num_examples,
    )


def _correct_comparisons(comparisons: list[Comparison]) -> list[Comparison]:
    tested = [c.p_value for c in comparisons if c.p_value is not None]
    corrected = iter(zip(*adjust(tested), strict=True))
    return [
        comparison
        if comparison.p_value is None
        else replace(comparison, **dict(zip(("p_holm", "p_bonferroni"), next(corrected), strict=True)))
        for comparison in comparisons
    ]


# ------------------------------------------------------------------------------------------------------- hypotheses


def _judge_hypotheses(
    study: Study,
    pairs: _Pairs,
    table: pd.DataFrame,
    primary: Mapping[str, str],
    broken: Mapping[tuple[str, str, str], str],
) -> list[HypothesisResult]:
    results, p_values = [], []
    for name, hypothesis in study.hypotheses.items():
        metrics = {
            task.name: primary[task.name] if hypothesis.on == "primary" else hypothesis.on for task in study.tasks
        }
        spoken = " / ".join(dict.fromkeys(metrics.values())).replace("_", " ")
        test = hypothesis_test(hypothesis, spoken)
        _require_known(study, name, test, metrics, pairs)
        gather = _cost_evidence if isinstance(hypothesis, Lower) else _quality_evidence
        parts, average = gather(study, test, metrics, pairs=pairs, table=table)
        if not isinstance(hypothesis, Lower):
            parts, average = _unless_broken(parts, average, test, broken)
        result, p_value = judge(
            name, test, metric=hypothesis.on, parts=parts, average=average, over=hypothesis.over, alpha=ALPHA
        )
        results.append(result)
        p_values.append(p_value)
    return apply_family(results, p_values, ALPHA)


def _unless_broken(
    parts: Sequence[Evidence], average: Evidence, test: Test, broken: Mapping[tuple[str, str, str], str]
) -> tuple[list[Evidence], Evidence]:
    """Evidence on an arm that failed a gate may be shown but decides nothing, and neither does an average over it."""
    judged = []
    for part in parts:
        reasons = [
            f"{arm} {broken[part.model, part.task, arm]}"
            for arm in (test.method, test.reference)
            if (part.model, part.task, arm) in broken
        ]
        if reasons:
            part = replace(part, usable=False, why="; ".join(reasons), remedy="an arm that passes its gates")
        judged.append(part)
    unsound = [f"{part.model} on {part.task}: {part.why}" for part in judged if part.remedy != Evidence.remedy]
    if unsound:
        average = replace(average, usable=False, why="; ".join(unsound), remedy="arms that pass their gates")
    return judged, average


def _require_known(study: Study, name: str, test: Test, metrics: Mapping[str, str], pairs: _Pairs) -> None:
    methods = [method.name for method in study.methods]
    for arm in (test.method, test.reference):
        if arm not in methods:
            close = nearest(arm, methods)
            raise StudyError(
                f"hypothesis {name} names the method {arm!r}, which this study does not have",
                hint=f"Methods: {', '.join(methods)}." + (f" Did you mean {close!r}?" if close else ""),
                where=f"hypotheses.{name}",
            )
    if test.kind == "lower":
        return
    measured = {row for arm in pairs.arms.values() for row in arm.rows} - {"label", "prediction", *_LOWER_IS_BETTER}
    allowed = sorted((measured - {"correct"}) | {"accuracy", *CONFUSION_METRICS})
    for metric in metrics.values():
        if metric not in allowed:
            close = nearest(metric, allowed)
            raise StudyError(
                f"hypothesis {name} is about {metric!r}, which is no quality measured on each test example",
                hint=f"Allowed: primary, {', '.join(allowed)}." + (f" Did you mean {close!r}?" if close else ""),
                where=f"hypotheses.{name}.on",
            )


def _quality_evidence(
    study: Study, test: Test, metrics: Mapping[str, str], *, pairs: _Pairs, table: pd.DataFrame
) -> tuple[list[Evidence], Evidence]:
    """Evidence for each (model, task), and for their average.

    Tasks have examples of their own, so their estimates are independent; models of a task share its examples and are
    averaged before the variance is taken.
    """
    parts: dict[tuple[str, str], Evidence] = {}
    by_task: list[Estimate] = []
    for task in study.tasks:
        keys = [(m.name, task.name, arm) for m in study.models for arm in (test.method, test.reference)]
        shared = pairs.seeds(*keys)
        for model in study.models:
            first, second = ((model.name, task.name, arm) for arm in (test.method, test.reference))
            parts[model.name, task.name] = _part_evidence(pairs, first, second, metrics[task.name])
        if shared:
            arms = [(pairs.arms[keys[i]], pairs.arms[keys[i + 1]]) for i in range(0, len(keys), 2)]
            differences = [pairs.differences(a, b, metric=metrics[task.name], seeds=shared) for a, b in arms]
            by_task.append(estimate_difference(average_differences(differences)))
    return list(parts.values()), _average_evidence(list(parts.values()), by_task, len(study.tasks))


def _part_evidence(pairs: _Pairs, first: tuple[str, str, str], second: tuple[str, str, str], metric: str) -> Evidence:
    seeds = pairs.seeds(first, second)
    if not seeds:
        absent = [key[2] for key in (first, second) if key not in pairs.arms]
        why = f"{' and '.join(absent)} not measured yet" if absent else "the two arms share no seed"
        return Evidence(first[0], first[1], None, False, why)
    differences = pairs.differences(pairs.arms[first], pairs.arms[second], metric=metric, seeds=seeds)
    usable = len(seeds) > 1
    return Evidence(first[0], first[1], estimate_difference(differences), usable, "" if usable else ONE_SEED)


def _average_evidence(parts: Sequence[Evidence], estimates: Sequence[Estimate], expected: int) -> Evidence:
    if len(estimates) < expected:
        return Evidence("*", "*", None, False, "not every model and task is measured yet")
    unusable = next((part for part in parts if not part.usable), None)
    one_seed = unusable is not None or any(
        e.num_seeds < 2 and e.variance > 0 and e.shared_variance > 0 for e in estimates
    )
    return Evidence("*", "*", average_estimates(estimates), not one_seed, ONE_SEED if one_seed else "")


def _cost_evidence(
    study: Study, test: Test, metrics: Mapping[str, str], *, pairs: _Pairs, table: pd.DataFrame
) -> tuple[list[Evidence], Evidence]:
    """Logs of cost ratios, paired by seed: their mean is the log ratio of geometric seed means."""
    costs = table[table["split"].isna() & table["example_id"].isna() & table["site"].isna() & table["layer"].isna()]
    values = {
        tuple(key): float(value)
        for *key, value in zip(
            costs["model"], costs["task"], costs["method"], costs["seed"], costs["metric"], costs["value"], strict=True
        )
    }
    parts = []
    for model in study.models:
        for task in study.tasks:
            metric = metrics[task.name]
            logs = []
            for seed in study.seeds:
                first, second = (
                    values.get((model.name, task.name, arm, seed.label, metric))
                    for arm in (test.method, test.reference)
                )
                if first is not None and second is not None:
                    logs.append(_log_ratio(first, second, metric, f"{model.name} on {task.name}, seed {seed.label}"))
            parts.append(_cost_part(model.name, task.name, metric, np.array(logs)))
    estimates = [part.estimate for part in parts if part.estimate is not None]
    return parts, _average_evidence(parts, estimates, len(parts))


def _log_ratio(first: float, second: float, metric: str, place: str) -> float:
    if first <= 0 or second <= 0:
        raise DataError(
            f"{metric} of {place} is {min(first, second):g}; a ratio of costs needs both above 0",
            hint="A meter that could not measure leaves its row out instead of writing 0.",
        )
    return math.log(first / second)


def _cost_part(model: str, task: str, metric: str, logs: np.ndarray) -> Evidence:
    n = len(logs)
    if not n:
        return Evidence(model, task, None, False, f"no seed has {metric} of both arms")
    between = float(logs.var(ddof=1)) if n > 1 else 0.0
    estimate = Estimate(float(logs.mean()), between / n, max(n - 1, 1), between, 0.0, 0.0, n, 0)
    usable = n > 1 or metric in _SAME_IN_EVERY_SEED
    return Evidence(model, task, estimate, usable, "" if usable else ONE_SEED)


def _conclude(study: Study, hypotheses: Sequence[HypothesisResult]) -> dict | None:
    if study.conclusion is None:
        return None
    verdicts: dict[str, Verdict] = {result.name: result.verdict for result in hypotheses}
    expression = parse_conclusion(study.conclusion, verdicts)
    values = {name: verdicts[name] for name in expression.names()}
    return {"text": study.conclusion, "verdict": expression.evaluate(verdicts), "values": values}


# ------------------------------------------------------------------------------------------------------------ notes


def _notes(study: Study, arms: Arms) -> list[str]:
    notes = []
    wanted = [seed.label for seed in study.seeds]
    for model in study.models:
        for task in study.tasks:
            for method in study.methods:
                arm = arms.get((model.name, task.name, method.name))
                missing = [seed for seed in wanted if arm is None or seed not in arm.seeds]
                if arm is None:
                    notes.append(f"{method.name} on {task.name} with {model.name}: no run is measured yet.")
                elif missing:
                    notes.append(
                        f"{method.name} on {task.name} with {model.name}: {len(missing)} of {len(wanted)} seeds "
                        f"missing ({', '.join(missing)}); arms are compared on the seeds they share."
                    )
    if len(wanted) == 1:
        notes.append("One seed: differences concern these trained models; seeds cannot be generalised over.")
    elif len(wanted) == 2:
        notes.append("Two seeds: intervals over seeds rest on one degree of freedom and are very wide.")
    return notes
