"""How far a study's searches are, a line each, for `lorascope status`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorascope.plan.graph import Graph
    from lorascope.search.trials import Trial


def search_lines(planned: Graph) -> Iterator[str]:
    """One a search, then what waits for them."""
    from lorascope.search.replay import proposers
    from lorascope.search.trials import distinct

    for search in planned.searches:
        found = search.found
        total = len(found.trials) + found.to_propose
        ended = sum(trial.state != "open" for trial in found.trials)
        best = f"; best so far {_score(found.best)} (validation)" if found.best else ""
        who = proposers(found.trials)
        if who and "," in who:
            best += f"; proposed by {who}"
        if search.is_over:
            different = len(distinct(found.trials))
            copies = "" if different == total else f" of {different} different settings"
            yield f"search: {search.label}: over, {total} trials{copies}{best}"
        else:
            yield f"search: {search.label}: {ended} of {total} trials ended, {found.to_propose} still to propose{best}"
    if planned.waiting and any(not search.is_over for search in planned.searches):
        yield f"{len(planned.waiting)} steps are planned when the searches have ended"
    elif any(kind == "serving" for kind, _ in planned.waiting):
        yield "serving is planned when `lorascope run` has seen its engine, whose version is part of it"


def _score(trial: Trial) -> str:
    """In the report's units."""
    from lorascope.report.page import wording

    metric = next((str(result["metric"]) for result in trial.results.values() if "metric" in result), "")
    return wording.score(metric, trial.value)
