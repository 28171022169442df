"""What tuning vLLM's own settings gains: the answer in words, gain by batch size, and everything that was tried.

The one idea: the search only chooses; what its choice gains is the paired ratio of default to tuned over the study's repeats,
and a gain is claimed only where that interval lies above none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lorascope.report.page import wording
from lorascope.report.page.document import Block, Bullets, Column, Illustration, Table
from lorascope.report.page.facts import Facts
from lorascope.report.serving import overhead
from lorascope.report.serving.rows import (
    Place,
    arm_name,
    level_text,
    n_of,
    percent,
    place_name,
    places_of,
    repeats_text,
)
from lorascope.stats.facts.served import LeverTrialFacts
from lorascope.stats.serving.analysis import Tuning

_OUTCOMES = {
    "measured": "measured",
    "idle": "not tried: {}",
    "unknown": "not known to this version: {}",
    "failed": "its engine failed: {}",
    "unproven": "not timed, its answers differ: {}",
}


def tuning_blocks(facts: Facts) -> list[Block | None]:
    """Empty for a study that did not tune."""
    said = tuple(_answer(facts))
    return [Bullets(said) if said else None, _figure(facts), trials_table(facts)]


def _answer(facts: Facts) -> Iterator[str]:
    for place in places_of(facts):
        trials = _trials_of(facts, place)
        if trials:
            where = wording.sentence(place_name(facts, place)).rstrip(".")
            yield f"{where}, tuning {arm_name(trials[0].arm)}: {_found(trials)}{_gain(facts, place, trials)}"


def _found(trials: Sequence[LeverTrialFacts]) -> str:
    tried = sum(trial.outcome == "measured" for trial in trials) - 1
    if tried < 0:
        return f"the default setting itself could not be tried ({trials[0].reason}), so nothing was searched."
    chosen = _chosen(trials)
    searched = f"of {wording.plural(tried, 'setting')} other than the default, "
    if chosen is None:
        return f"{searched}none was faster in the search. The default is the best that was found."
    return f"{searched}{_levers(chosen)} was the fastest in the search."


def _chosen(trials: Sequence[LeverTrialFacts]) -> LeverTrialFacts | None:
    return next((trial for trial in trials if trial.chosen), None)


def _gain(facts: Facts, place: Place, trials: Sequence[LeverTrialFacts]) -> str:
    """What the chosen setting gains in the study's own repeats, by batch size."""
    if _chosen(trials) is None:
        return ""
    rows = sorted(overhead.tuned_rows(facts, place), key=lambda t: t.level or 0.0)
    if not rows:
        return " It gave no figure in the study's repeats."
    known = [t.interval for t in rows if t.interval is not None]
    gains = [interval.low > 1 for interval in known]
    losses = [interval.high < 1 for interval in known]
    if not known:
        claim = "too few repeats for an interval; by the default's p95 latency over the tuned one's"
    elif any(losses):
        claim = (
            "the study contradicts it: at some batch sizes the tuned setting is slower; the default's p95 latency "
            "over the tuned one's is"
        )
    elif all(gains):
        claim = "the study confirms it at every batch size: the default's p95 latency over the tuned one's is"
    elif any(gains):
        claim = "the study confirms it at some batch sizes only: the default's p95 latency over the tuned one's is"
    else:
        claim = "the study shows no gain, every interval includes zero: default over tuned p95 latency is"
    parts = wording.listing(_one_gain(t) for t in rows)
    return f" In {repeats_text(t.num_repeats for t in rows)}, {claim} {parts}."


def _one_gain(t: Tuning) -> str:
    bounds = f" [{percent(t.interval.low)} to {percent(t.interval.high)}]" if t.interval else ""
    return f"{percent(t.estimate)}{bounds} at batch {level_text(t.level)}"


def _figure(facts: Facts) -> Illustration | None:
    if not overhead.tuned_places(facts):
        return None
    return Illustration(
        name="serving_tuning",
        title="What tuning gains",
        caption="How much longer the default setting takes than the tuned one, within repeats; above 0 tuning helps. "
        f"Marker: geometric mean over repeats; bar: 95% t interval, log scale. {n_of(facts)}.",
        draw=partial(overhead.draw_tuning, facts),
    )


def trials_table(facts: Facts) -> Table | None:
    """Everything the search tried, and what it did not with the reason; the chosen setting is marked."""
    rows, marked = [], set()
    for place in places_of(facts):
        trials = _trials_of(facts, place)
        for trial in trials:
            if trial.chosen:
                marked.add(len(rows))
            over_default = trial.cost_ms and trials[0].cost_ms and trial.cost_ms / trials[0].cost_ms
            rows.append(
                (
                    place_name(facts, place),
                    _levers(trial),
                    ", ".join(f"{size}: {wording.significant(ms, 3)}" for size, ms in trial.batch_ms.items())
                    or wording.ABSENT,
                    percent(over_default) if trial.levers else wording.ABSENT,
                    "chosen" if trial.chosen else _OUTCOMES[trial.outcome].format(trial.reason),
                )
            )
    if not rows:
        return None
    headings = ("workload", "setting", "median time by batch size (ms)", "time over the default's", "outcome")
    return Table(
        name="serving_trials",
        title="What the search tried",
        columns=tuple(Column(heading, numeric=heading == headings[3]) for heading in headings),
        rows=tuple(rows),
        marked=frozenset(marked),
        note="Each in one fresh engine process, after its answers were checked, on requests that no repeat is asked. One "
        "process may be lucky: what the chosen setting gains is measured in the study's repeats, not here.",
    )


def _trials_of(facts: Facts, place: Place) -> list[LeverTrialFacts]:
    """In the order they were made: the default first."""
    return [trial for trial in facts.served.trials if (trial.model, trial.workload) == place]


def _levers(trial: LeverTrialFacts) -> str:
    return " + ".join(trial.levers) or "default"
