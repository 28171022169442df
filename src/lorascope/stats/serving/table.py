"""Serving's figures in the long table of measurements, and back.

A figure belongs to a model, an arm, a repeat and a load. In the long table these are the columns `model`, `method`
(`serving:ARM`), `seed` (`repeat:NUMBER`: a repeat is what is replicated, as a seed is elsewhere) and `site`, which names
the load: `workload=generation loop=batch level=4 choice=round-robin sampling=greedy setting=default`. `run` is the serving
step, `task` is `*`, since adapters of several tasks may be served side by side.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.stats.measurements import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

LOAD = ("workload", "loop", "level", "choice", "sampling", "setting")
_ARM, _REPEAT = "serving:", "repeat:"
_OLD_TABLE = "serving.parquet"


def served_rows(figures: pd.DataFrame, *, run: str) -> pd.DataFrame:
    """Rows of the long table. figures: model, arm, repeat, LOAD, metric, value, unit; a figure that is no finite number is
    left out. run: the id of the serving step."""
    import numpy as np
    import pandas as pd

    kept: Any = figures[np.isfinite(figures["value"])]
    loads = kept[list(LOAD)].drop_duplicates()
    sites = {tuple(load): _site(load) for load in _tuples(loads)}
    columns = {
        "run": run,
        "model": kept["model"],
        "task": "*",
        "method": _ARM + kept["arm"].astype("string"),
        "seed": _REPEAT + kept["repeat"].astype("string"),
        "split": None,
        "example_id": None,
        "pooling": None,
        "site": [sites[load] for load in _tuples(kept[list(LOAD)])],
        "layer": None,
        "metric": kept["metric"],
        "value": kept["value"],
        "unit": kept["unit"],
    }
    kinds = {name: "float64" if name == "value" else "string" for name in COLUMNS}
    return pd.DataFrame(columns, index=kept.index).astype(kinds).reset_index(drop=True)


def served_figures(measurements: pd.DataFrame) -> pd.DataFrame:
    """The figures of serving that a table of measurements holds: model, arm, repeat (whole number), LOAD (level: a number),
    metric, value, unit; no row where nothing was served."""
    import pandas as pd

    rows: Any = measurements[measurements["method"].str.startswith(_ARM).fillna(False).astype(bool)]
    loads = {site: dict(part.split("=", 1) for part in site.split(" ")) for site in rows["site"].unique()}
    columns = {
        "model": rows["model"],
        "arm": rows["method"].str.removeprefix(_ARM),
        "repeat": rows["seed"].str.removeprefix(_REPEAT).astype("int64"),
        **{key: rows["site"].map({site: load.get(key) for site, load in loads.items()}) for key in LOAD},
        "metric": rows["metric"],
        "value": rows["value"],
        "unit": rows["unit"],
    }
    frame = pd.DataFrame(columns, index=rows.index).reset_index(drop=True)
    return frame.astype({"level": "float64", "value": "float64"})


def read_served(directory: Path) -> pd.DataFrame:
    """`served_figures` of an analysis on disk: from measurements.parquet, or, in results of older versions, from a table of
    their own, serving.parquet. No row where nothing was served."""
    import pandas as pd

    own = directory / _OLD_TABLE
    if own.exists():
        return pd.read_parquet(own)
    return served_figures(pd.read_parquet(directory / "measurements.parquet"))


def _tuples(loads: Any) -> list[tuple]:
    """A load a row, what is absent as None (a missing number is not equal to itself)."""
    columns = [[None if gone else item for item, gone in zip(c, c.isna(), strict=True)] for _, c in loads.items()]
    return list(zip(*columns, strict=True))


def _site(load: tuple) -> str:
    """ "workload=generation loop=batch level=4 ..."; what is absent is left out."""
    spoken = {key: f"{value:.17g}" if key == "level" else str(value) for key, value in zip(LOAD, load, strict=True)
              if value is not None}  # fmt: skip
    assert not any(" " in text or "=" in text for text in spoken.values()), spoken
    return " ".join(f"{key}={text}" for key, text in spoken.items())
