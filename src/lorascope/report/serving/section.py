"""The section "Serving": the answer in words, figures by load, memory and break-even, tables; nothing without serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lorascope.report.page.document import Block, Bullets, Illustration
from lorascope.report.page.facts import Facts
from lorascope.report.serving import bars, curves, overhead, trade
from lorascope.report.serving import tables as serving_tables
from lorascope.report.serving.answer import answer
from lorascope.report.serving.break_even import break_even_table
from lorascope.report.serving.merging import merging_table
from lorascope.report.serving.rows import n_of, serving_of
from lorascope.report.serving.tuning import tuning_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def serving_blocks(facts: Facts) -> list[Block | None]:
    """Empty for a study that did not serve."""
    if facts.analysis.serving is None:
        return []
    said = answer(facts)
    return [
        Bullets(said) if said else None,
        _BATCH.block(facts),
        _OVERHEAD.block(facts),
        serving_tables.overhead_table(facts, "merged"),
        serving_tables.regression_table(facts),
        _TOKENS.block(facts),
        _RATE.block(facts),
        _MEMORY.block(facts),
        serving_tables.memory_table(facts),
        _SWITCHING.block(facts),
        serving_tables.switching_table(facts),
        _TRADE.block(facts),
        break_even_table(facts),
        *tuning_blocks(facts),
        _advice(facts),
        serving_tables.results_table(facts),
        serving_tables.overhead_table(facts, "base"),
        merging_table(facts),
        serving_tables.gates_table(facts),
        serving_tables.engines_table(facts),
        serving_tables.failures_table(facts),
    ]


@dataclass(frozen=True)
class _Figure:
    """there: what there would be to draw; without any, there is no figure."""

    name: str
    title: str
    caption: Callable[[Facts], str]
    there: Callable[[Facts], Sequence[Any]]
    draw: Callable[[Facts, float], Figure]

    def block(self, facts: Facts) -> Illustration | None:
        if not self.there(facts):
            return None
        return Illustration(self.name, self.title, self.caption(facts), partial(self.draw, facts))


_MARKS = "Marker: geometric mean over repeats; bar: its 95% t interval (none below 3 repeats: marker at the median)."
_LOOPS = {
    "batch": "Closed loop: this many requests at once, the next ones when all are answered.",
    "rate": "Open loop: requests arrive at random (Poisson); latency includes waiting.",
}


def _curves(name: str, title: str, metrics: tuple[str, ...], *, loop: str) -> _Figure:
    return _Figure(
        name,
        title,
        caption=lambda facts: f"{_MARKS} {_LOOPS[loop]} Greedy, default setting. {n_of(facts)}.",
        there=partial(curves.panels_with, metrics=metrics, loop=loop),
        draw=partial(curves.draw_curves, metrics=metrics, loop=loop),
    )


_BATCH = _curves(
    "serving_batch", "Latency and throughput by batch size", ("latency_ms_p95", "tokens_per_second"), loop="batch"
)
_TOKENS = _curves("serving_tokens", "First token and time between tokens", ("ttft_ms_p50", "itl_ms_p50"), loop="batch")
_RATE = _curves("serving_rate", "Latency under arriving requests", ("latency_ms_p50", "latency_ms_p95"), loop="rate")


def _overhead_caption(facts: Facts) -> str:
    fitted = any(fit.points for fit in serving_of(facts).regressions if fit.metric == overhead.METRIC)
    line = (
        "Line and band: log overhead fitted on the number of adapters and log2 of the batch size in every repeat, mean and "
        "95% t interval over repeats. "
        if fitted
        else ""
    )
    return (
        "p95 latency over the merged model's of the same repeat. Marker: geometric mean over repeats; bar: 95% t "
        f"interval, log scale. {line}{n_of(facts)}."
    )


_OVERHEAD = _Figure(
    "serving_overhead",
    "Overhead over merging by number of adapters",
    caption=_overhead_caption,
    there=overhead.overhead_places,
    draw=overhead.draw_overhead,
)
_MEMORY = _Figure(
    "serving_memory",
    "Memory of an engine",
    caption=lambda facts: (
        "Light: weights; dark: all adapter slots, their sum in numbers at the right; diamond: peak of the device "
        f"or, on a CPU, of the process, with what the engine reserves for its cache. Medians over repeats. {n_of(facts)}."
    ),
    there=bars.memory_places,
    draw=bars.draw_memory,
)
_SWITCHING = _Figure(
    "serving_switching",
    "Latency by where the adapter lies",
    caption=lambda facts: (
        "Median of single requests; marker: geometric mean over repeats, bar: 95% t interval, ×: ratio to a "
        f"resident adapter within repeats. {bars.states_text(facts)}. {n_of(facts).partition(';')[0]}."
    ),
    there=bars.switching_places,
    draw=bars.draw_switching,
)
_TRADE = _Figure(
    "serving_break_even",
    "When merging wins",
    caption=lambda facts: (
        "One machine: one engine with an adapter a task against as many merged engines that take turns, each with "
        "its share of the requests at once. Machines: each holds all adapters, or one merged model, at its best "
        "throughput over the batch sizes; dotted: the traffic beyond which merging never needs more. Bars and shades: 95% t "
        "intervals over repeats of the figure computed within each (none below 3 repeats, or where some repeat has no such "
        f"traffic). {n_of(facts)}."
    ),
    there=trade.trade_places,
    draw=trade.draw_trade,
)


def _advice(facts: Facts) -> Bullets | None:
    """What follows from the numbers, each sentence with what it rests on."""
    found = serving_of(facts).recommendations
    return Bullets(tuple(f"{r.text} (Rests on: {r.rests_on}.)" for r in found)) if found else None
