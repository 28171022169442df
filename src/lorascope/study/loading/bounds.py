"""What a YAML document may ask of its reader, looked at event by event before anything is built from it.

Ten lines of aliases can stand for gigabytes, brackets can nest deeper than a program can follow, and a tag can name a Python
function. A study needs none of these, so each is refused with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from lorascope.errors import StudyError

MOST_BYTES = 1_000_000
MOST_NODES = 10_000
MOST_DEPTH = 50
MOST_INTEGER = 2**63 - 1
_BRACKETS = re.compile(rf"(?:[\[{{]\s*){{{MOST_DEPTH + 1}}}")

Place = Callable[[int], str]
"""A line, counted from 0 -> "file:line"."""


def check_bounds(text: str, place: Place) -> None:
    """Raises StudyError for a document that is too large or nests too deep, whose aliases stand for too much, or that has
    tags or directives. Syntax errors leave as ruamel's."""
    if len(text.encode("utf-8", errors="replace")) > MOST_BYTES:
        raise StudyError(
            f"the file has more than the {MOST_BYTES:,} bytes that a study may have",
            hint="keep data in files of their own, and name them in the study",
            where=place(0).rpartition(":")[0] or place(0),
        )
    if (line := _line_of_brackets(text)) is not None:  # ruamel's scanner takes minutes for a megabyte of brackets
        raise _too_deep(place(line))
    _check_events(_events(text), place)


def _events(text: str) -> Iterator[Any]:
    from ruamel.yaml import YAML

    yield from YAML(typ="rt").parse(text)


def _check_events(events: Iterator[Any], place: Place) -> None:
    """Counts nodes with every alias expanded."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []  # (anchor, nodes before it) of the collections around an event
    count = 0
    for event in events:
        name, line = type(event).__name__, event.start_mark.line
        if name == "DocumentStartEvent" and (event.tags or event.version not in (None, (1, 2))):
            raise StudyError(
                "a study is YAML 1.2, without directives", hint="remove the line that begins with `%`", where=place(0)
            )
        if name == "AliasEvent":
            around = [anchor for anchor, _ in opened]
            if event.anchor in around:
                raise StudyError(
                    f"`*{event.anchor}` stands within what `&{event.anchor}` names",
                    hint="write it out",
                    where=place(line),
                )
            count += sizes.get(event.anchor, 1)
        elif name in ("ScalarEvent", "SequenceStartEvent", "MappingStartEvent"):
            if event.tag is not None:
                raise _tagged(event.tag, place(line))
            count += 1
            if name == "ScalarEvent":
                sizes |= {event.anchor: 1} if event.anchor else {}
            else:
                opened.append((event.anchor, count - 1))
        elif name in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, before = opened.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if len(opened) > MOST_DEPTH:
            raise _too_deep(place(line))
        if count > MOST_NODES:
            raise StudyError(
                f"the file stands for more than {MOST_NODES:,} keys and values, its aliases (`*name`) written out",
                hint="a study needs a few hundred: remove the aliases, or keep data in files of their own",
                where=place(line),
            )


def _tagged(tag: Any, where: str) -> StudyError:
    shown = str(tag).replace("tag:yaml.org,2002:", "!!")
    return StudyError(
        f"the tag `{shown[:60]}` has no meaning in a study", hint="use plain YAML values, without tags", where=where
    )


def _too_deep(where: str) -> StudyError:
    return StudyError(
        f"brackets or blocks are nested more than {MOST_DEPTH} deep",
        hint="a study needs a handful of levels",
        where=where,
    )


def _line_of_brackets(text: str) -> int | None:
    """The line on which too many brackets open in a row; None if none do."""
    found = _BRACKETS.search(text)
    return None if found is None else text.count("\n", 0, found.start())


def unreadable_line(text: str) -> int:
    """The line of the first plain value that cannot be read by itself, such as the date 2001-99-99; 0 if there is none."""
    from ruamel.yaml import YAML

    for event in _events(text):
        if type(event).__name__ == "ScalarEvent" and event.style is None:
            try:
                YAML(typ="rt").load(event.value)
            except ValueError:
                return event.start_mark.line
            except Exception:  # a value that is a part of something else by itself, such as `-`
                continue
    return 0
