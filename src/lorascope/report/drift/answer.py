"""What the study found of drift, in plain words made from its numbers: how much closer, how much seeds share, in which layers.

The one idea: a sentence claims a direction only where the interval lies on one side of 1; otherwise it says that the
question is open and shows the interval.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.report.drift.rows import (
    PARTS,
    arm_mean,
    drift_of,
    method_mean,
    num_examples,
    reductions,
    run_drifts,
    run_rows,
    seed_v_seed,
)
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import DriftReduction, Interval

_PAIRS_AT_MOST = 3
_NAMED_AT_MOST = 4


def answer(facts: Facts) -> tuple[str, ...]:
    """Sentences for the top of the section. With many pairs of methods only the tables show the depths."""
    pairs = _pairs(facts)
    whole = len(pairs) <= _PAIRS_AT_MOST
    found = [sentence for lead, tasks in pairs for sentence in _pair(facts, lead, tasks, by_depth=whole)]
    return (*found, *_in_common(facts), _caution(facts), *_forgotten(facts))


def summary_of_drift(facts: Facts) -> tuple[str, ...]:
    """One sentence for the executive summary, none where drift was not measured or not compared."""
    if facts.analysis.drift is None:
        return ()
    leads = [lead for lead, _ in _pairs(facts) if lead.ratio is not None]
    if not leads:
        return ()
    if len(leads) > _PAIRS_AT_MOST:
        ratios = [lead.ratio.estimate for lead in leads if lead.ratio]
        closer = sum(lead.ratio.high < 1 for lead in leads if lead.ratio)
        return (
            f"Drift from the base: {closer} of {len(leads)} comparisons show a method closer to its base than the "
            f"reference; ratios of drift run from {wording.ratio(min(ratios))} to {wording.ratio(max(ratios))}.",
        )
    return (f"Drift from the base: {'; '.join(_claim(facts, lead) for lead in leads)}.",)


def _pairs(facts: Facts) -> list[tuple[DriftReduction, list[DriftReduction]]]:
    """For each (model, method, reference) the reduction that leads (the average over tasks, else the first task) and
    those of the single tasks."""
    groups: dict[tuple[str, str, str], list[DriftReduction]] = {}
    for row in reductions(facts, "overall"):
        groups.setdefault((row.model, row.method, row.reference), []).append(row)
    return [(rows[0], [row for row in rows if row.task != "*"]) for rows in groups.values()]


def _pair(facts: Facts, lead: DriftReduction, tasks: list[DriftReduction], *, by_depth: bool) -> Iterator[str]:
    if lead.ratio is None:
        yield (
            f"There is no ratio of drift of {wording.name(lead.method)} to {wording.name(lead.reference)} "
            f"{_where(facts, lead)}: {_reason(lead)}."
        )
    else:
        yield wording.sentence(_claim(facts, lead))
    singles = [row for row in tasks if row is not lead]
    if singles:
        yield f"Task by task: {'; '.join(_of_task(facts, row) for row in singles)}."
    if by_depth:
        yield from _thirds(facts, lead)
        yield from _layers(facts, lead)


def _claim(facts: Facts, row: DriftReduction) -> str:
    """ "LoRA stays closer to its base than full fine-tuning: it drifts 0.42 times as far (95% interval ...)"."""
    assert row.ratio is not None
    first, second, change = wording.name(row.method), wording.name(row.reference), row.ratio
    if row.num_seeds == 1:
        first += " of the only seed"  # the interval knows no other
    if change.high < 1:
        verdict = f"{first} stays closer to the base than {second}: its drift is"
    elif change.low > 1:
        verdict = f"{first} moves further from the base than {second}: its drift is"
    else:
        verdict = f"whether {first} stays closer to the base than {second} is open: its drift is"
    p = f", {wording.p_equals(row.p_value)}" if row.p_value is not None else ""
    seeds, over = wording.plural(row.num_seeds, "seed"), " over examples alone" if row.num_seeds == 1 else ""
    return (
        f"{verdict} {wording.ratio(change.estimate)} times as large, {less(change.estimate)}, {_where(facts, row)} "
        f"({wording.confidence(change)}{over} {wording.ratio_range(change)}{p}; {seeds} × {_examples(facts, row)})"
    )


def less(ratio: float) -> str:
    """ "58% less", "20% more"."""
    change = wording.fraction(abs(1 - ratio), 0)
    return "the same" if change == "0%" else f"{change} {'less' if ratio < 1 else 'more'}"


def _examples(facts: Facts, row: DriftReduction) -> str:
    known = drift_of(facts).num_examples
    counts = [known[row.task]] if row.task in known else num_examples(facts)
    return f"{wording.range_text(counts)} examples" if counts else "the probe's examples"


def _where(facts: Facts, row: DriftReduction) -> str:
    if row.task != "*":
        return f"on {facts.place(row.model, row.task)}"
    return "averaged over tasks" + (f" of {row.model}" if len(facts.models) > 1 and row.model != "*" else "")


def _of_task(facts: Facts, row: DriftReduction) -> str:
    place = facts.place(row.model, row.task)
    if row.ratio is None:
        return f"{place} has no ratio ({_reason(row)})"
    return f"{place} {wording.ratio(row.ratio.estimate)} ({wording.ratio_range(row.ratio)})"


def _reason(row: DriftReduction) -> str:
    return row.reason.rstrip(".")


def _thirds(facts: Facts, lead: DriftReduction) -> Iterator[str]:
    """Which third of the layers differs most, where intervals can tell."""
    key = (lead.model, lead.task, lead.method, lead.reference)
    found: dict[str, Interval] = {}
    for row in reductions(facts, "early", "middle", "late"):
        if row.ratio is not None and (row.model, row.task, row.method, row.reference) == key:
            found[PARTS[row.part]] = row.ratio
    if len(found) < 2:
        return
    parts = wording.listing(
        f"{name} {wording.ratio(r.estimate)} ({wording.ratio_range(r)})" for name, r in found.items()
    )
    apart = [
        f"lower in the {low} than in the {high}" for low in found for high in found if found[low].high < found[high].low
    ]
    if apart:
        yield f"By depth the ratio is {wording.listing(apart)} (their intervals do not overlap): {parts}."
    else:
        yield f"By depth the ratios cannot be told apart, because their intervals overlap: {parts}."


def _layers(facts: Facts, lead: DriftReduction) -> Iterator[str]:
    """In how many layers the difference stands after Holm's correction, task by task."""
    alpha, counted = facts.analysis.alpha, []
    for task in facts.tasks:
        family = [
            row
            for row in reductions(facts, "layer")
            if (row.model, row.task, row.method, row.reference) == (lead.model, task, lead.method, lead.reference)
            and row.ratio is not None
            and row.p_holm is not None
        ]
        if family:
            lower = sum(below(row, alpha=alpha) for row in family)
            counted.append(f"{lower} of {len(family)} on {facts.place(lead.model, task)}")
    if counted:
        yield (
            f"Layers of the residual stream in which {wording.name(lead.method)} drifts less, after Holm's correction: "
            f"{wording.listing(counted)}."
        )


