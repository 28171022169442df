"""What the study found of serving, in plain words made from its numbers: what adapters cost, and when merging wins.

The one idea: a direction is claimed only where the interval over repeats lies on one side of no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import (
    Place,
    arm_name,
    level_text,
    over_repeats,
    overheads_of,
    percent,
    percent_more,
    place_name,
    places_of,
    repeats_text,
    serving_of,
)
from lorascope.stats.serving.advice import most_adapters_overheads
from lorascope.stats.serving.analysis import Figure, OneMachine, ServingOverhead
from lorascope.stats.serving.trade import bytes_of_tasks

_BATCHES_AT_MOST = 6


def answer(facts: Facts) -> tuple[str, ...]:
    """Sentences for the top of the section."""
    found = [sentence for place in places_of(facts) for sentence in _of_place(facts, place)]
    return (*_hypotheses(facts), *found, *_left_out(facts))


def summary_of_serving(facts: Facts) -> tuple[str, ...]:
    """One sentence for the executive summary, none where nothing was served."""
    if facts.analysis.serving is None:
        return ()
    leads = [text for place in places_of(facts) for text in _span(facts, place)]
    return (f"Serving: {'; '.join(leads)}.",) if leads else ()


def _hypotheses(facts: Facts) -> Iterator[str]:
    for result in facts.analysis.hypotheses:
        if result.kind == "overhead":
            yield f"**{result.name} is {result.verdict}** ({result.claim}): {wording.sentence(result.reason)}"


def _of_place(facts: Facts, place: Place) -> Iterator[str]:
    where = wording.sentence(place_name(facts, place)).rstrip(".")
    latency = most_adapters_overheads(serving_of(facts), *place)
    if latency:
        yield f"{where}: {_by_batch(latency, 'p95 latency')}."
    throughput = most_adapters_overheads(serving_of(facts), *place, metric="tokens_per_second")
    if throughput:
        yield f"{where}: {_by_batch(throughput, 'time per token')}."
    if latency or throughput:
        yield from _merging_itself(facts, place, where)
    yield from _one_machine(facts, place, where)
    yield from _memory(facts, place, where)
    yield from _machines(facts, place, where)


def _by_batch(overheads: Sequence[ServingOverhead], what: str) -> str:
    """The overhead at each batch size, of many only the first and the last."""
    shown = overheads if len(overheads) <= _BATCHES_AT_MOST else [overheads[0], overheads[-1]]
    parts = wording.listing(_one_overhead(o) for o in shown)
    n = repeats_text(o.num_repeats for o in shown)
    held = " (95% intervals in brackets)" if any(o.interval for o in shown) else ""
    return f"{_opening(overheads, what)}: {parts}{held}; {n}"


def _opening(overheads: Sequence[ServingOverhead], what: str) -> str:
    """ "4 adapters have more p95 latency than the merged model at every batch size"."""
    known = [o.interval for o in overheads if o.interval is not None]
    arm = arm_name(overheads[0].arm)
    have = "has" if arm.startswith("1 ") else "have"
    if len(known) < len(overheads):
        return f"{arm} against the merged model in {what}, without intervals"
    if all(interval.low > 1 for interval in known):
        return f"{arm} {have} a higher {what} than the merged model at every batch size"
    if all(interval.high < 1 for interval in known):
        return f"{arm} {have} a lower {what} than the merged model at every batch size"
    return f"whether {arm} {have} a higher {what} than the merged model depends on the batch size or is open"


def _one_overhead(o: ServingOverhead) -> str:
    bounds = f" [{percent(o.interval.low)} to {percent(o.interval.high)}]" if o.interval else ""
    return f"{percent_more(o.estimate)} at batch {level_text(o.level)}{bounds}"


def _span(facts: Facts, place: Place) -> Iterator[str]:
    overheads = most_adapters_overheads(serving_of(facts), *place)
    if overheads:
        low, high = (pick(overheads, key=lambda o: o.estimate) for pick in (min, max))
        ends = [f"{percent_more(o.estimate)} (batch {level_text(o.level)})" for o in (low, high)]
        span = " to ".join(dict.fromkeys(ends))
        yield f"{place_name(facts, place)}, {arm_name(low.arm)} over merged: p95 latency {span}"


def _merging_itself(facts: Facts, place: Place, where: str) -> Iterator[str]:
    """Whether the merged model is as fast as the base, as it should be: they have one shape."""
    rows = [
        o for o in overheads_of(facts, place, "latency_ms_p95", reference="base") if o.arm == "merged" and o.interval
    ]
    if rows:
        apart = [o for o in rows if o.interval and not o.interval.low <= 1 <= o.interval.high]
        if not apart:
            yield (
                f"{where}: merged and base, which have one shape, cannot be told apart at any of "
                f"{wording.plural(len(rows), 'batch size')}, as expected."
            )
        else:
            texts = wording.listing(_one_overhead(o) for o in apart)
            yield (
                f"{where}: merged and base have one shape, yet p95 latency differs ({texts}): read overheads of this "
                "size as noise of the machine."
            )


def _one_machine(facts: Facts, place: Place, where: str) -> Iterator[str]:
    known = [m for m in serving_of(facts).one_machine if (m.model, m.workload) == place and m.gain is not None]
    if not known:
        return
    batch = max(m.batch for m in known)
    rows = sorted((m for m in known if m.batch == batch), key=lambda m: m.num_tasks)
    (found,) = [t for t in serving_of(facts).tasks if (t.model, t.workload, t.batch) == (*place, batch)]
    most = rows[-1]
    gains = f"{_times(rows[0])}{f' to {_times(most)}' if most is not rows[0] else ''}"
    if found.tasks.value is None:
        verdict = f"merging wins up to {wording.plural(found.most_tasks, 'task')}, the most compared"
        sure = f" (so in {found.tasks.num_repeats - found.tasks.num_found} of {_repeats(found.tasks)})"
    elif found.tasks.value == rows[0].num_tasks:
        verdict = "one engine with adapters serves more than merged models in turns, for every number of tasks compared"
        sure = ""  # a break-even at the edge of what was compared is a bound, without an interval
    else:
        verdict = f"merging wins while there are fewer than {found.tasks.value:.0f} tasks"
        sure = over_repeats(found.tasks, is_count=True)
    yield (
        f"{where}, one machine, {level_text(batch)} requests at once over all tasks: {verdict}{sure}; "
        f"tokens/s of adapters over merged: {gains}."
    )


def _times(row: OneMachine) -> str:
    assert row.gain is not None
    held = row.gain.interval
    bounds = f" [{wording.ratio_range(held)}]" if held else ""
    return f"{wording.ratio(row.gain.value)} with {wording.plural(row.num_tasks, 'task')}{bounds}"


def _memory(facts: Facts, place: Place, where: str) -> Iterator[str]:
    for row in serving_of(facts).memory:
        if (row.model, row.workload) == place:
            fewest = row.break_even_tasks
            if fewest.value is None:
                yield f"{where}, memory: an adapter takes as much as a model, so merging never takes more."
                continue
            tasks, sure = max(4, round(fewest.value)), over_repeats(fewest, is_count=True)
            adapters, merged = (wording.bytes_text(size) for size in bytes_of_tasks(row, tasks))
            yield (
                f"{where}, memory: merging wins while there are fewer than {fewest.value:.0f} tasks{sure}; "
                f"weights of {wording.plural(tasks, 'task')} take {adapters} with adapters and {merged} merged."
            )


def _machines(facts: Facts, place: Place, where: str) -> Iterator[str]:
    rows = [t for t in serving_of(facts).traffic if (t.model, t.workload) == place and not t.reason]
    most = max((t.num_tasks for t in rows), default=0)
    told = []
    for row in rows:
        if row.num_tasks != most:
            continue
        mix = "asked for equally often" if row.mix == "uniform" else "whose shares follow Zipf's law"
        if row.last.value is None:
            found = f" (in {row.last.num_found} of {_repeats(row.last)} they do)" if row.last.num_found else ""
            told.append(f"tasks {mix}: adapters never need more machines{found}")
        else:
            told.append(
                f"tasks {mix}: merging never needs more machines beyond {wording.significant(row.last.value, 3)} requests/s"
                f"{over_repeats(row.last)} and never fewer below {wording.significant(row.first.value, 3)}"
                f"{over_repeats(row.first)}"
            )
    if told:
        one = rows[-1]
        capacities = f"{wording.significant(one.adapter_capacity, 3)} v {wording.significant(one.merged_capacity, 3)}"
        yield f"{where}, machines for {most} tasks ({capacities} requests/s a machine): {'; '.join(told)}."


def _repeats(figure: Figure) -> str:
    return wording.plural(figure.num_repeats, "repeat")


def _left_out(facts: Facts) -> Iterator[str]:
    for row in serving_of(facts).left_out:
        place = place_name(facts, (row.model, row.workload))
        setting = "" if row.setting == "default" else f", {row.setting}"
        yield f"**{arm_name(row.arm)} ({place}{setting})** {wording.sentence(row.reason)}"
