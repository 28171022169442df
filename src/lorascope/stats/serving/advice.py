"""Sentences that follow from the numbers, each with what it rests on; none where the numbers do not carry one.

A sentence about a comparison needs an interval that leaves out "no difference"; one about machines or memory needs a
break-even with an interval, or none in any repeat. Nothing here is opinion: change the numbers and the sentences change.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.stats.serving.analysis import Recommendation, ServingAnalysis, ServingOverhead
from lorascope.stats.serving.cells import num_adapters
from lorascope.stats.serving.repeats import FEWEST
from lorascope.stats.serving.trade import bytes_of_tasks

_GIB = 2**30
_MIB = 2**20


def recommend(analysis: ServingAnalysis) -> list[Recommendation]:
    """For each (model, workload): latency against merging, one machine, memory, machines, tuning, switching. Fewer repeats
    than an interval takes carry no advice."""
    if analysis.num_repeats < FEWEST:
        return []
    places = dict.fromkeys((cell.model, cell.workload) for cell in analysis.cells)
    return [found for place in places for say in _SAY for found in say(analysis, *place)]


def most_adapters_overheads(
    analysis: ServingAnalysis, model: str, workload: str, *, metric: str = "latency_ms_p95"
) -> list[ServingOverhead]:
    """Over merged, of the arm with most adapters, greedy and in the default setting, by batch size."""
    found = [
        o
        for o in analysis.overheads
        if (o.model, o.workload, o.reference, o.metric, o.loop) == (model, workload, "merged", metric, "batch")
        and (o.sampling, o.setting) == ("greedy", "default")
        and num_adapters(o.arm)
    ]
    most = max((num_adapters(o.arm) or 0 for o in found), default=0)
    largest = [o for o in found if num_adapters(o.arm) == most]
    by_level: dict[float, ServingOverhead] = {}
    for o in largest:
        if o.level is not None and (o.level not in by_level or o.choice == "round-robin"):
            by_level[o.level] = o
    return [by_level[level] for level in sorted(by_level)]


def _latency(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    overheads = most_adapters_overheads(analysis, model, workload)
    dearer = [o for o in overheads if o.interval and o.interval.low > 1]
    if not dearer or len(dearer) < len(overheads):
        return
    worst, best = max(dearer, key=lambda o: o.estimate), min(dearer, key=lambda o: o.estimate)
    span = f"{_percent(worst.estimate)} at batch {worst.level:g}"
    if worst is not best:
        span = f"{_percent(best.estimate)} (batch {best.level:g}) to {_percent(worst.estimate)} (batch {worst.level:g})"
    yield Recommendation(
        f"{model}, {workload}: where one task's latency is what counts, merge it: with {_adapters(worst.arm)} "
        f"the p95 latency is {span} above merged.",
        "paired overhead of p95 latency, whole intervals above 0",
    )


def _one_machine(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    found = [m for m in analysis.one_machine if (m.model, m.workload) == (model, workload) and m.gain is not None]
    if not found:
        return
    tasks = max(m.num_tasks for m in found)
    most = max((m for m in found if m.num_tasks == tasks), key=lambda m: m.batch)
    held = most.gain.interval if most.gain else None
    if held is None or held.low <= 1 <= held.high:
        return
    together = (
        f"one engine with {tasks} adapters serves {held.estimate:.2f} times (95% interval {held.low:.2f} to "
        f"{held.high:.2f}) the tokens of {tasks} merged models in turns"
    )
    advice = "let adapters share the base" if held.low > 1 else "merge, and let the models take turns"
    yield Recommendation(
        f"{model}, {workload}: for {tasks} tasks on one machine at {most.batch:g} requests at once, {advice}: {together}.",
        "tokens/s within repeats, whole interval on one side of 1; merged interpolated where its batch was not measured",
    )


def _memory(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    for found in analysis.memory:
        fewest = found.break_even_tasks
        if (found.model, found.workload) != (model, workload) or fewest.value is None or fewest.interval is None:
            continue
        tasks = max(4, round(fewest.value))
        adapters, merged = bytes_of_tasks(found, tasks)
        yield Recommendation(
            f"{model}, {workload}: where memory is short, keep adapters apart from {fewest.value:g} tasks on: "
            f"{tasks} tasks take {_bytes(adapters)} of weights with adapters, {_bytes(merged)} merged.",
            "weights and adapter slots as the engine reports them",
        )


def _machines(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    found = [t for t in analysis.traffic if (t.model, t.workload) == (model, workload) and not t.reason]
    tasks = max((t.num_tasks for t in found), default=0)
    for t in found:
        if t.num_tasks != tasks or t.mix != "uniform":
            continue
        held = t.last.interval
        if t.last.value is None and not t.last.num_found:
            text = f"adapters never need more machines than merging, for {tasks} tasks asked for equally often"
        elif held is not None:
            text = (
                f"for {tasks} tasks asked for equally often, merging never needs more machines beyond "
                f"{_rate(held.estimate)} requests/s in all (95% interval {_rate(held.low)} to {_rate(held.high)}); below it "
                "adapters may need fewer"
            )
        else:
            continue
        yield Recommendation(f"{model}, {workload}: {text}.", "best requests/s of one machine over the batch sizes")


def _tuning(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    gains = [
        t
        for t in analysis.tuning
        if (t.model, t.workload, t.metric, t.loop) == (model, workload, "latency_ms_p95", "batch")
        and t.interval is not None
    ]
    better = [t for t in gains if t.interval and t.interval.low > 1]
    if gains and len(better) == len(gains):
        least = min(better, key=lambda t: t.estimate)
        yield Recommendation(
            f"{model}, {workload}: use the tuned setting: it lowers the p95 latency of {_adapters(least.arm)} by "
            f"{100 * (1 - 1 / least.estimate):.0f}% or more at every batch size measured (point estimates).",
            "paired gain of the tuned setting, whole intervals above 0",
        )


def _switch(analysis: ServingAnalysis, model: str, workload: str) -> Iterator[Recommendation]:
    slow = [s for s in analysis.switching if (s.model, s.workload) == (model, workload) and s.ratio and s.ratio.low > 1]
    if slow:
        worst = max(slow, key=lambda s: s.ratio.estimate if s.ratio else 0.0)
        assert worst.ratio is not None
        yield Recommendation(
            f"{model}, {workload}: give adapters in use a slot each: a request whose adapter is {STATES[worst.state]} "
            f"takes {worst.ratio.estimate:.2g} times as long as one whose adapter is resident.",
            "latency by adapter state, paired by repeat",
        )


STATES = {
    "resident": "resident",
    "switched": "resident but not the last one used",
    "cpu": "in the processor's memory",
    "evicted": "dropped and read again",
    "disk": "on disk, never read before",
}
_SAY = (_latency, _one_machine, _memory, _machines, _tuning, _switch)


def _adapters(arm: str) -> str:
    count = num_adapters(arm)
    return "1 adapter" if count == 1 else f"{count} adapters"


def _rate(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f}%"


def _bytes(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / _MIB:.0f} MiB"
