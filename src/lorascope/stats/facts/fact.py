"""One JSON object of a study's facts as a typed view: what is known of it as fields, the rest kept as it is."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, Self

from lorascope.errors import DataError


@dataclass(frozen=True)
class Fact:
    """One JSON object. more: its keys without a field here. given: the keys that the JSON had, null or not."""

    more: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    given: frozenset[str] = field(default=frozenset(), kw_only=True, compare=False, repr=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """A key that is absent gives the field's default. Raises DataError where a field without one is absent."""
        hints, known = _hints(cls), _names(cls)
        found = {name: _read(hints[name], data[name]) for name in known if name in data}
        found = {name: value for name, value in found.items() if value is not None or _may_be_null(hints[name])}
        try:
            return cls(**found, more={k: v for k, v in data.items() if k not in known}, given=frozenset(data))
        except TypeError as error:
            raise DataError(
                f"these facts do not say enough for {cls.__name__}: {error}",
                hint="facts.json is not whole; run the study again to analyse it anew",
            ) from error

    def changed_by(self, other: Self) -> Self:
        """This with what `other` says in its place, as far as it says anything."""
        said = {name: value for name in _names(type(self)) if (value := getattr(other, name)) not in (None, (), "")}
        return replace(self, **said)

    def to_json(self) -> dict[str, Any]:
        """JSON literals: every key that was given, and every field that has another value than its default."""
        values = {name: getattr(self, name) for name in _names(type(self))}
        stated = {name: v for name, v in values.items() if name in self.given or v != _defaults(type(self)).get(name)}
        return {**{name: _write(value) for name, value in stated.items()}, **self.more}


@cache
def _names(kind: type[Fact]) -> tuple[str, ...]:
    return tuple(part.name for part in fields(kind) if part.name not in ("more", "given"))


@cache
def _defaults(kind: type[Fact]) -> dict[str, Any]:
    """Of the fields that have one."""
    made = {part.name: part.default_factory() for part in fields(kind) if part.default_factory is not MISSING}
    return made | {part.name: part.default for part in fields(kind) if part.default is not MISSING}


@cache
def _hints(kind: type[Fact]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _may_be_null(hint: Any) -> bool:
    return hint is Any or type(None) in typing.get_args(hint)


def _read(hint: Any, value: Any) -> Any:
    """The value with its JSON objects as the classes that the field's type names."""
    if value is None:
        return None
    if isinstance(hint, types.UnionType):
        choices = [part for part in typing.get_args(hint) if part is not type(None)]
        objects = [part for part in choices if isinstance(part, type) and issubclass(part, Fact)]
        hint = objects[0] if objects and isinstance(value, Mapping) else choices[0]
    if isinstance(hint, type) and issubclass(hint, Fact):
        return hint.from_json(value)
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return tuple(_read(parts[0], item) for item in value)
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        return {key: _read(parts[1], item) for key, item in value.items()}
    return value


def _write(value: Any) -> Any:
    if isinstance(value, Fact):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _write(item) for key, item in value.items()}
    return [_write(item) for item in value] if isinstance(value, tuple | list) else value
