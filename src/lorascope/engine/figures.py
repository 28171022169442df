"""The numbers in a step's result, under names: what can be shown of a result without knowing what it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

MOST_FIGURES = 500


def figures_in(result: Mapping[str, Any]) -> dict[str, float]:
    """Every number at the end of a path of keys: {"test": {"accuracy": 0.9}} -> {"test/accuracy": 0.9}; true is 1.

    An item of a list goes by its `name` or `gate`, the second of one name as "name 2"; other lists are left out, as are
    texts, None and numbers that are not finite. At most `MOST_FIGURES`: results are small, and so must events be.
    """
    found: dict[str, float] = {}
    for path, value in _leaves(result):
        if isinstance(value, int | float) and math.isfinite(value) and len(found) < MOST_FIGURES:
            found["/".join(path)] = float(value)
    return found


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        seen: dict[str, int] = {}
        for item in value:
            name = (item.get("name") or item.get("gate")) if isinstance(item, Mapping) else None
            if isinstance(name, str):
                seen[name] = seen.get(name, 0) + 1
                yield from _leaves(item, (*path, name if seen[name] == 1 else f"{name} {seen[name]}"))
    else:
        yield path, value
