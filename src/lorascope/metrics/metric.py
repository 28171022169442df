"""A metric as one row: how it is written, which direction is better, and how it is estimated from examples.

The one idea: whoever compares, ranks, tests or writes a number asks its row, so that a metric of which less is better
is right everywhere once its row is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorascope.errors import StudyError
from lorascope.registry import nearest

if TYPE_CHECKING:
    import numpy as np

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Mean:
    """The mean of one per-example column. column: its name in the measurements table."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


@dataclass(frozen=True)
class FromCounts:
    """A function of the confusion counts of the columns "label" and "prediction" (class indices).

    function: counts [..., classes (label), classes (prediction)] -> scores [...].
    """

    function: Callable[[np.ndarray], np.ndarray]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("label", "prediction")


@dataclass(frozen=True)
class Ratio:
    """The ratio of the sums of two per-example columns. transform: of the ratio, elementwise (None: the ratio itself)."""

    numerator: str
    denominator: str
    transform: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.numerator, self.denominator)


@dataclass(frozen=True)
class Corpus:
    """A score of all examples together that no sum gives (BLEU). columns: the per-example columns it reads.

    score: {column: [examples]} -> the score; an example that a resample drew twice is there twice.
    """

    columns: tuple[str, ...]
    score: Callable[[Mapping[str, np.ndarray]], float]


Estimator = Mean | FromCounts | Ratio | Corpus


@dataclass(frozen=True)
class Metric:
    """One row of a table of metrics.

    name: as studies and the measurements table spell it. title: as a report writes it. unit: of the value in the table
    ("1", "nat", "s", "byte"). scale, digits: how a report writes it; a scale of 100 makes percent, and points of
    differences. direction: which is better. estimator: how it comes from examples (None: one number a run or a load).
    low, high: the values it can take (None: no bound).
    """

    name: str
    title: str
    unit: str = "1"
    scale: float = 1.0
    digits: int = 3
    direction: Direction = "higher"
    estimator: Estimator | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("higher", "lower"):
            raise ValueError(
                f'the direction of the metric `{self.name}` is {self.direction!r}, not "higher" or "lower"'
            )
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(
                f"the bounds of the metric `{self.name}` are {self.low} and {self.high}: nothing lies between"
            )

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher"

    @property
    def in_points(self) -> bool:
        """Whether differences are counted in hundredths, called points."""
        return self.scale == 100

    @property
    def width(self) -> float | None:
        """The largest difference of two values; None where there is no bound."""
        return None if self.low is None or self.high is None else self.high - self.low

    @property
    def worst(self) -> float:
        """A value that every other is better than: minus or plus infinity."""
        return -math.inf if self.higher_is_better else math.inf

    def gain(self, value: float, than: float) -> float:
        """How much better `value` is: above 0 is better, whatever the metric's direction."""
        return value - than if self.higher_is_better else than - value

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    def best(self, values: Iterable[float]) -> float:
        return max(values) if self.higher_is_better else min(values)

    def worst_of(self, values: Iterable[float]) -> float:
        return min(values) if self.higher_is_better else max(values)


def metric_named(name: str, table: Mapping[str, Metric], *, where: str | None = None) -> Metric:
    """The row of a metric. Raises StudyError, with the nearest name, where the table has none. where: who asks."""
    if name in table:
        return table[name]
    close = nearest(name, table)
    raise StudyError(
        f"there is no metric `{name}`" + (f": did you mean `{close}`?" if close else ""),
        hint=f"the metrics are {', '.join(table)}; one of your own is a row that a plug-in brings (docs/plug-ins.md)",
        where=where,
    )
