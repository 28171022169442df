"""A search as literals: what its `search` step is told, and what is written of its optimum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.search.replay import Attempt, Replay, proposers
from lorascope.search.space import as_literal, edges
from lorascope.search.trials import distinct
from lorascope.study.search import SearchSpec


def role(attempt: Attempt) -> str:
    """The role an attempt's step plays for the `search` step."""
    return f"trial:{attempt.trial}:{attempt.seed}:{len(attempt.stops)}"


def search_params(found: Replay) -> dict[str, Any]:
    """The ranges and the trials."""
    return {
        "space": {name: as_literal(dimension) for name, dimension in found.space.items()},
        "trials": [
            {**trial.to_json(), "roles": [role(attempt) for attempt in trial.results]} for trial in found.trials
        ],
    }


def optimum_yaml(found: Replay, spec: SearchSpec, *, study: str, label: Mapping[str, str], kind: str) -> str:
    """The optimum as a file that a person reads and a study takes up (`hyperparameters:` of a method)."""
    best = found.best
    assert best is not None
    metric = next(result["metric"] for result in best.results.values())
    seeds = dict.fromkeys(attempt.seed for attempt in best.results)
    at_edge = [
        f"{edge.name}: {edge.value} lies at the {edge.side} end ({edge.limit:g}); extend it to {edge.further:g}"
        for edge in edges(found.space, best.params)
    ]
    lines = [
        f"# What the search of study {study} found. Take it up with `hyperparameters: THIS FILE OR ITS DIRECTORY` in a method.",
        *(f"{key}: {value}" for key, value in label.items()),
        f"kind: {kind}",
        "hyperparameters:",
        *(f"  {name}: {_scalar(value)}" for name, value in best.params.items()),
        f"found: # on validation, with seeds {', '.join(map(str, seeds))}; no result: the study's runs are fresh",
        f"  {metric}: {best.value:.6g}",
        f"  trial: {best.number + 1}",
        f"  trials: {len(distinct(found.trials))}",
        f"  sampler: {spec.sampler}",
        *([f"  proposed_by: {who}"] if (who := proposers(found.trials)) else []),
        f"  pruning: {spec.pruning}",
        "at_edge:" if at_edge else "at_edge: []",
        *(f"  - '{text}'" for text in at_edge),
    ]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return repr(value) if isinstance(value, int | float) else str(value)
