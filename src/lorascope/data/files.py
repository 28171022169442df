"""Tables as people keep them (csv, tsv, jsonl, parquet; compressed or not) read into rows, as texts and values stand there.

The one idea: what can be recognised for certain is recognised (UTF-16, a semicolon as separator, gzip), and whatever else is
wrong is refused by its place. Row n is the n-th below the header; empty lines count, so that a person finds it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shlex
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lorascope.data.sources import file_format
from lorascope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATORS = {".csv": ",;\t", ".tsv": "\t;,"}
CSV_REMEDY = "Quote every field that holds the separator, a quote or a line break; double the quotes inside it."

_FREE_BYTES, _MOST_TIMES = 64 * 2**20, 100
"""What a compressed file may unpack to: so many bytes, or so many times its own size. Texts shrink to a tenth; a file made to
fill a memory shrinks a thousand times."""

_NO_TEXT = {
    b"PK\x03\x04": ("a zip archive, or a sheet of Excel", "Unpack it, or save the sheet as csv (UTF-8)."),
    b"PAR1": ("a parquet file", "Call it .parquet."),
}
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_table(path: Path) -> pd.DataFrame:
    """All rows of a file. The index is the row's number in the file, from 0.

    Raises DataError for another extension, bytes that are not text, columns of one name, and a truncated or malformed file.
    """
    kind = file_format(path).removesuffix(".gz")
    if kind not in FORMATS:
        raise DataError(
            f"{path.name} is not a kind of file that can be read",
            hint=f"Use one of {', '.join(FORMATS)}; each may be compressed (.csv.gz).",
            where=str(path),
        )
    if kind == ".parquet":
        return _read_parquet(path)
    text = _text(path)
    return _read_jsonl(text, path) if kind == ".jsonl" else _read_csv(text, path, separators=SEPARATORS[kind])


# ------------------------------------------------------------------------------------------------------- bytes and text


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is compressed with gzip, whatever it is called."""
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    most = max(_FREE_BYTES, _MOST_TIMES * len(content))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            unpacked = packed.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path.name} is not a complete gzip file: {error}",
            hint="It was probably cut short while it was copied or written; copy it again.",
            where=str(path),
        ) from None
    if len(unpacked) > most:
        raise DataError(
            f"{path.name} unpacks to more than {most:,} bytes, from {len(content):,}: no table does",
            hint="If its rows are meant to repeat so often, unpack it with `gunzip` and name the unpacked file.",
            where=str(path),
        )
    return unpacked


def _text(path: Path) -> str:
    content = _content(path)
    for mark, (what, remedy) in _NO_TEXT.items():
        if content.startswith(mark):
            raise DataError(f"{path.name} is not text: it is {what}", hint=remedy, where=str(path))
    encoding = _encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise DataError(
                f"{path.name} begins like {encoding.upper()} text and is not: {error.reason} at byte {error.start}",
                hint="It was probably cut short while it was copied or written; copy it again.",
                where=str(path),
            ) from None
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name} is not UTF-8 text (byte {error.start}, in line {line}, is 0x{content[error.start]:02x})",
            hint=f"Save it as UTF-8, for example: {_to_utf8(path)}",
            where=str(path),
        ) from None


