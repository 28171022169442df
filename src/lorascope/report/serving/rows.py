"""What the section on serving selects: arms in one order, the standard load, names and units of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorascope.metrics.serving import SERVED
from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.stats.interval import Interval
from lorascope.stats.serving.analysis import Figure, ServingAnalysis, ServingCell, ServingOverhead
from lorascope.stats.serving.cells import num_adapters, standard_cells

Place = tuple[str, str]
"""(model, workload)."""

_FIRST_ARMS = ("base", "full", "merged")
_ARMS = {"base": "base", "full": "full fine-tuning", "merged": "merged"}

METRICS = {name: row.axis for name, row in SERVED.items()}


def serving_of(facts: Facts) -> ServingAnalysis:
    assert facts.analysis.serving is not None
    return facts.analysis.serving


def arms_of(facts: Facts) -> list[str]:
    """Every arm with a figure: base, full, merged, then adapters by number. Its place decides its colour."""
    found = {cell.arm for cell in serving_of(facts).cells}
    adapters = sorted((arm for arm in found if num_adapters(arm)), key=lambda arm: num_adapters(arm) or 0)
    return [*(arm for arm in _FIRST_ARMS if arm in found), *adapters]


def arm_name(arm: str) -> str:
    """ "merged", "4 adapters"."""
    count = num_adapters(arm)
    return _ARMS.get(arm, arm) if count is None else wording.plural(count, "adapter")


def places_of(facts: Facts) -> list[Place]:
    """(model, workload) with a figure, models in the study's order."""
    found = dict.fromkeys((cell.model, cell.workload) for cell in serving_of(facts).cells)
    order = {model: place for place, model in enumerate(facts.models)}
    return sorted(found, key=lambda place: order.get(place[0], len(order)))


def place_name(facts: Facts, place: Place) -> str:
    """ "generation", with the model where there are several."""
    return place[1] if len(facts.models) == 1 else f"{place[1]} · {place[0]}"


def curves_of(facts: Facts, place: Place, metric: str, *, loop: str = "batch") -> dict[str, list[ServingCell]]:
    """Arm -> its cells under the standard load (greedy, default setting), by level."""
    cells = [
        cell
        for cell in standard_cells(serving_of(facts).cells, loop=loop)
        if (cell.model, cell.workload, cell.metric) == (*place, metric) and cell.level is not None
    ]
    found = {arm: sorted((c for c in cells if c.arm == arm), key=lambda c: c.level or 0.0) for arm in arms_of(facts)}
    return {arm: rows for arm, rows in found.items() if rows}


def overheads_of(
    facts: Facts, place: Place, metric: str, *, reference: str = "merged", loop: str = "batch"
) -> list[ServingOverhead]:
    """Under the standard load, arms in order, then levels."""
    standard = {
        (cell.arm, cell.level, cell.choice)
        for rows in curves_of(facts, place, metric, loop=loop).values()
        for cell in rows
    }
    order = arms_of(facts)
    found = [
        o
        for o in serving_of(facts).overheads
        if (o.model, o.workload, o.metric, o.reference, o.loop) == (*place, metric, reference, loop)
        and (o.sampling, o.setting) == ("greedy", "default")
        and (o.arm, o.level, o.choice) in standard
    ]
    return sorted(found, key=lambda o: (order.index(o.arm), o.level or 0.0))


def load_name(row: ServingCell | ServingOverhead) -> str:
    """ "batch 4", "8 requests/s"; with what is not standard about it."""
    level = level_text(row.level)
    name = f"batch {level}" if row.loop == "batch" else f"{level} requests/s"
    odd = [
        text
        for text, standard in ((row.sampling, "greedy"), (row.setting, "default"), (row.choice, "round-robin"))
        if text not in (standard, "none") and not (text == row.choice and num_adapters(row.arm) is None)
    ]
    return ", ".join([name, *odd])


def level_text(level: float | None) -> str:
    """A batch size or request rate: 4, 0.5."""
    return "" if level is None else f"{level:g}"


def repeats_text(counts: Iterable[int]) -> str:
    """ "5 repeats", "3 to 5 repeats"."""
    numbers: Sequence[int] = list(counts) or [0]
    return f"{wording.range_text(numbers)} {'repeat' if max(numbers) == 1 else 'repeats'}"


def over_repeats(figure: Figure, *, of: str = "", is_count: bool = False) -> str:
    """ " [95% interval 110 to 140, 5 repeats]"; without an interval, in how many of the repeats the figure exists. of: what
    the interval is of, where the text before does not say. is_count: of a number of tasks, the same in many repeats."""
    held, repeats = figure.interval, wording.plural(figure.num_repeats, "repeat")
    if held is not None and is_count and held.low == held.high:
        return f" (in each of {repeats})"
    if held is not None:
        return f" [{f'{of}: ' if of else ''}95% interval {figure_range(held, is_count=is_count)}, {repeats}]"
    if figure.is_at_every_repeat:
        return f" ({repeats}: no interval)"
    return f" (such a point exists in {figure.num_found} of {repeats}: no interval)"


def figure_range(interval: Interval | None, *, is_count: bool = False) -> str:
    """ "110 to 140"; of a number of tasks "2.0 to 3.1"."""
    if interval is None:
        return wording.ABSENT
    if is_count:
        return f"{wording.decimal(interval.low)} to {wording.decimal(interval.high)}"
    return f"{wording.significant(interval.low, 3)} to {wording.significant(interval.high, 3)}"


def n_of(facts: Facts) -> str:
    """ "5 repeats an arm, each a fresh engine process; 1,000 requests a load"."""
    loaded = [cell for cell in serving_of(facts).cells if cell.num_requests]
    text = f"{repeats_text(cell.num_repeats for cell in loaded)} an arm, each a fresh engine process"
    if not loaded:
        return text
    requests = wording.range_text([round((cell.num_requests or 0) / cell.num_repeats) for cell in loaded])
    return f"{text}; {requests} requests a load"


def percent_more(ratio: float) -> str:
    """ "49% more", "3% less"."""
    change = wording.fraction(abs(ratio - 1), 0)
    return "no more" if change == "0%" else f"{change} {'more' if ratio > 1 else 'less'}"


def percent(ratio: float | None) -> str:
    """An overhead as people write it: +49%."""
    return wording.ABSENT if ratio is None else f"{wording.decimal(100 * (ratio - 1), 1, signed=True)}%"
