"""The measurements table: one long table of everything a study measured.

One row is one number. Per-example rows (with example_id) are what make paired tests possible; summaries and costs have
no example_id. Statistics, figures and reports read only this table and the records. What belongs to no run of the study says
so in `method`: `baseline:NAME`, `reference:NAME` (what drift is to be read with), `serving:ARM` (stats/serving/table.py).
`pooling` says over which tokens features were pooled; tables from before a study could name several have no such column.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import DataError
from lorascope.registry import nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

REQUIRED_TEXT = ("run", "model", "task", "method", "seed", "metric", "unit")
NULLABLE_TEXT = ("split", "example_id", "pooling", "site")
COLUMNS = (
    "run", "model", "task", "method", "seed", "split", "example_id", "pooling", "site", "layer", "metric", "value", "unit",
)  # fmt: skip
KEY = tuple(column for column in COLUMNS if column not in ("value", "unit"))


def arrow_schema() -> pa.Schema:
    """The schema of measurements.parquet: text, except layer (int64, null: none) and value (float64)."""
    import pyarrow as pa

    kinds = {"layer": pa.int64(), "value": pa.float64()}
    return pa.schema(
        [pa.field(name, kinds.get(name, pa.string()), nullable=not _is_required(name)) for name in COLUMNS]
    )


def _is_required(name: str) -> bool:
    return name in REQUIRED_TEXT or name == "value"


def measurement_rows(shared: Mapping[str, Any], columns: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table. columns: what differs from row to row; `shared` says the rest, and what neither says is null."""
    import pandas as pd

    frame = pd.DataFrame(columns)
    for name in COLUMNS:
        if name not in frame:
            frame[name] = shared.get(name)
    kinds = {name: "float64" if name == "value" else "string" for name in COLUMNS}
    return frame.reindex(columns=list(COLUMNS)).astype(kinds)


def validate_measurements(measurements: pd.DataFrame, *, where: str | None = None) -> pd.DataFrame:
    """The table with its columns in order and its types as in `arrow_schema`; absent optional columns become null.

    Raises DataError for a missing or unknown column, a null where none may be, a value that is not a finite number, or two
    rows for the same measurement.
    """
    import pandas as pd

    found = list(measurements.columns)
    for name in found:
        if name not in COLUMNS:
            close = nearest(name, COLUMNS)
            guess = f" Did you mean {close!r}?" if close else ""
            raise DataError(
                f"the measurements table has an unknown column {name!r}",
                hint=f"Allowed columns: {', '.join(COLUMNS)}.{guess}",
                where=where,
            )
    missing = [name for name in COLUMNS if _is_required(name) and name not in found]
    if missing:
        raise DataError(
            f"the measurements table lacks {', '.join(map(repr, missing))}",
            hint=f"Found {', '.join(map(repr, found)) or 'no columns'}; required are "
            f"{', '.join(name for name in COLUMNS if _is_required(name))}.",
            where=where,
        )
    table = measurements.reindex(columns=list(COLUMNS))
    for name in COLUMNS:
        if _is_required(name) and (count := sum(table[name].isna())):
            raise DataError(
                f"column {name!r} of the measurements table is null in {count} of {len(table)} rows",
                hint="Every measurement names its run and metric and has a finite value; leave a failed one out.",
                where=where,
            )
    try:
        typed = {name: table[name].astype("string") for name in (*REQUIRED_TEXT, *NULLABLE_TEXT)}
        typed["layer"] = table["layer"].astype("Int64")
        typed["value"] = table["value"].astype("float64")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the measurements table has a value of the wrong type: {error}",
            hint="`value` is a number, `layer` a whole number, everything else text.",
            where=where,
        ) from error
    table = pd.DataFrame({name: typed[name] for name in COLUMNS})
    _refuse_infinite(table, where)
    _refuse_duplicates(table, where)
    return table


def _refuse_infinite(table: pd.DataFrame, where: str | None) -> None:
    infinite = table[table["value"].abs() == float("inf")]
    if len(infinite):
        row = infinite.iloc[0]
        raise DataError(
            f"{row['metric']} of run {row['run']} is infinite ({len(infinite)} such rows)",
            hint="A diverged run has no measurements; remove its rows or train it again.",
            where=where,
        )


def _refuse_duplicates(table: pd.DataFrame, where: str | None) -> None:
    repeated = table.duplicated(list(KEY))
    if repeated.any():
        row = table[repeated].iloc[0]
        raise DataError(
            f"{row['metric']} of run {row['run']} is measured twice "
            f"(split {row['split']}, example {row['example_id']}; {int(repeated.sum())} such rows)",
            hint="Each measurement appears once; was one run's table added twice?",
            where=where,
        )


def write_measurements(measurements: pd.DataFrame, path: Path) -> None:
    """Validates and writes parquet, atomically: a reader sees the old file or the whole new one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = validate_measurements(measurements, where=str(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(
        pa.Table.from_pandas(table, schema=arrow_schema(), preserve_index=False), partial, compression="zstd"
    )
    os.replace(partial, path)


def read_measurements(path: Path) -> pd.DataFrame:
    """The validated table of a measurements.parquet. Raises DataError if absent, truncated or of another shape."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(
            "there is no measurements table here", hint="Run the study first: `lorascope run STUDY`.", where=str(path)
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            "this is not a whole parquet file", hint="Delete it and run the study again.", where=str(path)
        ) from error
    return validate_measurements(table.to_pandas(), where=str(path))
