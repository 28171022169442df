"""How likely the study is to decide its claims as they are declared, and what raises that, before anything runs.

The studies are drawn and judged by `stats.simulate.deciding`; here it meets the test sets that the study has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from scipy import special

from lorascope.plan.power import Detectable
from lorascope.stats.analysis import Analysis, HypothesisResult
from lorascope.stats.hypotheses import hypothesis_test
from lorascope.stats.simulate.deciding import STUDIES, Assumptions, Chance, chances
from lorascope.study.hypothesis import Hypothesis, Overhead, compared
from lorascope.study.seeds import PRINTED
from lorascope.study.spec import Study

ASSUMED = Assumptions()


@dataclass(frozen=True)
class Variant:
    """The chances of the study with one thing changed. change: what, in words ("10 seeds")."""

    change: str
    chances: tuple[Chance, ...]


@dataclass(frozen=True)
class Deciding:
    """The chances of the study as it is declared, and of its variants."""

    declared: tuple[Chance, ...]
    variants: tuple[Variant, ...]
    basis: str


def assumed_from(analysis: Analysis) -> Assumptions:
    """What finished runs say of the variances. Where they say nothing, the usual assumption stays: of costs and of serving,
    of drift that was not measured.

    Examples on which arms disagree are those of McNemar's tables. What they add to each seed is taken off the variance
    between seeds. The standard deviation of a log ratio of drifts comes from its interval over seeds.
    """
    scores = {(s.model, s.task, s.method): s.seeds for s in analysis.scores}
    discordant, between = [], []
    for row in analysis.comparisons:
        arms = [scores.get((row.model, row.task, arm)) for arm in (row.method, row.reference)]
        if row.mcnemar:
            discordant.append(fmean((table.b + table.c) / row.num_examples for table in row.mcnemar))
        if all(arms) and row.num_seeds > 1:
            first, second = arms[0] or {}, arms[1] or {}
            own = (discordant[-1] if row.mcnemar else ASSUMED.discordant) / (2 * row.num_examples)
            between.append(max(variance([first[s] - second[s] for s in first if s in second]) - own, 0.0))
    ratios = [
        math.log(row.ratio.high / row.ratio.low)
        / 2
        / special.stdtrit(row.num_seeds - 1, 0.975)
        * math.sqrt(row.num_seeds)
        for row in (analysis.drift.reductions if analysis.drift else ())
        if row.ratio is not None
        and (row.part, row.site) == ("overall", "residual")
        and row.task != "*"
        and row.num_seeds > 1
    ]
    assumed = replace(
        ASSUMED,
        seed_sd=math.sqrt(fmean(between)) if between else ASSUMED.seed_sd,
        discordant=fmean(discordant) if discordant else ASSUMED.discordant,
        drift_sd=fmean(ratios) if ratios else ASSUMED.drift_sd,
    )
    return assumed


def effects_from(analysis: Analysis, study: Study) -> dict[str, float]:
    """What finished runs found of the study's own hypotheses. One that only has the name of another claim tells nothing."""
    found = {result.name: result for result in analysis.hypotheses}
    return {
        name: result.average.estimate
        for name, claim in study.hypotheses.items()
        if (result := found.get(name)) is not None and result.average is not None and _asks_the_same(result, claim)
    }


def _asks_the_same(result: HypothesisResult, claim: Hypothesis) -> bool:
    """Whether both compare the same arms on the same thing, in the same unit; the margin may be another."""
    test = hypothesis_test(claim)
    alike = (result.kind, result.metric, result.is_ratio) == (test.kind, claim.on, test.is_ratio)
    return alike and all(arm in result.claim.split() for arm in compared(claim))


def basis_of(assumed: Assumptions, *, like: str | None = None) -> str:
    """What the simulation rests on. like: the folder of finished runs that it was taken from."""
    source = "Assumed" if like is None else f"From {like}, as far as it was measured there"
    return (
        f"{STUDIES} simulated studies in each of two worlds, judged by the rules of the report, with its corrections. In one "
        "every claim holds by half of its margin (a claim of less drift or cost by twice as much, on a log scale); in the "
        f"other each fails by half of it (or the arms are equal). {source}: standard deviations of {100 * assumed.seed_sd:.2g} "
        f"points between seeds, {assumed.drift_sd:.2g} of the log of a ratio of drifts, {assumed.cost_sd:g} of costs and "
        f"{assumed.repeat_sd:g} of serving between repeats; one example in {1 / assumed.discordant:.3g} on which the arms "
        "disagree; one model; no run collapses"
    )


def deciding(
    study: Study, power: Sequence[Detectable], *, like: Analysis | None = None, name: str = ""
) -> Deciding | None:
    """None where a test set is not known yet, or nothing declared can be simulated. like: finished runs, whose variances and
    effects are taken; name: what they are called."""
    if not study.hypotheses or any(task.num_examples is None or task.metric is None for task in power):
        return None
    metrics = {task.task: task.metric for task in power if task.metric}
    examples = {task.task: task.num_examples for task in power if task.num_examples}
    if len(examples) < len(study.tasks):
        return None
    assumed, effects = (ASSUMED, {}) if like is None else (assumed_from(like), effects_from(like, study))
    declared = chances(study, metrics, examples, assumed, effects=effects)
    if not declared:
        return None
    variants = [
        Variant(change, tuple(chances(other, metrics, examples, assumed))) for change, other in _variants(study)
    ]
    return Deciding(tuple(declared), tuple(variants), basis_of(assumed, like=name if like is not None else None))


def _variants(study: Study) -> Iterator[tuple[str, Study]]:
    count = 2 * len(study.seeds)
    if count <= len(PRINTED):
        yield f"{count} seeds", study.model_copy(update={"seeds": study.seeds * 2})  # only their number counts here
    every = {
        name: claim.model_copy(update={"at" if isinstance(claim, Overhead) else "over": "average"})
        for name, claim in study.hypotheses.items()
        if "every" in (getattr(claim, "at", None), getattr(claim, "over", None))
    }
    if every:
        yield "claims over the average", study.model_copy(update={"hypotheses": {**study.hypotheses, **every}})


def sentences(found: Deciding) -> list[str]:
    """One a hypothesis, and one of the conclusion."""
    texts = []
    for name in dict.fromkeys(chance.name for chance in found.declared):
        holds, fails = (next(c for c in found.declared if (c.name, c.world) == (name, w)) for w in ("holds", "fails"))
        more = [
            f"{variant.change} {_percent(one.supported)} and {_percent(two.refuted)}"
            for variant in found.variants
            for one, two in [[c for c in variant.chances if c.name == name]]
        ]
        raised = f" (with {'; '.join(more)})" if more else ""
        label = "The conclusion" if name == "conclusion" else name
        texts.append(
            f"{label}: {_percent(holds.supported)} to be supported if true ({holds.truth}), {_percent(fails.refuted)} to be "
            f"refuted if not ({fails.truth}){raised}."
        )
        for chance in found.declared:
            if (chance.name, chance.world) == (name, "found"):
                texts[-1] += (
                    f" If it is as found ({chance.truth}): {_percent(chance.supported)} to be supported, "
                    f"{_percent(chance.refuted)} to be refuted."
                )
    return texts


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
