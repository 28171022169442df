"""The section "Serving": the answer in words, figures by load, memory and break-even, tables; nothing without serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lorascope.report import serving_tables
from lorascope.report.document import Block, Bullets, Illustration
from lorascope.report.facts import Facts
from lorascope.report.figures import serving_bars, serving_curves, serving_overhead, serving_trade
from lorascope.report.serving_answer import answer
from lorascope.report.serving_merging import merging_table
from lorascope.report.serving_rows import n_of, serving_of
from lorascope.report.serving_tuning import tuning_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH = ("latency_ms_p95", "tokens_per_second")
_TOKENS = ("ttft_ms_p50", "itl_ms_p50")
_RATE = ("latency_ms_p50", "latency_ms_p95")
_MARKS = "Marker: geometric mean over repeats; bar: its 95% t interval (none below 3 repeats: marker at the median)."


def serving_blocks(facts: Facts) -> list[Block | None]:
    """Empty for a study that did not serve."""
    if facts.analysis.serving is None:
        return []
    said = answer(facts)
    return [
        Bullets(said) if said else None,
        _curves(facts, "serving_batch", "Latency and throughput by batch size", metrics=_BATCH),
        _overhead(facts),
        serving_tables.overhead_table(facts, "merged"),
        serving_tables.regression_table(facts),
        _curves(facts, "serving_tokens", "First token and time between tokens", metrics=_TOKENS),
        _curves(facts, "serving_rate", "Latency under arriving requests", metrics=_RATE, loop="rate"),
        _memory(facts),
        serving_tables.memory_table(facts),
        _switching(facts),
        serving_tables.switching_table(facts),
        _trade(facts),
        *tuning_blocks(facts),
        _advice(facts),
        serving_tables.results_table(facts),
        serving_tables.overhead_table(facts, "base"),
        merging_table(facts),
        serving_tables.gates_table(facts),
        serving_tables.engines_table(facts),
        serving_tables.failures_table(facts),
    ]


def _curves(
    facts: Facts, name: str, title: str, *, metrics: tuple[str, ...], loop: str = "batch"
) -> Illustration | None:
    how = (
        "Closed loop: so many requests at once, the next when all are answered."
        if loop == "batch"
        else "Open loop: requests arrive at random (Poisson); latency includes waiting."
    )
    caption = f"{_MARKS} {how} Greedy, default setting. {n_of(facts)}."
    draw = partial(serving_curves.draw_curves, metrics=metrics, loop=loop)
    return _figure(facts, name, title, caption, there=serving_curves.panels_with(facts, metrics, loop=loop), draw=draw)


def _overhead(facts: Facts) -> Illustration | None:
    fitted = any(fit.points for fit in serving_of(facts).regressions if fit.metric == serving_overhead.METRIC)
    line = (
        "Line and band: log overhead fitted on the number of adapters and log2 of the batch size in every repeat, mean and "
        "95% t interval over repeats. "
        if fitted
        else ""
    )
    caption = (
        "p95 latency over the merged model's of the same repeat. Marker: geometric mean over repeats; bar: 95% t "
        f"interval, log scale. {line}{n_of(facts)}."
    )
    return _figure(
        facts, "serving_overhead", "Overhead over merging by number of adapters", caption,
        there=serving_overhead.overhead_places(facts), draw=serving_overhead.draw_overhead,
    )  # fmt: skip


def _memory(facts: Facts) -> Illustration | None:
    caption = (
        "Light: weights; dark: all adapter slots, their sum in numbers at the right; diamond: peak of the device "
        f"or, on a CPU, of the process, with what the engine reserves for its cache. Medians over repeats. {n_of(facts)}."
    )
    return _figure(
        facts, "serving_memory", "Memory of an engine", caption,
        there=serving_bars.memory_places(facts), draw=serving_bars.draw_memory,
    )  # fmt: skip


def _switching(facts: Facts) -> Illustration | None:
    caption = (
        "Median of single requests; marker: geometric mean over repeats, bar: 95% t interval, ×: ratio to a "
        f"resident adapter within repeats. {serving_bars.states_text(facts)}. {n_of(facts).partition(';')[0]}."
    )
    return _figure(
        facts, "serving_switching", "Latency by where the adapter lies", caption,
        there=serving_bars.switching_places(facts), draw=serving_bars.draw_switching,
    )  # fmt: skip


def _trade(facts: Facts) -> Illustration | None:
    caption = (
        "One machine: one engine with an adapter a task against as many merged engines that take turns, each with "
        "its share of the requests at once. Machines: each holds all adapters, or one merged model, at its best "
        "throughput over the batch sizes; dotted: the traffic beyond which merging never needs more. From medians over "
        f"repeats, so without intervals. {n_of(facts)}."
    )
    return _figure(
        facts, "serving_break_even", "When merging wins", caption,
        there=serving_trade.trade_places(facts), draw=serving_trade.draw_trade,
    )  # fmt: skip


def _figure(
    facts: Facts, name: str, title: str, caption: str, *, there: Sequence[Any], draw: Callable[[Facts, float], Figure]
) -> Illustration | None:
    """None without anything that is there to be drawn."""
    return Illustration(name=name, title=title, caption=caption, draw=partial(draw, facts)) if there else None


def _advice(facts: Facts) -> Bullets | None:
    """What follows from the numbers, each sentence with what it rests on."""
    found = serving_of(facts).recommendations
    return Bullets(tuple(f"{r.text} (Rests on: {r.rests_on}.)" for r in found)) if found else None
