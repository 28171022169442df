"""When merging wins, as a table: every break-even with its interval over repeats, or in how many repeats there is one."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.report.page import wording
from lorascope.report.page.document import Table
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import Place, figure_range, level_text, place_name, places_of, serving_of
from lorascope.report.study.ledger import number_columns
from lorascope.stats.serving.analysis import Figure

_MIXES = {"uniform": "equal shares", "zipf": "Zipf shares"}


def break_even_table(facts: Facts) -> Table | None:
    rows = tuple(
        (place_name(facts, place), *cells)
        for place in places_of(facts)
        for cells in [*_at_edges(facts, place), *(_cells(*found) for found in _figures(facts, place))]
    )
    if not rows:
        return None
    return Table(
        name="serving_break_even",
        title="Break-even of adapters and merging",
        columns=number_columns("workload", "figure", "value", "95% t interval", "in repeats", numeric_from=2),
        rows=rows,
        note="Each figure is computed within every repeat that has all arms and loads; its value is the geometric mean over "
        "these (numbers of tasks: from medians), its interval t on logs. In repeats: in how many the figure exists above 0; "
        "where in some it does not, or fewer than 3 have it, there is no interval. At most, more than: the break-even lies "
        "at the edge of what was compared, so it has no interval.",
    )


def _cells(what: str, figure: Figure, is_count: bool) -> tuple[str, ...]:
    value = wording.count(figure.value) if is_count else wording.significant(figure.value, 3)
    found = f"{figure.num_found} of {figure.num_repeats}"
    return what, value, figure_range(figure.interval, is_count=is_count), found


def _at_edges(facts: Facts, place: Place) -> Iterator[tuple[str, ...]]:
    """Numbers of tasks at the edge of what was compared: a bound, and nothing more precise."""
    for row in serving_of(facts).tasks:
        if (row.model, row.workload) == place and row.at_edge:
            bound = row.fewest_tasks if row.at_edge == "at most" else row.most_tasks
            found = f"{row.tasks.num_found} of {row.tasks.num_repeats}"
            yield _tasks_from(row.batch), f"{row.at_edge} {bound}", wording.ABSENT, found


def _tasks_from(batch: float) -> str:
    return f"tasks from which adapters serve more, {level_text(batch)} requests at once"


def _figures(facts: Facts, place: Place) -> Iterator[tuple[str, Figure, bool]]:
    """(what, figure, whether it is a number of tasks); the gains of the largest batch only, which the figure shows."""
    serving = serving_of(facts)
    break_evens = [row for row in serving.tasks if (row.model, row.workload) == place]
    for row in break_evens:
        if not row.at_edge:
            yield _tasks_from(row.batch), row.tasks, True
    largest = max((row.batch for row in break_evens), default=None)
    for row in serving.one_machine:
        if (row.model, row.workload, row.batch) == (*place, largest) and row.gain is not None:
            at_once = f"{row.num_tasks} tasks, {level_text(row.batch)} requests at once"
            yield f"tokens/s of adapters over merged, {at_once}", row.gain, False
    for row in serving.memory:
        if (row.model, row.workload) == place:
            yield "tasks from which adapters take less memory", row.break_even_tasks, True
    for row in serving.traffic:
        if (row.model, row.workload) == place and not row.reason:
            tasks = f"{row.num_tasks} tasks, {_MIXES[row.mix]}"
            yield f"requests/s below which merging never needs fewer machines, {tasks}", row.first, False
            yield f"requests/s beyond which merging never needs more machines, {tasks}", row.last, False
