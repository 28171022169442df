"""What the parts of a plan are called, and what one part of it hands to the next."""

from __future__ import annotations

from collections.abc import Mapping

from lorascope.measures.planned import PlannedModel as PlannedModel
from lorascope.measures.planned import RunLabel as RunLabel
from lorascope.measures.planned import TrainedArms as TrainedArms

VERSIONS: Mapping[str, int] = {
    "data": 1, "tokens": 1, "baseline": 2, "sanity": 4, "train": 5, "evaluate": 1, "analysis": 11, "calibration": 2,
    "proposals": 1, "trial": 2, "search": 2,
}  # fmt: skip
"""Of the kinds of steps; a measure (`measures.measure`) knows its own."""

SEARCH = "search"
"""Stands for the seed in the name of what only a search needs: its capped data, its gates."""
