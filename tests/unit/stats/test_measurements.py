"""The measurements table: what it accepts, what it keeps, and what it says otherwise."""

from __future__ import annotations

import pandas as pd
import pytest

from lorascope.errors import DataError
from lorascope.stats.measurements import read_measurements, validate_measurements, write_measurements


def table(**changes) -> pd.DataFrame:
    row = {
        "run": "r", "model": "m", "task": "t", "method": "full", "seed": "42", "split": "test", "example_id": "e1",
        "site": None, "layer": None, "metric": "correct", "value": 1.0, "unit": "",
    }  # fmt: skip
    return pd.DataFrame([{**row, **changes}])


def test_parquet_round_trip_keeps_every_value_and_null(tmp_path):
    rows = pd.concat(
        [table(), table(example_id=None, split=None, metric="training_seconds", value=12.5), table(layer=3)]
    )
    write_measurements(rows, tmp_path / "measurements.parquet")
    read = read_measurements(tmp_path / "measurements.parquet")
    pd.testing.assert_frame_equal(read, validate_measurements(rows).reset_index(drop=True))
    assert [p.name for p in tmp_path.iterdir()] == ["measurements.parquet"]


def test_absent_nullable_columns_are_null():
    assert validate_measurements(table().drop(columns=["site", "layer"]))["layer"].isna().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table().rename(columns={"value": "valu"}), "the measurements table has an unknown column 'valu'"),
        (table().drop(columns="value"), "the measurements table lacks 'value'"),
        (table(seed=None), "column 'seed' of the measurements table is null in 1 of 1 rows"),
        (table(value=float("nan")), "column 'value' of the measurements table is null in 1 of 1 rows"),
        (table(value=float("inf")), "correct of run r is infinite (1 such rows)"),
        (
            pd.concat([table(), table()]),
            "correct of run r is measured twice (split test, example e1; 1 such rows)",
        ),
    ],
)
def test_a_wrong_table_is_named(rows, message):
    with pytest.raises(DataError) as error:
        validate_measurements(rows)
    assert error.value.message == message


def test_text_in_value_is_an_error():
    with pytest.raises(DataError, match="wrong type"):
        validate_measurements(table(value="high"))


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "measurements.parquet"
    write_measurements(table(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a whole parquet file"):
        read_measurements(path)
    with pytest.raises(DataError, match="no measurements table"):
        read_measurements(tmp_path / "none.parquet")
