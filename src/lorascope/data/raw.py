"""What a source of examples holds, before it is carved into splits and capped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Strata:
    """What every split keeps the proportions of. column: whole numbers, indices into names. names: for people."""

    column: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class RawExamples:
    """The examples of a source, as a task's `read` returns them.

    splits: "train" and, where the source has them, "validation" and "test", each with example_id (str) and the task's
    columns. task: literals from which `Task.from_description` makes the task again. content: the columns that make an
    example what it is; two examples that agree in them are duplicates. source: for people. strata: None for examples
    without classes. duplicates_are_errors: the splits are a user's own, who must mend them. disjoint: no example may
    stand in two splits (False: the paper protocol, whose validation set is its test set). has_parts: examples may be parts
    of others, as phrases are of sentences. keeps_some: duplicates stay, counted and said, where a class would be lost without
    them.
    """

    splits: Mapping[str, pd.DataFrame]
    task: Mapping[str, Any]
    content: tuple[str, ...]
    source: str
    strata: Strata | None = None
    duplicates_are_errors: bool = False
    disjoint: bool = True
    has_parts: bool = False
    keeps_some: bool = True
