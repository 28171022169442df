"""The draws of the bootstrap as one file next to the measurements: with it, and without the store, drift is analysed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.errors import DataError
from lorascope.stats.drift.health import LEAST_EFFECTIVE_RANK
from lorascope.stats.drift.runs import DriftDraws, Key
from lorascope.stats.facts.found import DriftDefinition

DRAWS = "draws.npz"
_INDEX = "index"


def write_draws(path: Path, draws: Mapping[Key, DriftDraws]) -> None:
    """An array for each array of each arm, and an index: the arms' keys with the fields that are no arrays, as JSON. Of an arm
    with several poolings there is an entry for each, the primary one first."""
    arrays: dict[str, Any] = {}
    index = []
    entries = [(key, one) for key, found in draws.items() for one in (found, *found.others)]
    for place, (key, found) in enumerate(entries):
        values = {part.name: getattr(found, part.name) for part in fields(found) if part.name != "others"}
        values["unhealthy"] = sorted(map(list, found.unhealthy))
        arrays |= {f"{place}/{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        index.append({"key": list(key), **plain})
    np.savez_compressed(path, **{_INDEX: np.array(json.dumps(index))}, **arrays)


def read_draws(path: Path) -> dict[Key, DriftDraws]:
    """What `write_draws` wrote. Raises DataError for another file of that name."""
    found: dict[Any, list[DriftDraws]] = {}
    with np.load(path) as file:
        if _INDEX not in file.files:
            raise DataError(
                f"{path} does not hold the draws of a whole study",
                hint="the draws of a single drift step are no substitute",
            )
        for place, entry in enumerate(json.loads(str(file[_INDEX]))):
            key = tuple(entry.pop("key"))
            unhealthy = frozenset((site, int(layer)) for site, layer in entry.pop("unhealthy", ()))
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
            arrays = {name.partition("/")[2]: file[name] for name in file.files if name.partition("/")[0] == str(place)}
            found.setdefault(key, []).append(DriftDraws(**plain, **arrays, unhealthy=unhealthy))
    return {key: replace(of_arm[0], others=tuple(of_arm[1:])) for key, of_arm in found.items()}


def definitions_of(draws: Mapping[Key, DriftDraws]) -> tuple[DriftDefinition, ...]:
    """What drift in one number is, by (model, task); nothing of results of older versions, whose rows name no pooling."""
    found: dict[tuple[str, str], DriftDefinition] = {}
    for (model, task, _), own in draws.items():
        if own.pooling is not None:
            of_all = {str(one.pooling): one for one in (own, *own.others)}
            left_out = {
                pooling: tuple(sorted(layer for site, layer in one.unhealthy if site == "residual" and layer > 0))
                for pooling, one in of_all.items()
            }
            blocks = [
                layer for site, layer in zip(own.sites, own.layers, strict=True) if site == "residual" and layer > 0
            ]
            found[model, task] = DriftDefinition(
                model, task, own.pooling, tuple(of_all), len(blocks), left_out, LEAST_EFFECTIVE_RANK
            )
    return tuple(found.values())
