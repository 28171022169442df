"""The draws of the bootstrap as one file next to the measurements: with it, and without the store, drift is analysed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import DataError
from lorascope.stats.drift.runs import DriftDraws, Key

DRAWS = "draws.npz"
_INDEX = "index"


def write_draws(path: Path, draws: Mapping[Key, DriftDraws]) -> None:
    """An array for each array of each arm, and an index: the arms' keys with the fields that are no arrays, as JSON."""
    arrays: dict[str, Any] = {}
    index = []
    for place, (key, found) in enumerate(draws.items()):
        values = {part.name: getattr(found, part.name) for part in fields(found)}
        arrays |= {f"{place}/{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        index.append({"key": list(key), **plain})
    np.savez_compressed(path, **{_INDEX: np.array(json.dumps(index))}, **arrays)


def read_draws(path: Path) -> dict[Key, DriftDraws]:
    """What `write_draws` wrote. Raises DataError for another file of that name."""
    found: dict[Any, DriftDraws] = {}
    with np.load(path) as file:
        if _INDEX not in file.files:
            raise DataError(
                f"{path} does not hold the draws of a whole study",
                hint="the draws of a single drift step are no substitute",
            )
        for place, entry in enumerate(json.loads(str(file[_INDEX]))):
            key = tuple(entry.pop("key"))
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
            arrays = {name.partition("/")[2]: file[name] for name in file.files if name.partition("/")[0] == str(place)}
            found[key] = DriftDraws(**plain, **arrays)
    return found
