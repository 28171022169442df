"""Rows of a table read into examples, with an error for every way they are broken.

The one idea: nothing is guessed. A text such as "NA" stays a text, a missing cell is an error that names its row, and
a label is the same class in every format (`study.tasks.labels`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.data.files import read_table as read_table
from lorascope.errors import DataError
from lorascope.printable import unseen_character
from lorascope.registry import nearest
from lorascope.study.tasks.labels import class_name, label_order

RESERVED = ("example_id", "label", "file_row")
"""Columns that prepared examples have besides their texts. file_row: where an example stands in a user's own files."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def select_examples(table: pd.DataFrame, *, path: Path, text: Sequence[str], label: str) -> pd.DataFrame:
    """The text columns as str and `label` as the name of its class; every other column is dropped, the row order kept.

    Raises DataError for a missing column, no rows, missing or non-text cells, and labels that are not classes.
    """
    if len(table) == 0:
        raise DataError(f"{path.name} has no rows", hint="Every split needs examples.", where=str(path))
    _require_columns(table, path=path, columns=[*text, label])
    if label in text:
        raise DataError(f"`{label}` is both text and label", hint="Name different columns.", where=str(path))
    if reserved := [column for column in text if column in RESERVED]:
        raise DataError(
            f"a text column cannot be called `{reserved[0]}`",
            hint="lorascope uses that name itself: rename the column in the file.",
            where=str(path),
        )
    rows = table.index.tolist()
    texts = {column: _text_cells(table[column].tolist(), rows, path=path, column=column) for column in text}
    return pd.DataFrame(
        {**texts, "label": _class_names(table[label].tolist(), rows, path=path, column=label)}, index=table.index
    )


def _require_columns(table: pd.DataFrame, *, path: Path, columns: Iterable[str]) -> None:
    present = [str(column) for column in table.columns]
    for column in columns:
        if column not in present:
            close = nearest(column, present)
            guess = f": did you mean `{close}`?" if close else ""
            raise DataError(
                f"{path.name} has no column `{column}`{guess}",
                hint=f"Its columns: {', '.join(present) or 'none'}.",
                where=str(path),
            )


def _text_cells(values: list[Any], rows: Sequence[int], *, path: Path, column: str) -> list[str]:
    """The texts of a column, all of them checked. rows: their numbers in the file, from 0."""
    missing = [row for row, value in zip(rows, values, strict=True) if _is_missing(value)]
    if missing:
        raise DataError(
            f"column `{column}` has no text in {name_rows(missing)}",
            hint="Fill or remove these rows (counted from 1, without a header).",
            where=str(path),
        )
    for row, value in zip(rows, values, strict=True):
        if not isinstance(value, str):
            raise DataError(
                f"column `{column}` holds a {type(value).__name__} in row {row + 1} ({value!r}), not text",
                hint="Name the column of texts, or write the value as a string.",
                where=str(path),
            )
        if _SURROGATE.search(value):
            raise DataError(
                f"column `{column}` holds half a surrogate pair in row {row + 1}, which is not a character",
                hint="Write the file again as UTF-8 text.",
                where=str(path),
            )
    _refuse_control_characters(values, rows, path=path, column=column)
    return values


def _refuse_control_characters(values: Sequence[Any], rows: Sequence[int], *, path: Path, column: str) -> None:
    """NUL and its like: no text has them, and what reads them later stops there, or shows something else."""
    found = [
        (row, character[0])
        for row, value in zip(rows, values, strict=True)
        if isinstance(value, str) and (character := _CONTROL.search(value))
    ]
    if found:
        code = ord(found[0][1])
        name = "the NUL character" if code == 0 else f"the control character U+{code:04X}"
        others = f"; such characters stand in {name_rows([row for row, _ in found])}" if len(found) > 1 else ""
        raise DataError(
            f"column `{column}` holds {name} in row {found[0][0] + 1}{others}",
            hint="Remove them: in Python, re.sub('[\\x00-\\x08\\x0e-\\x1f\\x7f]', '', text).",
            where=str(path),
        )


def _class_names(values: list[Any], rows: Sequence[int], *, path: Path, column: str) -> list[str]:
    if missing := [row for row, value in zip(rows, values, strict=True) if _is_missing(value)]:
        raise DataError(
            f"column `{column}` has no label in {name_rows(missing)}",
            hint="Label or remove these rows (counted from 1, without a header).",
            where=str(path),
        )
    _refuse_control_characters(values, rows, path=path, column=column)
    _refuse_unseen_characters(values, rows, path=path, column=column)
    names = []
    for row, value in zip(rows, values, strict=True):
        try:
            names.append(class_name(value))
        except ValueError:
            raise DataError(
                f"column `{column}` holds {value!r} in row {row + 1}, which is not a class",
                hint="Labels are whole numbers, truth values or words; write a fraction as a word, such as `half`.",
                where=str(path),
            ) from None
    return names


def _refuse_unseen_characters(values: Sequence[Any], rows: Sequence[int], *, path: Path, column: str) -> None:
    """A class is known by its name: with a character that nothing shows, two classes would have one name for a reader."""
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, str) and (found := unseen_character(value.strip())):
            raise DataError(
                f"column `{column}` holds a label in row {row + 1} with the character U+{ord(found):04X}, which nothing shows",
                hint=f"Remove it everywhere in the column: in Python, label.replace('{_escaped(found)}', '').",
                where=str(path),
            )


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 2**16 else f"\\U{ord(character):08x}"


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or (isinstance(value, float) and bool(np.isnan(value)))


def number_labels(examples: pd.DataFrame, *, path: Path, labels: Sequence[str], declared: str) -> pd.DataFrame:
    """`label` as the index into `labels`. declared: where the classes come from, for the message.

    Raises DataError naming the rows whose label is none of them.
    """
    index = {spelling: number for number, spelling in enumerate(labels)}
    strange = [row for row, name in zip(examples.index, examples["label"], strict=True) if name not in index]
    if strange:
        found = label_order(set(examples["label"]) - set(labels))
        raise DataError(
            f"{name_values(found)} in {name_rows(strange)} of {path.name} is not among the classes {declared}: "
            f"{name_values(labels)}",
            hint="Correct these labels, remove the rows, or add the class to `labels` and to the training examples.",
            where=str(path),
        )
    return examples.assign(label=[index[spelling] for spelling in examples["label"]])


def content_ids(examples: pd.DataFrame, *, text: Sequence[str]) -> list[str]:
    """A stable id an example, from its texts alone; a text that occurs again gets "-2", "-3" ..."""
    seen: dict[str, int] = {}
    ids = []
    for texts in zip(*(examples[column] for column in text), strict=True):
        digest = hashlib.sha256("\x1f".join(texts).encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def name_rows(rows: Sequence[int], *, limit: int = 5) -> str:
    """ "row 3", "rows 3, 8 and 12", "rows 3, 8, 12, 13, 20 and 7 more": 0-based rows, named from 1."""
    numbers = [str(row + 1) for row in rows]
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    if len(numbers) > limit:
        return f"rows {', '.join(numbers[:limit])} and {len(numbers) - limit} more"
    return f"rows {', '.join(numbers[:-1])} and {numbers[-1]}"


def name_values(values: Sequence[str], *, limit: int = 8) -> str:
    shown = ", ".join(f"`{value}`" for value in values[:limit])
    return f"{shown} and {len(values) - limit} more" if len(values) > limit else shown
