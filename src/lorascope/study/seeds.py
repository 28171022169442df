"""The seeds of a study: a printed list, three sources of chance in each, and the numbers that a task derives from them."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from lorascope.study.base import Spec

PRINTED = (
    42, 1337, 2024, 3407, 5489, 1009, 2741, 6367, 7919, 9973,
    104, 577, 1729, 2357, 3119, 4253, 4447, 6174, 7753, 8191,
)  # fmt: skip
"""What `seeds: 10` is the first ten of. The list may grow at its end and never changes otherwise."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Seeds(Spec):
    """The three sources of chance in a run. A bare integer sets all three."""

    initialisation: Seed
    order: Seed
    dropout: Seed

    @model_validator(mode="before")
    @classmethod
    def _from_integer(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < 2**63:
                raise ValueError(f"a seed lies between 0 and {2**63 - 1:,}; found {value}")
            return {"initialisation": value, "order": value, "dropout": value}
        return value

    @property
    def label(self) -> str:
        """ "42", or "42.7.7" when the three differ."""
        parts = (self.initialisation, self.order, self.dropout)
        return str(parts[0]) if len(set(parts)) == 1 else ".".join(map(str, parts))

    def derived(self, task: str) -> Seeds:
        """The numbers that a run on `task` starts from: a function of seed, task and use, and of nothing else. Two tasks do
        not start from the same adapter, so that their results are independent; two methods do, so that they stay paired."""
        return Seeds(
            initialisation=_derive(self.initialisation, task, "initialisation"),
            order=_derive(self.order, task, "order"),
            dropout=_derive(self.dropout, task, "dropout"),
        )


def _derive(seed: int, task: str, use: str) -> int:
    """32 bits of a hash, what every generator takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}/{task}".encode()).digest()[:4], "big")


def first_seeds(count: int) -> list[int]:
    """The first `count` seeds of the printed list. Raises ValueError where it is shorter."""
    if not 1 <= count <= len(PRINTED):
        raise ValueError(
            f"a number of seeds is 1 to {len(PRINTED)}; found {count}; write more out as a list, such as [1, 2, 3]"
        )
    return list(PRINTED[:count])


def _counted(value: Any) -> Any:
    """A bare number counts; a list names."""
    return first_seeds(value) if isinstance(value, int) and not isinstance(value, bool) else value


SeedList = Annotated[tuple[Seeds, ...], Field(min_length=1), BeforeValidator(_counted)]
DEFAULT: tuple[Seeds, ...] = tuple(Seeds.model_validate(seed) for seed in PRINTED[:5])