def _encoding(content: bytes) -> str:
    """By the byte order mark; without one, ASCII characters of two bytes tell UTF-16."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    first, second = content[:16:2], content[1:16:2]
    if len(content) >= 4 and not any(second) and all(first):
        return "utf-16-le"
    return "utf-16-be" if len(content) >= 4 and not any(first) and all(second) else "utf-8"


def _to_utf8(path: Path) -> str:
    """A command that writes a copy in UTF-8; any byte is a character of latin1."""
    name = path.name.split(".")[0]
    if path.suffix.lower() == ".gz":
        new = shlex.quote(f"{name}-utf8{file_format(path)}")
        return f"gunzip -c {shlex.quote(path.name)} | iconv -f latin1 -t utf-8 | gzip > {new}"
    return f"iconv -f latin1 -t utf-8 {shlex.quote(path.name)} > {shlex.quote(f'{name}-utf8{path.suffix}')}"


# -------------------------------------------------------------------------------------------------------------- formats


def _read_csv(text: str, path: Path, *, separators: str) -> pd.DataFrame:
    """A record of `None` where a row is shorter than the header. separators: the likeliest first."""
    limit = csv.field_size_limit(sys.maxsize)  # a text may be as long as it likes
    try:
        records = _records(text, path, separator=_separator(text, separators))
        header = next(((number, names) for number, names in records if any(names)), None)
        if header is None:
            raise DataError(f"{path.name} is empty", hint="It needs a header line and rows.", where=str(path))
        below, names = header
        _refuse_excel_line(names, path)
        _refuse_twins(names, path)
        rows, index = [], []
        for number, record in records:
            if len(record) > len(names):
                raise DataError(
                    f"{path.name} is not a well-formed csv file: row {number - below} has {len(record)} fields, the "
                    f"header line {len(names)}",
                    hint=CSV_REMEDY,
                    where=str(path),
                )
            if record:
                rows.append([field or None for field in record] + [None] * (len(names) - len(record)))
                index.append(number - below - 1)
    finally:
        csv.field_size_limit(limit)
    return pd.DataFrame(rows, index=pd.Index(index, dtype=int), columns=pd.Index(names, dtype=object), dtype=object)


def _refuse_excel_line(names: Sequence[str], path: Path) -> None:
    """Refuse the line `sep=;` that some spreadsheets write before the header of a csv file."""
    if names[0].lower().startswith("sep=") and not any(names[1:]):
        raise DataError(
            f"the first line of {path.name} is `{names[0]}`, a mark of spreadsheets, where the names of the columns belong",
            hint="Remove that line: the separator is recognised without it.",
            where=f"{path}:1",
        )


def _records(text: str, path: Path, *, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the record, its fields); an empty line is a record without fields."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    begins = 1
    try:
        for number, record in enumerate(reader):
            begins = reader.line_num + 1
            yield number, [] if len(record) == 1 and not record[0].strip() else record
    except csv.Error as error:
        found = str(error)
        if found == "unexpected end of data":
            found = "a quoted field is never closed"
        raise DataError(
            f"{path.name} is not a well-formed csv file: {found}, in the row that begins in line {begins}",
            hint=CSV_REMEDY,
            where=str(path),
        ) from None


def _separator(text: str, candidates: str) -> str:
    """The one that divides the header line into most columns, the likeliest of equals."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(candidates, key=lambda candidate: len(next(csv.reader([header], delimiter=candidate), [])))


def _read_jsonl(text: str, path: Path) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    index = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_twins)
        except json.JSONDecodeError as error:
            raise DataError(
                f"line {number} is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}",
                hint="Every line holds one JSON object; the file may have been cut short.",
                where=f"{path}:{number}",
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"line {number} cannot be read: {error}",
                hint="Every line holds one flat JSON object, whose keys are the columns.",
                where=f"{path}:{number}",
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"line {number} holds a {type(row).__name__}, not an object",
                hint='Every line looks like {"text": "...", "label": 0}.',
                where=f"{path}:{number}",
            )
        rows.append(row)
        index.append(number - 1)
    return pd.DataFrame(rows, index=pd.Index(index, dtype=int), dtype=object)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        places = " and ".join(str(place) for place, key in enumerate(keys, start=1) if key == twice)
        raise ValueError(f"its keys {places} are both `{twice}`")
    return row


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_packed = path.suffix.lower() == ".gz"
    try:
        table: pa.Table = pq.ParquetFile(io.BytesIO(_content(path)) if is_packed else path).read()
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} is not a complete parquet file: {str(error).splitlines()[0]}",
            hint="It was probably cut short while it was copied or written; copy it again.",
            where=str(path),
        ) from None
    _refuse_twins(table.column_names, path)
    # An index that pandas wrote is a column like any other; whole numbers with gaps stay whole.
    return table.to_pandas(ignore_metadata=True, integer_object_nulls=True)


def _refuse_twins(names: Sequence[str], path: Path) -> None:
    """Two columns of one name: whichever is read, the other may say something else."""
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise DataError(
                f"columns {names.index(name) + 1} and {place + 1} of {path.name} are both called `{name}`",
                hint="Rename one of them, or remove it.",
                where=str(path),
            )
