"""`--set a.b=c`: one value of a study replaced from the command line.

The value is YAML, the path is dotted: keys, list positions, or the names of methods, tasks and models
(`methods.lora.rank=16`, `models=[smollm2-135m]`, `seeds.0.order=7`). What an override puts in a study is validated with
the rest, and a mistake in it names the override.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorascope.errors import StudyError
from lorascope.registry import nearest
from lorascope.study.loading.document import KeyPath, YamlDocument, describe, parse_yaml
from lorascope.study.seeds import DEFAULT, PRINTED


def apply_override(document: YamlDocument, override: str) -> None:
    """Puts the override's value into the document. Raises StudyError if its path leads nowhere."""
    label = f"--set {override}"
    dotted_path, equals, text = override.partition("=")
    parts = [part for part in re.split(r"\.|\[(\d+)\]", dotted_path.strip()) if part]
    if not equals or not parts:
        raise StudyError("an override is a path, `=` and a value", hint="such as methods.lora.rank=16", where=label)
    value = parse_yaml(text, source=label)
    container, path = _descend(document.data, parts, label=label)
    container[path[-1]] = value
    for known in [place for place in document.places if place[: len(path)] == path]:
        del document.places[known]
    document.places[path] = label


def _descend(data: dict[str, Any], parts: Sequence[str], *, label: str) -> tuple[Any, KeyPath]:
    """The container that the last part addresses, and the full path with list positions resolved."""
    container: Any = data
    path: KeyPath = ()
    rest = list(parts)
    while rest:
        if isinstance(container, list):
            key, used = _find_item(container, rest, path, label=label)
        elif isinstance(container, dict):
            key, used = rest[0], 1
        else:
            above = ".".join(map(str, path))
            raise StudyError(f"`{above}` is {describe(container)} and has no `{rest[0]}`", where=label)
        path, rest = (*path, key), rest[used:]
        if rest:
            container = _open(container, key, path)
    return container, path


def _open(container: Any, key: str | int, path: KeyPath) -> Any:
    """What stands under `key`, made a mapping first where it is absent or a shorthand."""
    value = container.get(key) if isinstance(container, dict) else container[key]
    if value is None and path == ("seeds",):
        value = [seed.initialisation for seed in DEFAULT]
    elif path == ("seeds",) and type(value) is int:
        value = list(PRINTED[:value])
    elif value is None:
        value = {}
    elif len(path) == 2 and path[0] in ("methods", "track") and isinstance(value, str):
        value = {"kind": value}
    elif len(path) == 2 and path[0] in ("models", "tasks") and isinstance(value, str):
        value = {"name": value}
    elif len(path) == 2 and path[0] == "seeds" and type(value) is int:
        value = {"initialisation": value, "order": value, "dropout": value}
    container[key] = value
    return value


def _find_item(items: list[Any], rest: Sequence[str], path: KeyPath, *, label: str) -> tuple[int, int]:
    """(position, how many parts name it). A name may hold dots, so the longest match wins."""
    names = [item_name(item) for item in items]
    for used in range(len(rest), 0, -1):
        name = ".".join(rest[:used])
        if name in names:
            return names.index(name), used
    if rest[0].isdecimal() and int(rest[0]) < len(items):
        return int(rest[0]), 1
    known = [name for name in names if name]
    match = nearest(rest[0], known)
    listed = f"there: {', '.join(known)}" if known else f"positions 0 to {len(items) - 1}"
    raise StudyError(
        f"`{'.'.join(map(str, path))}` has no `{rest[0]}`" + (f": did you mean `{match}`?" if match else ""),
        hint=listed,
        where=label,
    )


def item_name(item: Any) -> str | None:
    """What a list item is called: itself if it is text, otherwise its `name` or `kind`."""
    if isinstance(item, dict):
        item = item.get("name", item.get("kind"))
    return item if isinstance(item, str) else None
