"""Tables as people keep them (csv, jsonl, parquet) read into examples, with an error for every way they are broken.

The one idea: nothing is guessed. A text such as "NA" stays a text, a missing cell is an error that names its row, and
a label is compared by its spelling, so 1, "1" and 1.0 are the same class in every format.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.errors import DataError
from lorascope.registry import nearest

FORMATS = (".csv", ".jsonl", ".parquet")
RESERVED = ("example_id", "label")
CSV_REMEDY = "Quote every field that holds a comma, a quote or a line break; double the quotes inside it."


def read_table(path: Path) -> pd.DataFrame:
    """All rows of a csv (UTF-8, header line), jsonl or parquet file.

    Raises DataError for another extension, bytes that are not UTF-8, and a truncated or malformed file.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(
            f"{path.name} is not a kind of file that can be read",
            hint=f"Use one of {', '.join(FORMATS)}.",
            where=str(path),
        )
    try:
        return {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})",
            hint=f"Save it as UTF-8, for example: iconv -f latin1 -t utf-8 {path.name}",
            where=str(path),
        ) from None


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # A row longer than the header would only be cut, with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path, dtype=str, index_col=False, keep_default_na=False, na_values=[""], encoding="utf-8-sig"
            )
    except pd.errors.ParserWarning:
        raise DataError(
            f"{path.name} is not a well-formed csv file: rows have more fields than the header line",
            hint=CSV_REMEDY,
            where=str(path),
        ) from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path.name} is empty", hint="It needs a header line and rows.", where=str(path)) from None
    except pd.errors.ParserError as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise DataError(
            f"{path.name} is not a well-formed csv file: {reason}",
            hint=CSV_REMEDY,
            where=str(path),
        ) from None


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"line {number} is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}",
                hint="Every line holds one JSON object; the file may have been cut short.",
                where=f"{path}:{number}",
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"line {number} holds a {type(row).__name__}, not an object",
                hint='Every line looks like {"text": "...", "label": 0}.',
                where=f"{path}:{number}",
            )
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read().to_pandas()
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} is not a complete parquet file: {str(error).splitlines()[0]}",
            hint="It was probably cut short while it was copied or written; copy it again.",
            where=str(path),
        ) from None


def select_examples(table: pd.DataFrame, *, path: Path, text: Sequence[str], label: str) -> pd.DataFrame:
    """The text columns as str and `label` as its spelling; every other column is dropped, the row order kept.

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
    examples = pd.DataFrame({column: _text_cells(table[column].tolist(), path=path, column=column) for column in text})
    examples["label"] = _label_spellings(table[label].tolist(), path=path, column=label)
    return examples


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


def _text_cells(values: list[Any], *, path: Path, column: str) -> list[str]:
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"column `{column}` has no text in {name_rows(missing)}",
            hint="Fill or remove these rows (counted from 1, without a header).",
            where=str(path),
        )
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"column `{column}` holds a {type(value).__name__} in row {row + 1} ({value!r}), not text",
                hint="Name the column of texts, or write the value as a string.",
                where=str(path),
            )
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(
                f"column `{column}` holds half a surrogate pair in row {row + 1}, which is not a character",
                hint="Write the file again as UTF-8 text.",
                where=str(path),
            )
    return values


def _label_spellings(values: list[Any], *, path: Path, column: str) -> list[str]:
    if missing := [row for row, value in enumerate(values) if _is_missing(value)]:
        raise DataError(
            f"column `{column}` has no label in {name_rows(missing)}",
            hint="Label or remove these rows (counted from 1, without a header).",
            where=str(path),
        )
    for row, value in enumerate(values):
        if not isinstance(value, str | int | np.integer) and not (isinstance(value, float) and value.is_integer()):
            raise DataError(
                f"column `{column}` holds {value!r} in row {row + 1}, which is not a class",
                hint="Labels are integers or strings.",
                where=str(path),
            )
    return [value.strip() if isinstance(value, str) else str(int(value)) for value in values]


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or value is pd.NA or (isinstance(value, float) and bool(np.isnan(value)))


def label_order(spellings: Iterable[str]) -> tuple[str, ...]:
    """The classes found, in a fixed order: integers by value, anything else by spelling."""
    found = set(spellings)
    if all(spelling.lstrip("-").isdigit() for spelling in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def number_labels(examples: pd.DataFrame, *, path: Path, labels: Sequence[str], declared: str) -> pd.DataFrame:
    """`label` as the index into `labels`. declared: where the classes come from, for the message.

    Raises DataError naming the rows whose label is none of them.
    """
    index = {spelling: number for number, spelling in enumerate(labels)}
    strange = [row for row, spelling in enumerate(examples["label"]) if spelling not in index]
    if strange:
        found = label_order({examples["label"].iloc[row] for row in strange})
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
