"""The section "Search": what was found and where it lies, how it was found, what mattered and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from lorascope.report.page import wording
from lorascope.report.page.document import Block, Bullets, Illustration
from lorascope.report.page.facts import Facts
from lorascope.report.search import importance, progress
from lorascope.report.search import tables as search_tables
from lorascope.report.search.rows import (
    SAMPLERS,
    cells_of,
    count,
    direction_of,
    saved_fraction,
    searches_of,
    setting,
    value_text,
)
from lorascope.stats.facts.declared import SearchDeclared
from lorascope.stats.facts.searches import SearchFacts


def search_blocks(facts: Facts) -> list[Block | None]:
    """Empty for a study that did not search."""
    if not searches_of(facts):
        return []
    return [
        Bullets(tuple(answer(facts))),
        search_tables.optima_table(facts),
        _progress(facts),
        _rates(facts),
        _importance(facts),
        search_tables.budget_table(facts),
    ]


def _confirmed(searches: Sequence[SearchFacts], spec: SearchDeclared) -> str:
    """That the best trials were trained again before one was chosen."""
    confirmed = [trial.num_seeds for search in searches for trial in search.trials if trial.num_seeds > 1]
    if not confirmed:
        return ""
    more = wording.plural(max(confirmed) - 1, "more seed")
    return f" The best {spec.confirm} settings of each were trained with {more}; the optimum is the best of these by its mean."


def answer(facts: Facts) -> Iterator[str]:
    """How the optima were found, which of them lie at an end, and what pruning spared."""
    searches = searches_of(facts)
    spec = facts.study.search or SearchDeclared()
    seeds = wording.listing(str(seed) for seed in spec.seeds)
    trials = wording.range_text([len(search.tried) for search in searches])
    one_version = _one_version(searches)
    yield (
        f"{trials} trials for every task and method, proposed {spec.at_once} at once by {SAMPLERS[spec.sampler]}"
        f"{f' in {one_version}' if one_version else ''}, "
        f"each trained with {wording.plural(len(spec.seeds), 'seed')} ({seeds}) that no run of the study has, and scored "
        f"on the validation set alone.{_confirmed(searches, spec)}"
    )
    copies = sum(len(search.trials) - len(search.tried) for search in searches)
    if copies:
        proposed = sum(len(search.trials) for search in searches)
        yield (
            f"{copies} of {proposed} proposals repeated a setting that had been tried; a setting counts once, as a trial and "
            "in what it took."
        )
    for search in searches:
        if one_version is None and search.proposed_by is not None:
            yield (
                f"The trials of {wording.name(search.method)} on {facts.place(search.model, search.task)} were proposed by "
                f"{search.proposed_by}."
            )
    if spec.train_examples is not None:
        of_runs = facts.study.data.train_examples
        runs = f"at most {wording.count(of_runs)}" if of_runs else "all of them"
        yield f"A trial saw at most {wording.count(spec.train_examples)} training examples, a run {runs}."
    for search in searches:
        for edge in search.edges:
            extended = "although the range was extended once, " if search.extended else ""
            yield (
                f"**At an end of its range**: {extended}the best {setting(edge.name)} for "
                f"{wording.name(search.method)} on {facts.place(search.model, search.task)} is "
                f"{value_text(edge.name, edge.value)}; a range to {value_text(edge.name, edge.further)} would show "
                "whether there is a better one."
            )
        if search.optimum is None:
            yield (
                f"**No optimum**: every trial of {wording.name(search.method)} on "
                f"{facts.place(search.model, search.task)} diverged, so nothing was trained."
            )
    saved = saved_fraction(searches)
    if spec.pruning != "none" and saved is not None:
        pruned = sum(count(search, "pruned") for search in searches)
        of = sum(len(search.tried) for search in searches)
        saved_text = f"{wording.fraction(saved, 0)} of the training {facts.unit}s"
        yield f"Pruning ended {pruned} of {of} trials early and saved {saved_text}."


def _one_version(searches: Sequence[SearchFacts]) -> str | None:
    """The version of the sampler that proposed every trial of every search; None where several did, and of a grid."""
    found = {search.proposed_by for search in searches}
    (who,) = found if len(found) == 1 else (None,)
    return None if who is None or "," in who else who


def _metric_note(facts: Facts) -> str:
    metrics = dict.fromkeys(facts.metric_style(search.metric, task=search.task).label for search in searches_of(facts))
    return wording.listing(metrics)


def _marks(facts: Facts) -> str:
    """What the marks of a trial mean, of those that occur."""
    searches = searches_of(facts)
    kinds = ["Marker: a trial trained to its end, large: the optimum"]
    if any(count(search, "pruned") for search in searches):
        kinds.append("small and pale: one that was pruned, at its last score")
    if any(count(search, "diverged") for search in searches):
        kinds.append(f"cross at the {_worse_end(searches)}: one that diverged")
    return "; ".join(kinds)


def _worse_end(searches: Sequence[SearchFacts]) -> str:
    ends = {"bottom" if direction_of(search) == "higher" else "top" for search in searches}
    return ends.pop() if len(ends) == 1 else "worse end"


def _progress(facts: Facts) -> Illustration:
    pruned = any(count(search, "pruned") for search in searches_of(facts))
    at_last = ", a pruned one at its last score" if pruned else ""
    return Illustration(
        name="search_progress",
        title="How the searches went",
        caption=f"Validation {_metric_note(facts)}. {_marks(facts)}. Line: best so far. Dashed: the best to be expected of so "
        "many of these trials in random order (expected validation performance; Dodge et al. 2019)"
        f"{at_last}.",
        draw=partial(progress.draw_progress, facts),
    )


def _rates(facts: Facts) -> Illustration | None:
    if not any("learning_rate" in search.space for search in searches_of(facts)):
        return None
    return Illustration(
        name="search_rates",
        title="Where the trials lie: learning rate and score",
        caption=f"Validation {_metric_note(facts)} by learning rate, log scale. {_marks(facts)}. Bars below: the ranges "
        "searched.",
        draw=partial(progress.draw_rates, facts),
    )


def _importance(facts: Facts) -> Illustration | None:
    if not importance.cells_with(facts):
        return None
    n = wording.range_text([len(search.tried) for rows in cells_of(facts).values() for search in rows])
    return Illustration(
        name="search_importance",
        title="Which settings mattered",
        caption="Share of the variance of the trials' validation scores that each setting explains, alone and with others "
        f"(fANOVA; Hutter et al. 2014), from {n} trials a search: a rough guide, and rougher with fewer trials.",
        draw=partial(importance.draw_importance, facts),
    )
