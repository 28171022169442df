"""The claims a study can declare. Each names two arms, what they are compared on, and where the claim ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lorascope.study.base import Spec, branch_by_key
from lorascope.study.units import Fraction, parse_fraction


class NonInferior(Spec):
    """`non_inferior` loses at most `margin` to `to` on a quality metric (one-sided, alpha 0.05).

    margin is in the metric's own 0-1 units: "3%" means three points of accuracy. over: the claim must hold on every
    (model, task), or on their average.
    """

    non_inferior: str
    to: str
    on: str = "primary"
    margin: Fraction
    over: Literal["every", "average"] = "every"


class Equivalent(Spec):
    """`equivalent` and `to` differ by less than `margin` either way (TOST, alpha 0.05)."""

    equivalent: str
    to: str
    on: str = "primary"
    margin: Fraction
    over: Literal["every", "average"] = "every"


class Superior(Spec):
    """`superior` scores more than `to` on a quality metric (two-sided 95% interval above 0)."""

    superior: str
    to: str
    on: str = "primary"
    over: Literal["every", "average"] = "every"


class Lower(Spec):
    """`lower` needs at least `by` less than `than` of a cost, or drifts that much less from the base: the ratio of
    geometric seed means, with its 95% interval."""

    lower: str
    than: str
    on: Literal[
        "training_seconds", "peak_memory_bytes", "trainable_parameters", "energy_joules", "export_bytes", "drift"
    ]
    by: Fraction
    over: Literal["every", "average"] = "every"


class Overhead(Spec):
    """Serving arm `overhead` costs at most `at_most` more than arm `over` (one-sided, alpha 0.05).

    Arms: base, full, merged, adapters-N. at: at every measured model, workload and batch size, or on their average.
    """

    overhead: str
    over: str
    on: Literal[
        "latency_p50", "latency_p95", "latency_p99", "ttft_p50", "ttft_p95", "tokens_per_second", "requests_per_second"
    ] = "latency_p95"
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
