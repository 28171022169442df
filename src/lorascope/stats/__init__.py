"""Statistics of a study: the measurements table in, an `Analysis` out. Names are imported when first used."""

from __future__ import annotations

from typing import Any

_PUBLIC = {
    "analyse_study": "lorascope.stats.analyse:analyse_study",
    "detectable_difference": "lorascope.stats.quality.power:detectable_difference",
    "parse_conclusion": "lorascope.stats.conclusion:parse_conclusion",
    "read_measurements": "lorascope.stats.measurements:read_measurements",
    "write_measurements": "lorascope.stats.measurements:write_measurements",
    "validate_measurements": "lorascope.stats.measurements:validate_measurements",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorascope.registry import resolve

    return resolve(_PUBLIC, name)
