"""Tables of the section "Search": the optimum of each search setting by setting, and what each search took."""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.report.search.rows import (
    count,
    direction_of,
    edges_of,
    range_of,
    saved_fraction,
    searches_of,
    setting,
    total,
    value_text,
)
from lorascope.stats.facts.searches import SearchFacts


def optima_table(facts: Facts) -> Table | None:
    """One row a search and setting; those at the end of their range are marked."""
    rows, marked = [], set()
    for search in searches_of(facts):
        if search.optimum is None:
            continue
        edges, importance = edges_of(search), search.importance or {}
        for name, dimension in search.space.items():
            edge = edges.get(name)
            if edge is not None:
                marked.add(len(rows))
            share = importance.get(name)
            rows.append(
                (
                    facts.place(search.model, search.task),
                    wording.name(search.method),
                    setting(name),
                    value_text(name, search.optimum.params[name]),
                    range_of(name, dimension),
                    wording.ABSENT if share is None else wording.fraction(share, 0),
                    f"{edge.side}: extend to {value_text(name, edge.further)}" if edge else "",
                )
            )
    if not rows:
        return None
    numeric = {"optimum", "share of variance"}
    headings = ("task", "method", "setting", "optimum", "range searched", "share of variance", "at an end of its range")
    return Table(
        name="search_optima",
        title="What the searches found",
        columns=tuple(Column(heading, numeric=heading in numeric) for heading in headings),
        rows=tuple(rows),
        marked=frozenset(marked),
        note="The runs of the study were trained with these, with fresh seeds. Share of variance: of the trials' scores "
        f"(fANOVA){_basis(facts)}. An optimum within 5% of an end of its range (on its scale; at the last of whole numbers or "
        "of a list) may have a better one beyond it; for a setting with a small share this matters little.",
    )


def _basis(facts: Facts) -> str:
    early = any(search.importance_of == "first look" for search in searches_of(facts))
    return ", or of their scores at the first look, where few were trained to their end" if early else ""


def _extreme(searches: Sequence[SearchFacts]) -> str:
    ends = {"largest" if direction_of(search) == "higher" else "smallest" for search in searches}
    return ends.pop() if len(ends) == 1 else "best"


def budget_table(facts: Facts) -> Table | None:
    """What each search was given and took."""
    searches = searches_of(facts)
    rows = [
        (
            facts.place(search.model, search.task),
            wording.name(search.method),
            wording.count(len(search.tried)),
            wording.count(count(search, "complete")),
            wording.count(count(search, "pruned")),
            wording.count(count(search, "diverged")),
            wording.score(search.metric, search.optimum.value) if search.optimum else wording.ABSENT,
            wording.count(total(search, lambda trial: trial.updates)),
            wording.magnitude(total(search, lambda trial: trial.tokens)),
            wording.fraction(saved_fraction([search])) if count(search, "pruned") else wording.ABSENT,
            wording.duration(total(search, lambda trial: trial.training_seconds + trial.evaluation_seconds)),
        )
        for search in searches
    ]
    if not rows:
        return None
    headings = (
        "task", "method", "trials", "to the end", "pruned", "diverged", "best on validation", "updates", f"{facts.unit}s",
        f"{facts.unit}s spared", "time",
    )  # fmt: skip
    return Table(
        name="search_budget",
        title="What the searches took",
        columns=tuple(Column(heading, numeric=place > 1) for place, heading in enumerate(headings)),
        rows=tuple(rows),
        note="The number of trials, their seeds, pruning and cap on examples are one setting for all methods. Time: each "
        "trial's share of its gang's. A search's best score is the "
        f"{_extreme(searches)} of many on the set it was chosen on, so it is not a result.",
    )
