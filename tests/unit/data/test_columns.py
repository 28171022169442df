"""The column store gives back what was written, row by row, from any process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.data.columns import ColumnStore, example_numbers

ROWS = st.lists(st.lists(st.integers(0, 30000), min_size=1, max_size=20), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS, data=st.data())
def test_gathered_rows_equal_the_written_ones(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("store") / "train"
    columns = {
        "input_ids": [np.array(row, dtype=np.int32) for row in rows],
        "label": [np.asarray(len(row) % 2, dtype=np.int64) for row in rows],
    }
    ids = [f"exämple-{number}" for number in range(len(rows))]
    ColumnStore.write(directory, columns, ids)
    store = ColumnStore.open(directory)
    assert len(store) == len(rows)
    assert store.ids.tolist() == ids
    assert store.columns == ("input_ids", "label")
    assert store.lengths.tolist() == [len(row) for row in rows]
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    gathered = store.gather(wanted)
    assert [ids.tolist() for ids in gathered["input_ids"]] == [rows[row] for row in wanted]
    assert [int(label) for label in gathered["label"]] == [len(rows[row]) % 2 for row in wanted]
    assert store.column("label").dtype == np.int64


def test_opened_columns_stay_on_disk_and_cannot_be_changed(tmp_path: Path) -> None:
    ColumnStore.write(tmp_path / "s", {"input_ids": [np.arange(3, dtype=np.int32)]}, ["a"])
    values = ColumnStore.open(tmp_path / "s").column("input_ids")
    assert isinstance(values.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="column label has 2 rows for 1 examples"):
        ColumnStore.write(tmp_path / "s", {"label": [np.asarray(0), np.asarray(1)]}, ["a"])


def test_rows_are_counted_by_the_example_they_belong_to() -> None:
    assert example_numbers(np.array(["b", "b", "a", "c", "c"])).tolist() == [0, 0, 1, 2, 2]
    assert example_numbers(np.array(["b", "a", "b"])).tolist() == [0, 1, 0]
