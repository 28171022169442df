"""The analysis of a study: measurements in, `Analysis` out; top-down: scores, comparisons, hypotheses, conclusion.

The study may be unfinished: arms are compared on the seeds they share and every gap is noted. Arms scored on different
examples are an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorascope.errors import StudyError
from lorascope.metrics.quality import quality
from lorascope.stats.analysis import Analysis, Comparison, HypothesisResult, Verdict
from lorascope.stats.drift.analysis import analyse_drift
from lorascope.stats.drift.runs import DriftDraws, Key, read_drift_arms
from lorascope.stats.evidence import (
    Arms,
    Pairs,
    estimate_quality,
)
from lorascope.stats.facts.study import Seeding
from lorascope.stats.judging import ALPHA, Grounds, judge_hypotheses
from lorascope.stats.measurements import validate_measurements
from lorascope.stats.quality.anova import method_by_task_anova
from lorascope.stats.quality.arms import ScoredArm, read_arms, read_baselines
from lorascope.stats.quality.collapse import collapsed_runs
from lorascope.stats.quality.paired import (
    discordance_odds_ratio,
    hedges_g,
    mcnemar,
    permutation_floor,
    seeds_needed_to_permute,
    sign_flip_p,
    t_interval,
)
from lorascope.stats.quality.power import detectable_after
from lorascope.stats.quality.scored import score_arms
from lorascope.stats.serving.analysis import ServingAnalysis
from lorascope.stats.verdicts import adjust
from lorascope.study.conclusion import parse_conclusion
from lorascope.study.hypothesis import Lower, Overhead, compared
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd


def analyse_study(
    study: Study,
    measurements: pd.DataFrame,
    *,
    primary: Mapping[str, str],
    broken_arms: Mapping[Key, str] | None = None,
    drift: Mapping[Key, DriftDraws] | None = None,
    serving: ServingAnalysis | None = None,
    seeding: Seeding = "derived",
    generator_seed: int = 0,
) -> Analysis:
    """Scores, paired comparisons, verdicts and the conclusion of a study.

    measurements: the table of `lorascope.stats.measurements`. primary: task -> its primary metric. broken_arms: (model,
    task, method) -> the gate it failed; no hypothesis about quality or drift rests on such an arm. drift: (model,
    task, method) -> the arm's drift under resamples of the probe examples, of every arm with drift in the table.
    serving: of `analyse_serving`, if the study serves. seeding: whether tasks started from the same numbers.
    generator_seed: of the bootstrap over examples (accuracy and other means need no draws).
    Raises DataError if arms were scored on different examples or summaries contradict the per-example rows, StudyError
    for a hypothesis on an unknown metric or method.
    """
    table = validate_measurements(measurements)
    for task in study.tasks:
        if task.name not in primary:
            raise StudyError(
                f"task {task.name} has no primary metric", hint=f"Given for: {', '.join(primary) or 'none'}."
            )
    arms, baselines = read_arms(study, table), read_baselines(study, table)
    pairs = Pairs({**arms, **baselines}, generator_seed)
    scored = score_arms(arms, baselines, table, primary=primary, generator_seed=generator_seed)
    compared_arms = [
        found for found in _pairs_to_compare(study) if pairs.seeds((*found[:2], found[2]), (*found[:2], found[3]))
    ]
    comparisons = _comparisons(pairs, [(found, primary[found[1]]) for found in compared_arms])
    other_comparisons = _comparisons(
        pairs, [(found, metric) for found in compared_arms for metric in scored.further_metrics(found[1])]
    )
    drift_arms = read_drift_arms(study, table, drift or {})
    measured = Grounds(study, pairs, table, primary, broken_arms or {}, drift_arms, serving, seeding,
        collapsed_runs(arms, baselines, primary),
    )  # fmt: skip
    hypotheses = judge_hypotheses(measured)
    return Analysis(
        alpha=ALPHA,
        family=_families(len(hypotheses), len(comparisons)),
        scores=scored.primary,
        comparisons=comparisons,
        hypotheses=hypotheses,
        conclusion=_conclude(study, hypotheses),
        anova=method_by_task_anova(scored.primary),
        notes=_notes(study, arms),
        drift=analyse_drift(study, table, drift_arms, primary=primary, seeding=seeding),
        serving=serving,
        collapsed=measured.collapsed,
        other_scores=scored.others,
        other_comparisons=other_comparisons,
        baselines=scored.baselines,
    )


# ------------------------------------------------------------------------------------------------------ comparisons


def _families(num_hypotheses: int, num_comparisons: int) -> str:
    """What the corrections span, in words."""
    comparisons = "the one comparison" if num_comparisons == 1 else f"the {num_comparisons} comparisons"
    if not num_hypotheses:
        return f"Holm over {comparisons}"
    hypotheses = "the one declared hypothesis is" if num_hypotheses == 1 else f"the {num_hypotheses} hypotheses are"
    return f"Holm over {comparisons}; {hypotheses} a family apart"


def _pairs_to_compare(study: Study) -> list[tuple[str, str, str, str]]:
    """Every method against full fine-tuning (or, without it, the first method), and what the hypotheses compare."""
    reference = study.reference
    wanted = [(method.name, reference) for method in study.methods if method.name != reference]
    for hypothesis in study.hypotheses.values():
        if isinstance(hypothesis, Overhead):
            continue
        pair = compared(hypothesis)
        if not isinstance(hypothesis, Lower) and pair not in wanted and pair[::-1] not in wanted:
            wanted.append(pair)
    return [
        (model.name, task.name, method, reference)
        for model in study.models
        for task in study.tasks
        for method, reference in wanted
        if method != reference
    ]


def _comparisons(pairs: Pairs, wanted: Sequence[tuple[tuple[str, str, str, str], str]]) -> list[Comparison]:
    """One a ((model, task, method, reference), metric), corrected together."""
    return _correct_comparisons(
        [
            _compare(pairs, pairs.arms[model, task, method], pairs.arms[model, task, reference], metric)
            for (model, task, method, reference), metric in wanted
        ]
    )


def _compare(pairs: Pairs, method: ScoredArm, reference: ScoredArm, metric: str) -> Comparison:
    seeds = pairs.seeds((method.model, method.task, method.method), (method.model, method.task, reference.method))
    differences = pairs.differences(method, reference, metric=metric, seeds=seeds)
    estimate = estimate_quality(differences, metric)
    how = "multi-bootstrap" if len(seeds) > 1 else "paired by example, this seed only"
    reach = quality(metric).width
    low = None if reach is None else -reach
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
        difference=estimate.interval(0.95, method=how).within(low, reach),
        difference_90=estimate.interval(0.90, method=how).within(low, reach),
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


# ------------------------------------------------------------------------------------------- conclusion and notes


def _conclude(study: Study, hypotheses: Sequence[HypothesisResult]) -> dict | None:
    if study.conclusion is None:
        return None
    verdicts: dict[str, Verdict] = {result.name: result.verdict for result in hypotheses}
    expression = parse_conclusion(study.conclusion, verdicts)
    values = {name: verdicts[name] for name in expression.names()}
    return {"text": study.conclusion, "verdict": expression.evaluate(verdicts), "values": values}


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
