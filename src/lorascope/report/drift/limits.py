"""What the study's measurement of drift cannot say; like all limitations computed from what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.report.drift.rows import (
    arm_mean,
    averaged_rows,
    drift_of,
    num_examples,
    probe_tasks,
    reductions,
    run_drifts,
    run_rows,
)
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts

_INFLATED = 0.9
"""A biased estimate below this share of the debiased one hides a drift worth naming."""
_FEW_DRAWS = 500
_FEW_RUNS = 10
_NAMED_AT_MOST = 4
_OTHERS = {
    "drift_standardised": "standardised features",
    "procrustes_distance": "Procrustes distance",
    "neighbour_change": "nearest neighbours",
}


def drift_limitations(facts: Facts) -> Iterator[str]:
    """Sentences, none where drift was not measured."""
    if facts.analysis.drift is None:
        return
    for rule in (_no_ratio, _one_seed, _few_examples, _disagreement, _smaller_updates, _scope, _tests, _runs, _draws):
        yield from rule(facts)


def _no_ratio(facts: Facts) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for row in reductions(facts, "overall", site=None):
        if row.ratio is None and row.task != "*":
            what = f"{wording.name(row.method)} v {wording.name(row.reference)} on {facts.place(row.model, row.task)}"
            reasons.setdefault(row.reason.rstrip("."), []).append(f"{what}, {row.site}")
    for reason, places in reasons.items():
        yield f"No ratio of drift for {wording.listing(places)}: {reason}."


def _one_seed(facts: Facts) -> Iterator[str]:
    if {row.num_seeds for row in drift_of(facts).profiles} == {1}:
        yield (
            "Drift rests on one seed an arm: its intervals cover only the choice of probe examples, and without a second "
            "seed it is not known how much of their movement seeds share."
        )


def _few_examples(facts: Facts) -> Iterator[str]:
    """The biased estimator next to the debiased one shows what the number of examples does to it."""
    drift, biased = averaged_rows(facts, "drift"), averaged_rows(facts, "drift_biased")
    hidden = []
    for model, task in facts.cells:
        for method in facts.methods:
            ours, theirs = (arm_mean(rows, model, task, method) for rows in (drift, biased))
            if ours is not None and theirs is not None and ours > 0 and theirs < _INFLATED * ours:
                hidden.append(
                    (1 - theirs / ours, ours, theirs, f"{wording.name(method)} on {facts.place(model, task)}")
                )
    if hidden:
        counts = num_examples(facts)
        few = f"{wording.range_text(counts)} probe examples are" if counts else "The probe's examples are"
        share, ours, theirs, where = max(hidden)
        yield (
            f"{few} few compared with the width of the features: the usual, biased CKA would hide up to "
            f"{wording.fraction(share, 0)} of the drift ({where}: {wording.drift(theirs)} in place of "
            f"{wording.drift(ours)}). The debiased estimate has no such floor, but a wider interval."
        )
    negative = [row for row in drift_of(facts).profiles if row.drift.estimate < 0]
    if negative:
        yield (
            f"{len(negative)} of {wording.plural(len(drift_of(facts).profiles), 'drift')} by layer lie below 0, as an "
            f"unbiased estimate of a drift near 0 may. They mean that no drift can be measured."
        )


def _disagreement(facts: Facts) -> Iterator[str]:
    """Measures by which the arms stand the other way round."""
    frames = {metric: averaged_rows(facts, metric) for metric in ("drift", *_OTHERS)}
    for row in reductions(facts, "overall"):
        if row.task == "*" or row.ratio is None:
            continue
        turned = []
        for metric, label in _OTHERS.items():
            first, second = (arm_mean(frames[metric], row.model, row.task, m) for m in (row.method, row.reference))
            if first is not None and second is not None and (first - second) * (row.ratio.estimate - 1) < 0:
                turned.append(f"{label} ({wording.drift(first)} v {wording.drift(second)})")
        if turned:
            yield (
                f"On {facts.place(row.model, row.task)} {wording.listing(turned)} order {wording.name(row.method)} and "
                f"{wording.name(row.reference)} the opposite way to drift: which is closer depends on the measure."
            )


def _smaller_updates(facts: Facts) -> Iterator[str]:
    """Less drift may come from a smaller change of the weights, and not from the method's form."""
    size = run_rows(facts, "relative_update_norm")
    found = []
    for row in reductions(facts, "overall"):
        first, second = (arm_mean(size, row.model, row.task, m) for m in (row.method, row.reference))
        if row.ratio is None or first is None or second is None or row.ratio.estimate >= 1 or first >= second:
            continue
        place = f"{wording.name(row.method)} on {facts.place(row.model, row.task)}"
        found.append(f"{place} ({wording.drift(first)} v {wording.drift(second)} of ‖W‖)")
    if found:
        rest = len(found) - _NAMED_AT_MOST
        listed = wording.listing([*found[:_NAMED_AT_MOST], *([f"{rest} more"] if rest > 0 else [])])
        yield (
            f"Where drift is lower, the weights also changed less: {listed}. Less drift may come from smaller updates alone."
        )


def _scope(facts: Facts) -> Iterator[str]:
    if probe_tasks(facts):
        own = averaged_rows(facts, "drift")
        more = []
        for probe in probe_tasks(facts):
            away = averaged_rows(facts, "drift", split=f"probe:{probe}")
            for model, task in facts.cells:
                for method in facts.methods:
                    here, there = (arm_mean(rows, model, task, method) for rows in (own, away))
                    if here is not None and there is not None:
                        more.append(there > here)
        if more:
            yield (
                f"The ratios are of drift on each task's own test examples; on other tasks' examples drift is larger in "
                f"{sum(more)} of {wording.plural(len(more), 'pair')} of arm and probe, and was not tested."
            )
    elif run_drifts(facts):
        yield "Drift was measured on each task's own test examples: on other texts it may be larger or smaller."
    if not run_rows(facts, "forgetting"):
        yield (
            "Forgetting was not measured (the study names no general text), so it is not known whether drift cost the "
            "models anything."
        )


def _tests(facts: Facts) -> Iterator[str]:
    tested = [row for row in drift_of(facts).reductions if row.p_value is not None and row.p_holm is None]
    if len(tested) > 1:
        yield (
            f"Holm's correction of drift covers the single layers of a task and site; the other {len(tested)} tests of drift "
            "(tasks, sites, thirds) are not corrected for one another."
        )


def _runs(facts: Facts) -> Iterator[str]:
    few = [row.num_runs for row in drift_of(facts).correlations if row.rho is not None and row.num_runs < _FEW_RUNS]
    if few:
        yield (
            f"Correlations of drift rest on as few as {wording.plural(min(few), 'run')}, of few arms: they mostly show "
            f"differences between arms, and little of what drift does within an arm."
        )


def _draws(facts: Facts) -> Iterator[str]:
    draws = drift_of(facts).num_draws
    if draws < _FEW_DRAWS:
        yield f"{wording.plural(draws, 'bootstrap draw')} of the probe's examples: variances over examples are rough."
