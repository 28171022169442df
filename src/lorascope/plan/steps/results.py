"""The last step of a study: an analysis of whatever was finished.

It is made after the others have run, because what it depends on is what exists: a study with failed parts still gets
its report, which says what is missing, and the complete one has an identity of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from lorascope.analysis.stated import stated_study
from lorascope.engine.failure import Failure
from lorascope.engine.step import Step
from lorascope.plan.graph import Graph
from lorascope.plan.labels import SEARCH, VERSIONS
from lorascope.search.replay import proposers


def analysis_step(graph: Graph, *, finished: Collection[str], failures: Mapping[str, Failure]) -> Step | None:
    """The analysis over the finished steps, or None if no run was scored.

    params["steps"]: role -> label, for every dependency. Names are in it, as they are what the report speaks of. What only
    a search needs stays out: its `search` step says it all but who proposed its trials, which is params["proposed_by"]:
    role -> library and version, where a library proposed.
    """
    finished = set(finished)
    kept = [step for step in graph.steps if step.id in finished and not _is_of_search(graph, step)]
    if not any(step.kind == "evaluate" for step in kept):
        return None
    roles = {f"{step.kind}:{index}": step for index, step in enumerate(kept)}
    missing = sum(step.kind == "evaluate" and step.id not in finished for step in graph.steps)
    missing += sum(kind == "evaluate" for kind, _ in graph.waiting)
    proposed_by = _proposed_by(graph, roles)
    kinds = {step.id: step.kind for step in graph.steps}  # a step that another took the place of is in it no more
    return Step(
        kind="analysis",
        version=VERSIONS["analysis"],
        params={
            "study": stated_study(graph.study),
            "steps": {role: asdict(graph.labels[step.id]) for role, step in roles.items()},
            "failures": [
                _failure_literal(graph, kinds[i], i, failure) for i, failure in sorted(failures.items()) if i in kinds
            ],
            "missing_runs": missing,
            "seeding": "derived",
            **({"proposed_by": proposed_by} if proposed_by else {}),
        },
        deps={role: step.id for role, step in roles.items()},
        slug=graph.study.name,
    )


def _is_of_search(graph: Graph, step: Step) -> bool:
    return step.kind == "trial" or graph.labels[step.id].seed == SEARCH


def _proposed_by(graph: Graph, roles: Mapping[str, Step]) -> dict[str, str]:
    told = {search.label: who for search in graph.searches if (who := proposers(search.found.trials))}
    searches = {role: graph.labels[step.id] for role, step in roles.items() if step.kind == "search"}
    return {role: told[label] for role, label in searches.items() if label in told}


def _failure_literal(graph: Graph, kind: str, step_id: str, failure: Failure) -> dict[str, Any]:
    label = asdict(graph.labels[step_id])
    return {"step": step_id, "kind": kind, **label, "error": failure.error_name, "text": failure.text}
