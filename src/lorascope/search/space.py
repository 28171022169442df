"""Ranges as a sampler needs them, and where in its range an optimum lies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorascope.study.hyperparameters import NATURAL_HIGH, NATURAL_LOW, is_whole
from lorascope.study.search import Range

Dimension = Range | tuple[Any, ...]
Space = Mapping[str, Dimension]
_EDGE = 0.05
_EXTENSION = 0.5
_DIGITS = 4


@dataclass(frozen=True)
class Edge:
    """An optimum at the end of its range. limit: that end; further: how far the range would be extended."""

    name: str
    side: Literal["low", "high"]
    value: float
    limit: float
    further: float


def as_literal(dimension: Dimension) -> Any:
    """A dimension as JSON, of which `dimension_of` makes it again."""
    return dimension.model_dump(mode="json") if isinstance(dimension, Range) else list(dimension)


def dimension_of(literal: Any) -> Dimension:
    return Range(**literal) if isinstance(literal, Mapping) else tuple(literal)


def rounded(name: str, value: Any, dimension: Dimension) -> Any:
    """A proposal as it becomes part of an identity: four significant digits, so that no last bit of one processor's
    arithmetic makes another trial of it, and people can read it."""
    if not isinstance(dimension, Range) or is_whole(name, dimension):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), dimension.low), dimension.high)


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Every point of a space of lists, in the order written."""
    lists = [values for values in space.values() if isinstance(values, tuple)]
    assert len(lists) == len(space), "a grid has no ranges"
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*lists))


def edges(space: Space, optimum: Mapping[str, Any]) -> list[Edge]:
    """Where the optimum lies within 5% of an end of its range beyond which better values may lie."""
    return [edge for name, dimension in space.items() if (edge := _edge(name, dimension, optimum[name])) is not None]


def _edge(name: str, dimension: Dimension, value: Any) -> Edge | None:
    if isinstance(dimension, tuple):
        numbers = sorted(number for number in dimension if not isinstance(number, str))
        if not numbers or value not in (numbers[0], numbers[-1]):
            return None
        ends = Range(low=numbers[0], high=numbers[-1], log=numbers[0] > 0)
        side = "low" if value == numbers[0] else "high"
    else:
        ends = dimension
        place = dimension.place(value)
        margin = 1e-9 if is_whole(name, dimension) else _EDGE
        if margin < place < 1 - margin:
            return None
        side = "low" if place <= margin else "high"
    limit = ends.low if side == "low" else ends.high
    natural = (NATURAL_LOW if side == "low" else NATURAL_HIGH).get(name)
    if natural is not None and limit == natural:
        return None
    further = _further(name, ends, side)
    return None if further == limit else Edge(name, side, value, limit, further)


def _further(name: str, dimension: Range, side: Literal["low", "high"]) -> float:
    """The end of the range made longer by half, no further than the setting means anything."""
    value = dimension.at(-_EXTENSION if side == "low" else 1 + _EXTENSION)
    if side == "high":
        value = min(value, NATURAL_HIGH.get(name, math.inf))
    elif name in NATURAL_LOW:
        value = max(value, NATURAL_LOW[name])
    elif value <= 0:
        value = dimension.low / 2
    return max(1, round(value)) if is_whole(name, dimension) else float(f"{value:.3g}")


def extended(space: Space, found: list[Edge]) -> Space:
    """The space with the ranges at whose ends the optimum lies made longer there. Lists stay: which values to add to them is
    a person's choice."""
    longer = dict(space)
    for edge in found:
        dimension = longer[edge.name]
        if isinstance(dimension, Range):
            longer[edge.name] = dimension.model_copy(update={edge.side: edge.further})
    return longer


def is_extendable(space: Space, found: list[Edge]) -> bool:
    return any(isinstance(space[edge.name], Range) for edge in found)
