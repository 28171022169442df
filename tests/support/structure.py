"""What the source code of the package breaks of the caps in CONTRIBUTING.md, found without importing it.

    python tests/support/structure.py

prints what breaks a cap, one thing a line.
"""

from __future__ import annotations

import ast
import functools
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE, UNIT_TESTS = ROOT / "src" / "lorascope", ROOT / "tests" / "unit"
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MOST_NAME_LETTERS = 400, 60, 8, 70
LEAST_DOCUMENTED = 0.9

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the package. name: "lorascope.engine.run"."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def layer(self) -> str:
        """The room it is in; "" for the package itself."""
        return (self.name.split(".") + [""])[1]

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


@functools.cache
def modules(root: Path = SOURCE) -> dict[str, Module]:
    """Every module of the package at `root`, by name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    return found


def imports(package: Mapping[str, Module]) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, at its top, in a function or for types only."""
    return {name: set(_imported(module, package)) - {name} for name, module in package.items()}


def _imported(module: Module, package: Mapping[str, Module]) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in package)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} imports by a relative path"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & package.keys()
            yield from inner or {node.module} & package.keys()


def layers() -> list[str]:
    """The rooms of the package, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return settings["tool"]["importlinter"]["contracts"][0]["layers"]


def upward_imports(graph: Mapping[str, set[str]], order: list[str]) -> list[str]:
    """The imports from a room of one above it."""
    rank = {layer: place for place, layer in enumerate(order)}
    room = {name: (name.split(".") + [""])[1] for name in graph}
    return [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if room[name] and (not room[other] or rank[room[other]] < rank[room[name]])
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, in order; [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Every circle that is left when the last import of each that was found is cut."""
    left, found = {name: set(others) for name, others in graph.items()}, []
    while names := circle(left):
        found.append(" -> ".join(names))
        left[names[-2]].discard(names[-1])
    return found


def breaches() -> list[str]:
    """Everything that breaks a cap, one sentence each, in order."""
    package = modules()
    found = [f"imports go up: {text}" for text in upward_imports(imports(package), layers())]
    found += [f"imports go in a circle: {text}" for text in circles(imports(package))]
    for name, module in package.items():
        found += [f"{name} {text}" for text in _breaches_of(module)]
    found += [f"the class {name} stands in {' and '.join(places)}" for name, places in doubled_classes(package).items()]
    return sorted(found + list(_breaches_of_tests()))


def _breaches_of(module: Module) -> Iterator[str]:
    if len(module.text.splitlines()) > MOST_LINES:
        yield f"has more than {MOST_LINES} lines"
    for function in module.functions():
        if (function.end_lineno or 0) - function.lineno + 1 > MOST_FUNCTION_LINES:
            yield f"{function.name} has more than {MOST_FUNCTION_LINES} lines"
        if len(parameters(function)) > MOST_PARAMETERS and not is_verb(module, function):
            yield f"{function.name} has more than {MOST_PARAMETERS} parameters"
        if function.returns is None:
            yield f"{function.name} says nothing of what it returns"


def parameters(function: Function) -> list[str]:
    """Their names, without the object or class that a method belongs to."""
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    starred = [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    return [name for name in (*named, *starred) if name not in ("self", "cls")]


def is_verb(module: Module, function: Function) -> bool:
    """Whether its parameters are the options of a command, of which Typer wants one each."""
    return module.layer == "cli" and any(
        isinstance(node, ast.Name) and node.id in ("StoreAt", "StudyFile", "AsJson")
        for each in (*function.args.args, *function.args.kwonlyargs)
        for node in ast.walk(each.annotation or ast.Pass())
    )


def doubled_classes(package: Mapping[str, Module]) -> dict[str, list[str]]:
    """Class name -> the modules that each define one, where that is more than one."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, module in package.items():
        for found in module.classes():
            places[found.name].append(name)
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


def undocumented(package: Mapping[str, Module]) -> tuple[list[str], int]:
    """The public modules, classes and functions without a docstring, and how many there are in all. A method that
    overrides another, or that a protocol declares, has its docstring there."""
    classes = {found.name: found for module in package.values() for found in module.classes()}
    protocols = [found for found in classes.values() if "Protocol" in _bases(found)]
    lacking, total = [], 0
    for name, module in package.items():
        for place, node, owner in _public(module.tree, name):
            promised = owner is not None and any(
                _documents(other, node.name) for other in (*_ancestors(owner, classes), *protocols)
            )
            total += 1
            if not ast.get_docstring(node) and not promised:
                lacking.append(place)
    return lacking, total


def _public(
    node: ast.Module | ast.ClassDef, place: str
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | Function, ast.ClassDef | None]]:
    if isinstance(node, ast.Module):
        yield place, node, None
    for inner in node.body:
        if isinstance(inner, Function | ast.ClassDef) and not inner.name.startswith("_"):
            yield f"{place}.{inner.name}", inner, node if isinstance(node, ast.ClassDef) else None
            if isinstance(inner, ast.ClassDef):
                yield from _public(inner, f"{place}.{inner.name}")


def _bases(found: ast.ClassDef) -> list[str]:
    roots = [base.value if isinstance(base, ast.Subscript) else base for base in found.bases]
    return [root.id for root in roots if isinstance(root, ast.Name)]


def _ancestors(found: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    for base in _bases(found):
        if base in classes and classes[base] is not found:
            yield classes[base]
            yield from _ancestors(classes[base], classes)


def _documents(found: ast.ClassDef, method: str) -> bool:
    return any(isinstance(n, Function) and n.name == method and ast.get_docstring(n) for n in found.body)


def _breaches_of_tests() -> Iterator[str]:
    for path in sorted(UNIT_TESTS.rglob("test_*.py")):
        room = path.parent.relative_to(UNIT_TESTS)
        if not (SOURCE / room).is_dir():
            yield f"tests/unit/{room} mirrors no folder of the package"
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in _test_names(path):
            if len(name) > MOST_NAME_LETTERS:
                yield f"{path.relative_to(ROOT)} {name} is too long a name"


def _test_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function) and node.name.startswith("test_"):
            yield node.name


if __name__ == "__main__":
    print("\n".join(breaches()))
