"""How a study looks for each method's hyper-parameters before it compares them: the `search:` part.

Number of trials, seeds, pruning and the cap on rows are one setting for all methods and cannot be written for one of them:
an equal budget is the format's, not the author's. Only the ranges are a method's own, because the optimum is.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from lorascope.study.base import Name, Spec
from lorascope.study.loading.document import describe
from lorascope.study.methods import method_specs
from lorascope.study.methods.base import MethodBase
from lorascope.study.ranges import Choice, Range, Values


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
PRESETS: tuple[str, ...] = typing.get_args(Preset)
"""The ranges of published comparisons, and wider ones as larger models and recent advice on LoRA call for. `wide` leaves
epochs and batch size alone, so every trial of every method makes equally many updates. Each method has its own."""
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
MOST_SEEDS = 20


def _counted(value: Any) -> Any:
    """A bare number counts: 3 is 0, 1, 2."""
    if type(value) is not int:
        return value
    if not 1 <= value <= MOST_SEEDS:
        raise ValueError(f"a number of seeds is 1 to {MOST_SEEDS}; found {value}")
    return tuple(range(value))


def _refuse_shared_ranges(value: Any) -> Any:
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, list | tuple) or (isinstance(item, Mapping) and {"low", "high", "log"} & set(item)):
            raise ValueError(f"ranges are a method's own, and `{name}` is none: {{lora: {{{name}: ...}}}}")
    return value


class SearchSpec(Spec):
    """A search of each (model, task, method), the same budget for all.

    sampler: who proposes trials. trials: of each search. at_once: proposed together, then trained together; a sampler that
    learns does so between rounds. space: ranges, by method. seeds: each trial is trained with all of them, and none is a
    seed of the study. confirm: so many of the best trials are trained with two more seeds where trials have one, and chosen
    among by their mean. proposal_seed: of the sampler. train_examples: at most so many for a trial. pruning: trials that end
    early. at_edge: what to do about an optimum at the end of a range.
    """

    sampler: Literal["tpe", "gp", "random", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1)] = 15
    at_once: Annotated[int, Field(ge=1)] = 5
    space: Annotated[Spaces, BeforeValidator(_refuse_shared_ranges)] = "published"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(_counted)] = (0,)
    proposal_seed: Seed = 0
    train_examples: Annotated[int, Field(ge=10)] | None = None
    confirm: Annotated[int, Field(ge=0)] = 3
    pruning: Literal["none", "halving", "wilcoxon"] = "none"
    at_edge: Literal["flag", "extend"] = "flag"

    @property
    def confirming_seeds(self) -> tuple[int, ...]:
        """The further seeds of the best trials, far from what a study names; none where trials have several seeds already, or
        `confirm` is 0."""
        first, *others = self.seeds
        return () if others or not self.confirm else (first + 1_000_003, first + 2_000_003)

    def of(self, method: str, kind: str) -> Mapping[str, Range | tuple[Choice, ...]]:
        """What is searched of a method, and where: the preset's ranges where the study gives none of its own."""
        space = self.space if isinstance(self.space, str) else self.space.get(method, "published")
        return method_specs()[kind].ranges.get(space, {}) if isinstance(space, str) else space

    def space_of(self, method: MethodBase) -> Mapping[str, Range | tuple[Choice, ...]]:
        """The same of a method as it is written, which may turn a preset into settings of its own."""
        space = self.of(method.name, method.kind)
        own = self.space if isinstance(self.space, str) else self.space.get(method.name, "published")
        return method.searched(space) if isinstance(own, str) else space
