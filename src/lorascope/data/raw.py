"""What a source of examples holds, before it is carved into splits and capped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RawExamples:
    """What a source holds, before carving and caps.

    splits: "train" and, where the source has them, "validation" and "test", each with example_id (str), label (int)
    and the text columns. source: for people. duplicates_are_errors: the splits are a user's own, who must mend them.
    disjoint: no example may stand in two splits (False: the paper protocol, whose validation set is its test set).
    """

    splits: Mapping[str, pd.DataFrame]
    label_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    metrics: tuple[str, ...]
    source: str
    duplicates_are_errors: bool = False
    disjoint: bool = True
