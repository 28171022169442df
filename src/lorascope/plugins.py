"""What a name stands for: a table from names to implementations, built in or brought by a plug-in.

A plug-in is any installed distribution with an entry point in a group of ours: `bitfit = bitfit_lora:BitFit` in the group
`lorascope.methods`. Tables are read without importing what they name, once, when the first name is asked for. A plug-in
that is broken is named and skipped; it is an error only where a study needs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.errors import EnvironmentProblem

GROUPS = "lorascope."
"""What the names of our groups of entry points begin with; the table's kind follows."""
STAMPS = "plugins"
"""The parameter of a step that says which plug-ins it rests on."""


@dataclass(frozen=True)
class Plugin:
    """The installed distribution that an entry comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Wanted:
    """What a plug-in's entry must be. place: the class of ours that it derives from (is_class) or is an instance of.
    overrides: methods of that class that it must have of its own, besides the abstract ones."""

    place: str
    is_class: bool = True
    overrides: tuple[str, ...] = ()

    def misfit(self, found: Any) -> str | None:
        """What is wrong with an implementation; None: nothing."""
        base = imported(self.place)
        if not self.is_class:
            return None if isinstance(found, base) else f"is not an instance of {self.place}"
        if not (isinstance(found, type) and issubclass(found, base)):
            return f"is not a subclass of {self.place}"
        inherited = [name for name in self.overrides if _function(found, name) is _function(base, name)]
        lacking = sorted({*getattr(found, "__abstractmethods__", ()), *inherited})
        return f"does not define {', '.join(f'`{name}`' for name in lacking)}" if lacking else None


def _function(owner: type, name: str) -> Any:
    """The function behind a method or class method."""
    return getattr(getattr(owner, name), "__func__", getattr(owner, name))


@dataclass(frozen=True)
class Entry:
    """What one name stands for. noun: "method", for people. place: "module:attribute", imported by `load`. literal: the
    thing itself, where a built-in one is written out in its table. plugin: where it comes from; None: built in. wanted:
    what a plug-in's must be; None: anything.
    """

    noun: str
    name: str
    place: str = ""
    literal: Any = None
    plugin: Plugin | None = None
    wanted: Wanted | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return "built in" if self.plugin is None else str(self.plugin)

    def load(self) -> Any:
        """The implementation, imported now. Raises EnvironmentProblem for one that a plug-in names and that is broken."""
        if self.literal is not None:
            return self.literal
        if self.plugin is None:
            return imported(self.place)
        try:
            found = imported(self.place)
        except (Exception, SystemExit) as error:  # whatever somebody else's module does when it is imported
            raise self._broken(f"{type(error).__name__}: {error}") from error
        if self.wanted is not None and (misfit := self.wanted.misfit(found)):
            raise self._broken(f"{self.place} {misfit}")
        return found

    def _broken(self, why: str) -> EnvironmentProblem:
        assert self.plugin is not None
        return EnvironmentProblem(
            f"the {self.noun} `{self.name}` of the plug-in {self.plugin} cannot be loaded: {why}",
            hint=f"Install a version of {self.plugin.distribution} that fits, or remove it: "
            f"`pip uninstall {self.plugin.distribution}`.",
        )


class NameTable(Mapping[str, Entry]):
    """Name -> entry, the built-in ones first. kind: what it holds, in the plural; `lorascope.KIND` is its group.

    built_in: name -> "module:attribute", or what the name stands for. is_open: whether plug-ins may add to it. wanted:
    what they add must be this.
    """

    def __init__(
        self, kind: str, built_in: Mapping[str, Any], *, is_open: bool = False, wanted: Wanted | None = None
    ) -> None:
        self.kind = kind
        self.noun = kind.removesuffix("s").replace("_", " ")
        self.problems: dict[str, str] = {}
        """Name -> why what plug-ins brought under it is not used, as far as that is known."""
        self._built_in = built_in
        self._is_open = is_open
        self._wanted = wanted
        self._entries: dict[str, Entry] | None = None

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def entries(self) -> dict[str, Entry]:
        """Every entry, read at first use."""
        if self._entries is None:
            self._entries = {name: self._own(name, value) for name, value in self._built_in.items()}
            if self._is_open:
                self._add_plugins(self._entries)
        return self._entries

    def loaded(self) -> dict[str, Any]:
        """Every implementation there is, imported now; a plug-in's that is broken is named and left out."""
        found = {}
        for name, entry in self.entries.items():
            try:
                found[name] = entry.load()
            except EnvironmentProblem as problem:
                self.leave_out(name, problem.message)
        return found

    def stamp(self, name: str) -> dict[str, Any]:
        """What the identity of a step says of the implementation it uses: nothing of a built-in one, whose step kind has a
        version of its own."""
        entry = self[name]
        if entry.plugin is None:
            return {}
        own = getattr(entry.load(), "version", 1)
        if type(own) is not int:
            raise EnvironmentProblem(
                f"the {self.noun} `{name}` of the plug-in {entry.plugin} has the version {own!r}, which is not a whole number",
                hint="Its author writes `version = 1` in the class and adds one when its results change.",
            )
        return {"distribution": entry.plugin.distribution, "release": entry.plugin.version, "version": own}

    def _own(self, name: str, value: Any) -> Entry:
        return Entry(self.noun, name, value) if isinstance(value, str) else Entry(self.noun, name, literal=value)

    def _add_plugins(self, entries: dict[str, Entry]) -> None:
        found: dict[str, list[Entry]] = {}
        for point in importlib.metadata.entry_points(group=f"{GROUPS}{self.kind}"):
            plugin = _plugin_of(point)
            found.setdefault(point.name, []).append(
                Entry(self.noun, point.name, point.value, None, plugin, self._wanted)
            )
        for name, rivals in found.items():
            origins = " and ".join(str(rival.plugin) for rival in rivals)
            if name in entries:
                self.leave_out(
                    name, f"{origins} cannot bring a {self.noun} `{name}`: lorascope has one of that name built in"
                )
            elif len(rivals) > 1:
                self.leave_out(name, f"the {self.noun} `{name}` is not used: {origins} both bring one")
            elif ":" not in rivals[0].place:
                self.leave_out(
                    name, f"the {self.noun} `{name}` of {origins} is not used: `{rivals[0].place}` names no object"
                )
            else:
                entries[name] = rivals[0]

    def leave_out(self, name: str, problem: str) -> None:
        """Says once why a name is not used, where a person sees it: on standard error here, in its log in a worker."""
        if self.problems.get(name) != problem:
            self.problems[name] = problem
            logging.getLogger("lorascope").warning("warning: %s", problem)