def below(row: DriftReduction, *, alpha: float) -> bool:
    """Whether a test of a family shows less drift than the reference's after Holm's correction."""
    return row.ratio is not None and row.ratio.estimate < 1 and row.p_holm is not None and row.p_holm < alpha


def above(row: DriftReduction, *, alpha: float) -> bool:
    return row.ratio is not None and row.ratio.estimate > 1 and row.p_holm is not None and row.p_holm < alpha


def _in_common(facts: Facts) -> Iterator[str]:
    """How much of their movement the seeds of an arm share: two runs that move independently by d lie about 2d apart."""
    drifts = run_drifts(facts)
    shares: dict[str, float] = {}
    for model, task in facts.cells:
        for method in facts.methods:
            drift = arm_mean(drifts, model, task, method)
            apart = seed_v_seed(facts, model=model, task=task, method=method)
            if drift is not None and apart is not None and drift > 0:
                shares[f"{wording.name(method)} on {facts.place(model, task)}"] = 1 - apart / (2 * drift)
    if not shares:
        yield "Seed v seed was not measured, so it is not known how much of their movement the seeds of an arm share."
        return
    spread = " to ".join(dict.fromkeys(wording.fraction(pick(shares.values()), 0) for pick in (min, max)))
    alone = [place for place, share in shares.items() if share <= 0]
    text = f"The seeds of an arm share {spread} of their movement (1 − seed v seed / twice the drift)"
    if alone:
        listed = wording.listing([*alone[:_NAMED_AT_MOST], *_rest(len(alone) - _NAMED_AT_MOST)])
        text += (
            f"; in {len(alone)} of {wording.plural(len(shares), 'arm')} they share none: {listed}. There each seed moved the "
            "features in a direction of its own"
        )
    yield f"{text}."


def _rest(number: int) -> list[str]:
    return [f"{number} more"] if number > 0 else []


def _caution(facts: Facts) -> str:
    counts = num_examples(facts)
    examples = (
        f"{wording.range_text(counts)} probe examples a task" if counts else "an unknown number of probe examples"
    )
    seeds = [row.num_seeds for row in drift_of(facts).profiles]
    seeded = f", {wording.range_text(seeds)} {'seed' if max(seeds) == 1 else 'seeds'} an arm" if seeds else ""
    return (
        f"Read it with care: drift is 1 − debiased linear CKA to the base, averaged over the layers of the residual "
        f"stream, from {examples}{seeded}. 0 is the same up to rotation and scale, 1 is unrelated. It says how far "
        "features moved, not that anything was lost: drift is not damage."
    )


def _forgotten(facts: Facts) -> Iterator[str]:
    """What was lost of general text, by method, where the study measured it."""
    rows = run_rows(facts, "forgetting")
    means = {method: method_mean(rows, method) for method in facts.methods}
    parts = [
        f"{wording.name(method)} {wording.signed_drift(mean)}" for method, mean in means.items() if mean is not None
    ]
    if parts:
        yield f"Forgetting is measured separately, as the rise in loss on general text: {wording.listing(parts)} nat per token."
