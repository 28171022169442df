"""What the study could see: the smallest true difference that its seeds and test examples would find, before it is run.

The formula is `stats.power.detectable_difference`; here it meets the examples that the study has and the margins that its
hypotheses name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.metrics.quality import QUALITY
from lorascope.plan.graph import Graph
from lorascope.plan.labels import SEARCH
from lorascope.plan.listing import primary_metric_of
from lorascope.stats.quality.power import POWER, detectable_difference
from lorascope.study.hypothesis import Equivalent, NonInferior

SEED_SD = 0.01
DISCORDANT_FRACTION = 0.10
BASIS = (
    f"two-sided t test at 5%, {POWER:.0%} power, of a difference whose variance is (seed + interaction) / seeds + shared "
    "(multi-bootstrap over seeds and examples, Sellam et al. 2022; noncentral t). Assumed until runs show their own: "
    f"{100 * SEED_SD:g} point of standard deviation between seeds, one example in {1 / DISCORDANT_FRACTION:g} on which the "
    "arms disagree, half of that in every seed"
)


@dataclass(frozen=True)
class Detectable:
    """Of one task. num_examples: of its test set, None while it is not prepared; then nothing else is known either.
    difference: smallest true difference in accuracy, 0-1; None too for a metric that does not count examples.
    with_more_seeds: the same with other numbers of seeds. margins: hypothesis -> (its margin, the smallest margin these seeds
    and examples could confirm if the arms are equal). metric: the task's primary one."""

    task: str
    metric: str | None
    num_seeds: int
    num_examples: int | None
    difference: float | None
    with_more_seeds: Mapping[int, float]
    margins: Mapping[str, tuple[float, float]]


def detectable_differences(graph: Graph, results: Mapping[str, Mapping[str, Any]]) -> list[Detectable]:
    """One a task, in the order of the study. results: of finished steps, by id."""
    return [_of_task(graph, s.id, results) for s in graph.of_kind("data") if graph.labels[s.id].seed != SEARCH]


def _of_task(graph: Graph, data_id: str, results: Mapping[str, Mapping[str, Any]]) -> Detectable:
    task, num_seeds = graph.labels[data_id].task or "", len(graph.study.seeds)
    if data_id not in results:
        return Detectable(task, None, num_seeds, None, None, {}, {})
    data = results[data_id]
    examples = data["num_examples"]["test"]
    metric = primary_metric_of(data)
    if metric in QUALITY and QUALITY[metric].width is None:
        return Detectable(task, metric, num_seeds, examples, None, {}, {})
    margins = {
        name: (claim.margin, smallest_margin(num_seeds, examples, two_sided=isinstance(claim, Equivalent)))
        for name, claim in graph.study.hypotheses.items()
        if isinstance(claim, NonInferior | Equivalent) and isinstance(claim.margin, float)
    }
    more = {seeds: _difference(seeds, examples) for seeds in (3, 5, 10, 20) if seeds != num_seeds}
    return Detectable(task, metric, num_seeds, examples, _difference(num_seeds, examples), more, margins)


def smallest_margin(num_seeds: int, num_examples: int, *, two_sided: bool) -> float:
    """The smallest margin that so many seeds and test examples could confirm, if the arms are equal; 0-1."""
    # Equivalence needs both sides: where the arms are equal each fails half as often as both together may.
    power = 1 - (1 - POWER) / 2 if two_sided else POWER
    return _difference(num_seeds, num_examples, alpha=0.10, power=power)  # a margin is tested on one side at 5%


@functools.cache
def _difference(num_seeds: int, num_examples: int, *, alpha: float = 0.05, power: float = POWER) -> float:
    return detectable_difference(
        num_seeds, num_examples, seed_sd=SEED_SD, discordant_fraction=DISCORDANT_FRACTION, alpha=alpha, power=power
    )
