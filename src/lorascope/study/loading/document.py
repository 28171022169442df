"""A YAML file as plain data that still knows the line of every key.

YAML is read as version 1.2 (`1e-5` is a float, `no` is text, a key given twice is an error). Mistakes are collected as
paths into the data and leave as one `StudyError` that names file and line of each.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.errors import StudyError
from lorascope.registry import nearest
from lorascope.study.loading.bounds import MOST_BYTES, MOST_INTEGER, check_bounds, unreadable_line

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """path: where in the data. text: what was found and what is allowed. hint: the remedy."""

    path: KeyPath
    text: str
    hint: str | None = None


@dataclass
class YamlDocument:
    """data: dicts, lists and scalars. places: path -> "file:line", or "--set a.b=c" for what an override put there."""

    source: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where `path` was written; for what is not there, where the nearest thing around it was."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.source

    def error(self, mistakes: Sequence[Mistake]) -> StudyError:
        """All mistakes as one error, in the order of the file."""
        unique = sorted(dict.fromkeys(mistakes), key=lambda mistake: _line_of(self.place(mistake.path)))
        if len(unique) == 1:
            return StudyError(unique[0].text, hint=unique[0].hint, where=self.place(unique[0].path))
        listed = [str(StudyError(m.text, hint=m.hint, where=self.place(m.path))) for m in unique]
        return StudyError("\n".join([f"{len(unique)} mistakes", *listed]), where=self.source)


def dotted(path: KeyPath) -> str:
    """("methods", 1, "rank") -> "methods[1].rank"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _line_of(place: str) -> tuple[bool, int, str]:
    line = place.rpartition(":")[2]
    return (not line.isdecimal(), int(line) if line.isdecimal() else 0, place)


def read_document(path: Path, *, what: str = "a study", key: str = "name: my-study") -> YamlDocument:
    """The mapping in a YAML file. what: it is; key: one it may have, for people. Raises StudyError for a file that is absent,
    empty, no YAML or no mapping."""
    text = read_text(path)
    document = YamlDocument(source=str(path), data={})
    document.data = parse_yaml(text, source=str(path), places=document.places)
    if document.data is None:
        raise StudyError("the file is empty", hint="`lorascope init` writes a study to start from", where=str(path))
    if not isinstance(document.data, dict):
        found = describe(document.data)
        raise StudyError(
            f"{what} is a mapping of keys to values; found {found}",
            hint=f"start with `{key}` on a line of its own",
            where=f"{path}:1",
        )
    return document


def read_text(path: Path) -> str:
    """The text of a YAML file. Raises StudyError for a file that is absent or is not text."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)  # what is larger is refused, so it is not read to its end
        return content.decode("utf-8-sig" if len(content) <= MOST_BYTES else "latin-1")
    except FileNotFoundError:
        folders = dict.fromkeys([path.parent, Path("studies")])
        candidates = [file for folder in folders for file in sorted(folder.glob("[!.]*.y*ml"))]
        match = nearest(path.name, [file.name for file in candidates])
        meant = next((file for file in candidates if file.name == match), None)
        listed = f"studies here: {', '.join(map(str, candidates))}" if candidates else "`lorascope init` writes one"
        hint = f"did you mean {meant}?" if meant else listed
        raise StudyError(f"there is no file {path}", hint=hint) from None
    except IsADirectoryError:
        raise StudyError(f"{path} is a directory", hint="give the study's YAML file") from None
    except UnicodeDecodeError as error:
        raise StudyError(
            f"the file is not UTF-8 text (byte {error.start})", hint="save it as UTF-8", where=str(path)
        ) from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}", hint="check its name and permissions") from None


def parse_yaml(text: str, *, source: str, places: dict[KeyPath, str] | None = None) -> Any:
    """The plain data of one YAML 1.2 document; with `places`, the line of every key and item is noted there."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    def place(line: int) -> str:
        return source if places is None else f"{source}:{line + 1}"

    try:
        check_bounds(text, place)
        loaded = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem, hint = _explain_syntax(error.problem or str(error), text, mark)
        raise StudyError(problem, hint=hint, where=place(mark.line) if mark else source) from None
    except ReaderError as error:
        letter = f"the character U+{int(error.character):04X}"
        where = place(text.count("\n", 0, error.position))
        raise StudyError(f"{letter} may not stand in YAML", hint="remove it", where=where) from None
    except YAMLError as error:
        raise StudyError(f"this is not YAML: {str(error).splitlines()[0]}", where=source) from None
    except ValueError as error:  # of the value's own kind: a date that there is not, a number of thousands of digits
        said = str(error).partition(";")[0][:100]
        raise StudyError(
            f"a value cannot be read: {said}", hint="quote it if it is text", where=place(unreadable_line(text))
        ) from None
    try:
        return _plain(loaded, (), source=source, places=places if places is not None else {})
    except StudyError as error:
        if places is None:  # one value on the command line has no lines
            error.where = source
        raise


def _explain_syntax(problem: str, text: str, mark: Any) -> tuple[str, str]:
    if problem.startswith("found duplicate key"):
        key = problem.removeprefix("found duplicate key ").split(" with value", 1)[0].strip("\"'")
        return f"the key `{key}` is given twice", "keep one of the two"
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "YAML syntax: the line is indented with a tab", "indent with spaces"
    if "another document" in problem:
        return "the file holds more than one YAML document", "one study a file: remove the second `---`"
    shown = f" in `{line.strip()[:60]}`" if line.strip() else ""
    return (
        f"YAML syntax: {problem}{shown}",
        "check quotes, brackets, colons and indentation, here and on the line above",
    )


def _plain(node: Any, path: KeyPath, *, source: str, places: dict[KeyPath, str]) -> Any:
    if isinstance(node, Mapping):
        return _plain_mapping(node, path, source=source, places=places)
    if isinstance(node, list):
        for index in range(len(node)):
            places[(*path, index)] = f"{source}:{node.lc.item(index)[0] + 1}"  # pyright: ignore[reportAttributeAccessIssue]
        return [_plain(item, (*path, index), source=source, places=places) for index, item in enumerate(node)]
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in node):
        raise StudyError(
            f"{dotted(path)}: the text {node!r} holds a character that no file can hold", where=places.get(path, source)
        )
    if isinstance(node, int) and abs(node) > MOST_INTEGER:
        raise StudyError(
            f"{dotted(path)}: the number is too large; at most {MOST_INTEGER:,}", where=places.get(path, source)
        )
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    if isinstance(node, datetime.date):
        return str(node)
    raise StudyError(
        f"{dotted(path)}: a {type(node).__name__} has no meaning in a study", hint="use plain YAML values, without tags"
    )


def _plain_mapping(node: Any, path: KeyPath, *, source: str, places: dict[KeyPath, str]) -> dict[str, Any]:
    result = {}
    for key, value in node.items():
        inner = (*path, str(key))
        written = next((part for part in (node, *(getattr(node, "merge", None) or ())) if key in part.lc.data), None)
        if written is not None:  # in the mapping itself, or in one that `<<` merges into it
            places[inner] = f"{source}:{written.lc.key(key)[0] + 1}"
        if not isinstance(key, str):
            raise StudyError(
                f"{dotted(path) or 'the study'}: the key {key!r} is not text",
                hint="quote it",
                where=places.get(inner, source),
            )
        result[str(key)] = _plain(value, inner, source=source, places=places)
    return result


def describe(value: Any) -> str:
    """What was found, for people: "the text 'eight'", "the number 3", "a list", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    return "a list" if value else "an empty list"