def stamped(**used: tuple[NameTable, str]) -> dict[str, Any]:
    """What the parameters of a step say of the plug-ins behind it, by what they are to it (task, method, ...); nothing where
    all is built in, so that the ids of those steps are what they were."""
    stamps = {part: stamp for part, (table, name) in used.items() if (stamp := table.stamp(name))}
    return {STAMPS: stamps} if stamps else {}


def check_stamps(params: Mapping[str, Any]) -> None:
    """Raises EnvironmentProblem unless the plug-ins installed here are those that a step was planned with."""
    for part, stamp in params.get(STAMPS, {}).items():
        wanted = Plugin(stamp["distribution"], stamp["release"])
        found = _installed_version(wanted.distribution)
        if found != wanted.version:
            raise EnvironmentProblem(
                f"this step's {part} is of the plug-in {wanted}; here is {found or 'none of that name'}",
                hint=f"`pip install {wanted.distribution}=={wanted.version}`, or plan the study again with what is here.",
            )


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def imported(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def installed_plugins() -> dict[str, str]:
    """Distribution -> version of everything installed that adds to lorascope, used or not."""
    found = {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions()
        if any(point.group.startswith(GROUPS) for point in distribution.entry_points)
    }
    return dict(sorted(found.items()))


def _plugin_of(point: importlib.metadata.EntryPoint) -> Plugin:
    assert point.dist is not None, "entry points of installed distributions know where they come from"
    return Plugin(point.dist.name, point.dist.version)
