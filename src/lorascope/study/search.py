"""How a study looks for each method's hyper-parameters before it compares them: the `search:` part.

Number of trials, seeds, pruning and the cap on rows are one setting for all methods and cannot be written for one of them:
an equal budget is the format's, not the author's. Only the ranges are a method's own, because the optimum is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from lorascope.study.base import Name, Spec
from lorascope.study.loading.document import describe
from lorascope.study.units import parse_fraction


def _as_number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip().endswith("%")):
        raise ValueError(f"expected a number; found {describe(value)}")
    return _finite(parse_fraction(value))


def _as_choice(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a number or a word; found {describe(value)}")
    return _finite(parse_fraction(value) if isinstance(value, str) and value.strip().endswith("%") else value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number; found {describe(value)}")
    return value


Number = Annotated[int | float, BeforeValidator(_as_number)]


class Range(Spec):
    """Every number from low to high, both included. log: equal factors are equally likely. Whole where both ends are and
    the setting counts something (batch_size, epochs, rank, alpha)."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low == self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty: give the method the value itself")
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}: swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0; found low {self.low:g}")
        return self

    def place(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high, on the range's own scale."""
        scale = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def at(self, place: float) -> float:
        """The value at a place, which may lie outside 0 to 1."""
        if self.log:
            return self.low * (self.high / self.low) ** place
        return self.low + (self.high - self.low) * place


Choice = Annotated[str | int | float, BeforeValidator(_as_choice)]
Values = tuple[Choice, ...]


def _branch(value: Any) -> str | None:
    if isinstance(value, Range | Mapping):
        return "<Range>"
    return "<Values>" if isinstance(value, list | tuple) else None


Dimension = Annotated[
    Annotated[Range, Tag("<Range>")] | Annotated[Values, Tag("<Values>")],
    Discriminator(
        _branch,
        custom_error_type="no_branch",
        custom_error_message="must be a range {low, high, log} or a list of values",
    ),
]
Preset = Literal["published", "wide"]
Space = Annotated[
    Annotated[Preset, Tag("<Preset>")] | Annotated[dict[str, Dimension], Tag("<Dimensions>")],
    Discriminator(lambda value: "<Dimensions>" if isinstance(value, Mapping) else "<Preset>"),
]
Spaces = Annotated[
    Annotated[Preset, Tag("<Preset>")] | Annotated[dict[Name, Space], Tag("<Spaces>")],
    Discriminator(lambda value: "<Spaces>" if isinstance(value, Mapping) else "<Preset>"),
]


def _check_seed(value: Any) -> Any:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number, at least 0; found {describe(value)}")
    return value


Seed = Annotated[int, BeforeValidator(_check_seed)]


def _refuse_shared_ranges(value: Any) -> Any:
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, list | tuple) or (isinstance(item, Mapping) and {"low", "high", "log"} & set(item)):
            raise ValueError(f"ranges are a method's own, and `{name}` is none: {{lora: {{{name}: ...}}}}")
    return value


class SearchSpec(Spec):
    """A search of each (model, task, method), the same budget for all.

    sampler: who proposes trials. trials: of each search. at_once: proposed together, then trained together; a sampler that
    learns does so between rounds. space: ranges, by method. seeds: each trial is trained with all of them, and none is a
    seed of the study. proposal_seed: of the sampler. train_examples: at most so many for a trial. pruning: trials that end
    early. at_edge: what to do about an optimum at the end of a range.
    """

    sampler: Literal["tpe", "gp", "random", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1)] = 15
    at_once: Annotated[int, Field(ge=1)] = 5
    space: Annotated[Spaces, BeforeValidator(_refuse_shared_ranges)] = "published"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    proposal_seed: Seed = 0
    train_examples: Annotated[int, Field(ge=10)] | None = None
    pruning: Literal["none", "halving", "wilcoxon"] = "none"
    at_edge: Literal["flag", "extend"] = "flag"

    def of(self, method: str, kind: str) -> Mapping[str, Range | tuple[Choice, ...]]:
        """What is searched of a method, and where: the preset's ranges where the study gives none of its own."""
        space = self.space if isinstance(self.space, str) else self.space.get(method, "published")
        return PRESETS[space].get(kind, {}) if isinstance(space, str) else space


def _log(low: int | float, high: int | float) -> Range:
    return Range(low=low, high=high, log=True)


# The ranges of published comparisons, and wider ones as larger models and recent advice on LoRA call for. `wide` leaves
# epochs and batch size alone, so every trial of every method makes equally many updates.
_WARMUP, _WEIGHT_DECAY = Range(low=0.0, high=0.3), Range(low=0.0, high=0.1)
_LORA = {
    "learning_rate": _log(5e-5, 5e-3),
    "warmup": _WARMUP,
    "weight_decay": _WEIGHT_DECAY,
    "alpha": Range(low=8, high=64),
    "dropout": Range(low=0.0, high=0.2),
}
PRESETS: Mapping[Preset, Mapping[str, Mapping[str, Range | tuple[Choice, ...]]]] = {
    "published": {
        "full": {
            "learning_rate": _log(1e-6, 5e-5),
            "batch_size": Range(low=1, high=4),
            "warmup": Range(low=0.0, high=0.2),
            "weight_decay": Range(low=0.0, high=0.01),
            "epochs": Range(low=2, high=4),
        },
        "lora": _LORA,
    },
    "wide": {
        "full": {"learning_rate": _log(1e-6, 1e-3), "warmup": _WARMUP, "weight_decay": _WEIGHT_DECAY},
        "lora": {**_LORA, "learning_rate": _log(1e-5, 3e-2), "alpha": _log(4, 128)},
    },
}
