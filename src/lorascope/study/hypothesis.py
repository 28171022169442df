"""The claims a study can declare. Each names two arms, what they are compared on, and where the claim ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo

from lorascope.metrics import cost, serving
from lorascope.metrics.quality import QUALITY
from lorascope.study.base import Spec, branch_by_key
from lorascope.study.units import Fraction, parse_fraction

if TYPE_CHECKING:
    CostName = str
    ServedName = str
else:  # what the tables of metrics hold
    CostName = Literal[(*cost.CLAIMED, "drift")]
    ServedName = Literal[tuple(serving.CLAIMED)]


def _parse_share(value: object) -> object:
    """A fraction above 0 and below 1."""
    number = parse_fraction(value)
    if isinstance(number, int | float) and not 0 < number < 1:
        raise ValueError(f"is a share above 0 and below 1, such as 0.03 or 3%; found {number:g}")
    return number


class RelativeMargin(Spec):
    """A share of what the other arm reaches: {relative: 3%} allows 97% of its score, by the ratio of means."""

    relative: Annotated[float, BeforeValidator(_parse_share)]


def _parse_margin(value: object, info: ValidationInfo) -> object:
    """As a fraction; a metric without bounds has margins of any size, but no percent of them."""
    if isinstance(value, Mapping | RelativeMargin):
        return value
    on = info.data.get("on")
    row = QUALITY.get(on) if isinstance(on, str) else None
    if row is not None and row.width is None:
        if isinstance(value, str) and "%" in value:
            raise ValueError(
                f"{on} has no whole to take {value} of: give the margin in its own unit, such as 0.5, or as a share of what "
                f"the other arm reaches: {{relative: {value}}}"
            )
        return value
    widest = 1.0 if row is None or row.width is None else row.width
    number = parse_fraction(value)
    if isinstance(number, int | float) and number > widest:
        raise ValueError(f"must be at most {widest:g}; found {number:g} (a fraction: {number / 100:g} or {number:g}%)")
    return number


Margin = Annotated[
    Annotated[Annotated[float, Field(ge=0)], Tag("<Number>")] | Annotated[RelativeMargin, Tag("<RelativeMargin>")],
    Discriminator(lambda value: "<RelativeMargin>" if isinstance(value, Mapping | RelativeMargin) else "<Number>"),
    BeforeValidator(_parse_margin),
]


BASELINES = ("majority", "random", "linear-probe")
"""Arms that need no training and that a claim about quality may be held against; no method may have such a name."""


class NonInferior(Spec):
    """`non_inferior` loses at most `margin` to `to` on a quality metric (one-sided, alpha 0.05).

    margin is in the metric's own unit: "3%" means three points of accuracy, 0.5 half a unit of perplexity; or {relative: 3%}.
    over: the claim must hold on every (model, task), or on their average.
    """

    non_inferior: str
    to: str
    on: str = "primary"
    margin: Margin
    over: Literal["every", "average"] = "average"


class Equivalent(Spec):
    """`equivalent` and `to` differ by less than `margin` either way (TOST, alpha 0.05)."""

    equivalent: str
    to: str
    on: str = "primary"
    margin: Margin
    over: Literal["every", "average"] = "average"


class Superior(Spec):
    """`superior` is better than `to` on a quality metric (one-sided 95% bound of the difference on the better side of 0)."""

    superior: str
    to: str
    on: str = "primary"
    over: Literal["every", "average"] = "average"


class Lower(Spec):
    """`lower` needs at least `by` less than `than` of a cost, or drifts that much less from the base: the ratio of
    geometric seed means, by its one-sided 95% bound."""

    lower: str
    than: str
    on: CostName
    by: Fraction
    over: Literal["every", "average"] = "average"


class Overhead(Spec):
    """Serving arm `overhead` costs at most `at_most` more than arm `over` (one-sided, alpha 0.05).

    Arms: base, full, merged, adapters-N. at: at every measured model, workload and batch size, or on their average.
    """

    overhead: str
    over: str
    on: ServedName = "latency_p95"
    at_most: Annotated[float, Field(ge=0), BeforeValidator(parse_fraction)]
    at: Literal["every", "average"] = "every"


Hypothesis = Annotated[
    Annotated[NonInferior, Tag("<NonInferior>")]
    | Annotated[Equivalent, Tag("<Equivalent>")]
    | Annotated[Superior, Tag("<Superior>")]
    | Annotated[Lower, Tag("<Lower>")]
    | Annotated[Overhead, Tag("<Overhead>")],
    Discriminator(
        branch_by_key(
            non_inferior=NonInferior, equivalent=Equivalent, superior=Superior, lower=Lower, overhead=Overhead
        ),
        custom_error_type="no_branch",
        custom_error_message=(
            "a hypothesis is one of {non_inferior, to, margin}, {equivalent, to, margin}, {superior, to}, "
            "{lower, than, on, by}, {overhead, over, on, at_most}"
        ),
    ),
]


def compared(hypothesis: Hypothesis) -> tuple[str, str]:
    """The two arms it names: the one that the claim is about, and the one it is held against."""
    first, second = tuple(type(hypothesis).model_fields)[:2]
    return getattr(hypothesis, first), getattr(hypothesis, second)
