"""Encoded examples on disk: one memory-mapped array a column, so that any process opens 100,000 examples at once.

A column of equal-shaped values is one `.npy`; a ragged one (sequences) is its values end to end with their offsets.
Nothing is padded and nothing is copied until `gather`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Columns = dict[str, list[np.ndarray]]
"""Column -> one array a row: an example, or a window of one."""
Batch = dict[str, Any]
"""Name -> array or tensor [examples, ...]."""


class Examples(Protocol):
    """What training and evaluation read examples from: a whole `ColumnStore` or a `ColumnSubset` of one."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def gather(self, rows: Sequence[int] | np.ndarray) -> dict[str, list[np.ndarray]]: ...

    def values(self, name: str, rows: np.ndarray) -> np.ndarray: ...


def example_numbers(ids: np.ndarray) -> np.ndarray:
    """int64 [rows]: which example each row belongs to, counted from 0 in the order in which they first appear. ids: of the
    rows' examples. Without windows it counts the rows."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


class ColumnStore:
    """Opened columns. ids: str [rows], the example each row belongs to. lengths: int64 [rows], the size of each row: the
    length of its first ragged column (tokens), or 1 where no column is ragged (images)."""

    def __init__(self, ids: np.ndarray, values: Mapping[str, np.ndarray], offsets: Mapping[str, np.ndarray]) -> None:
        self.ids = ids
        self._values = values
        self._offsets = offsets
        first = next((name for name in values if name in offsets), None)
        self.lengths = np.ones(len(ids), dtype=np.int64) if first is None else np.diff(offsets[first])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._values)

    @classmethod
    def write(cls, directory: Path, columns: Columns, ids: Sequence[str]) -> None:
        """Write one array an example and column. Every column needs as many rows as there are ids."""
        directory.mkdir(parents=True)
        layout = {}
        for name, rows in columns.items():
            assert len(rows) == len(ids), f"column {name} has {len(rows)} rows for {len(ids)} examples"
            ragged = rows[0].ndim == 1
            np.save(directory / f"{name}.npy", np.concatenate(rows) if ragged else np.stack(rows))
            if ragged:
                offsets = np.zeros(len(rows) + 1, dtype=np.int64)
                np.cumsum([len(row) for row in rows], out=offsets[1:])
                np.save(directory / f"{name}.offsets.npy", offsets)
            layout[name] = {"ragged": ragged}
        np.save(directory / "ids.npy", np.array(ids, dtype=np.str_))
        (directory / "columns.json").write_text(json.dumps(layout))

    @classmethod
    def open(cls, directory: Path) -> ColumnStore:
        """Memory-map the columns that `write` wrote. Raises FileNotFoundError if there are none."""
        layout = json.loads((directory / "columns.json").read_text())
        # asarray: the same mapped memory, without the cost of the memmap class at every slice.
        values = {name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r")) for name in layout}
        offsets = {
            name: np.load(directory / f"{name}.offsets.npy") for name, column in layout.items() if column["ragged"]
        }
        return cls(np.load(directory / "ids.npy"), values, offsets)

    def column(self, name: str) -> np.ndarray:
        """A whole column: scalars [examples], or the ragged values end to end."""
        return self._values[name]

    def gather(self, rows: Sequence[int] | np.ndarray) -> dict[str, list[np.ndarray]]:
        """The examples at `rows`, in that order, as `padded_batch` takes them. Views, not copies."""
        gathered = {}
        for name, values in self._values.items():
            offsets = self._offsets.get(name)
            if offsets is None:
                gathered[name] = list(values[np.asarray(rows, dtype=np.int64)])
            else:
                gathered[name] = [values[offsets[row] : offsets[row + 1]] for row in rows]
        return gathered

    def values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of one number a row, at `rows`: [len(rows)]."""
        return self._values[name][np.asarray(rows, dtype=np.int64)]

    def subset(self, rows: np.ndarray) -> ColumnSubset:
        """These rows alone, under the same interface."""
        return ColumnSubset(self, rows)


class ColumnSubset:
    """Some rows of a `ColumnStore`, in the order given: what a gate or a probe trains or scores on."""

    def __init__(self, store: ColumnStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, np.asarray(rows)
        self.ids = store.ids[self._rows]
        self.lengths = store.lengths[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def gather(self, rows: Sequence[int] | np.ndarray) -> dict[str, list[np.ndarray]]:
        """The examples at `rows` of the subset, as `padded_batch` takes them."""
        return self._store.gather(self._rows[np.asarray(rows)])

    def values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of one number a row, at `rows` of the subset: [len(rows)]."""
        return self._store.values(name, self._rows[np.asarray(rows)])
