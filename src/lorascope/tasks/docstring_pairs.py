"""How the pairs of `docstrings` are mined: sources parsed with `ast`, in an order that is the same on every machine.

Modules are visited in the order of a hash of their paths, the packages in turn, and each goes whole into one split
until the split is full. Parsing stops with the last split, so the size of the packages does not matter.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from lorascope.errors import DataError, EnvironmentProblem

Pair = tuple[str, int, str, str]

SKIPPED_DIRECTORIES = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "vendor",
    "externals",
    "extern",
    "_examples",
    "_build_utils",
}
# Written when a package is built, so they differ between builds of one version.
SKIPPED_FILES = {"__config__.py", "version.py", "_version.py", "setup.py", "conftest.py"}
BOILERPLATE = re.compile(
    r"^(see|refer|deprecated|alias|internal|private|todo|note|warning|same as|this (function|method|is)|override)\b"
    r"|\b(docstring|deprecated)\b|::|>>>|---|https?:|^\.\. |\b(i\.e|e\.g|etc|cf|vs)$",
    re.IGNORECASE,
)
ROLE = re.compile(r":[a-zA-Z:]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
# Functions of a module are taken in fours: two keep their sentence, two (or more) exchange theirs.
GROUP = 4
MAX_PER_MODULE = 32


@dataclass(frozen=True)
class Documented:
    """A function. place: "package/module.py:qualified.name". name: its words. sentence: the docstring's first."""

    place: str
    name: str
    sentence: str


def build_pairs(packages: Iterable[str], *, sizes: Mapping[str, int]) -> dict[str, list[Pair]]:
    """(example_id, label, name, sentence) rows a split, half of them of each label.

    sizes: pairs a split, multiples of 4, filled in the mapping's order. Raises DataError if the sources hold too few.
    """
    assert all(size % GROUP == 0 for size in sizes.values()), f"sizes must be multiples of {GROUP}: {sizes}"
    modules = _documented_modules(packages)
    splits: dict[str, list[Pair]] = {}
    for split, size in sizes.items():
        pairs: list[Pair] = []
        while len(pairs) < size:
            functions = next(modules, None)
            if functions is None:
                raise DataError(
                    f"the installed packages hold too few documented functions for {size} {split} pairs",
                    hint="Reinstall the packages with their Python sources.",
                )
            pairs.extend(pair_up(functions[: size - len(pairs)]))
        splits[split] = pairs
    return splits


def pair_up(functions: list[Documented]) -> list[Pair]:
    """Half of a module's functions keep their sentence, the others pass theirs round; every sentence is used once."""
    shuffled = sorted(functions, key=lambda function: _digest(function.place))
    own, others = shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]
    pairs = [_pair(function, 1, function.sentence) for function in own]
    shift = min(range(1, len(others)), key=lambda shift: _accidental_matches(others, shift))
    pairs += [
        _pair(function, 0, others[(index + shift) % len(others)].sentence) for index, function in enumerate(others)
    ]
    return sorted(pairs)


def _pair(function: Documented, label: int, sentence: str) -> Pair:
    return (_digest(f"{function.name}\x1f{sentence}")[:16], label, function.name, sentence)


def _accidental_matches(functions: list[Documented], shift: int) -> int:
    """How many functions would get a sentence that holds every word of their name, and so might fit after all."""
    sentences = [functions[(index + shift) % len(functions)].sentence.lower() for index in range(len(functions))]
    return sum(
        all(word in sentence for word in function.name.split())
        for function, sentence in zip(functions, sentences, strict=True)
    )


def _documented_modules(packages: Iterable[str]) -> Iterator[list[Documented]]:
    """The usable functions of one module after another, in fours. No name and no sentence ever occurs twice."""
    names: set[str] = set()
    sentences: set[str] = set()
    in_turn = chain.from_iterable(zip_longest(*(_module_paths(package) for package in packages)))
    for root, path in filter(None, in_turn):
        fresh = []
        for function in _documented_functions(root, path):
            if function.name not in names and function.sentence.lower() not in sentences:
                names.add(function.name)
                sentences.add(function.sentence.lower())
                fresh.append(function)
        usable = min(len(fresh) - len(fresh) % GROUP, MAX_PER_MODULE)
        if usable:
            yield fresh[:usable]


def _module_paths(package: str) -> list[tuple[Path, Path]]:
    """(directory that holds the package, module file), in the order of a hash of the relative path."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise EnvironmentProblem(f"the package {package} has no sources to read", hint=f"Reinstall {package}.")
    root = Path(found.submodule_search_locations[0])
    modules = [
        path
        for path in root.rglob("*.py")
        if path.name not in SKIPPED_FILES and not SKIPPED_DIRECTORIES & set(path.relative_to(root).parts)
    ]
    return [
        (root.parent, path)
        for path in sorted(modules, key=lambda path: _digest(path.relative_to(root.parent).as_posix()))
    ]


def _documented_functions(root: Path, path: Path) -> Iterator[Documented]:
    place = path.relative_to(root).as_posix()
    source = path.read_bytes()
    if source.count(b'"""') < 2 * GROUP:  # parsing costs far more than this look
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    for qualified, node in _functions(tree):
        words = name_in_words(node.name)
        sentence = first_sentence(ast.get_docstring(node) or "")
        if sentence and len(words) >= 3:
            yield Documented(f"{place}:{qualified}", words, sentence)


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions and methods in source order, with their qualified names; nested functions are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node


def name_in_words(name: str) -> str:
    """ "readCSVFile_2d" -> "read csv file 2d"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name)
    return " ".join(spaced.lower().split())


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring as plain words, or None if it has none that says anything of its own."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = ROLE.sub(r"\1", " ".join(paragraph.split())).replace("`", "").replace("*", "")
    text = re.split(r"(?<=[\w)\]'\"])\.(?=\s|$)", text, maxsplit=1)[0].strip(" .")
    num_words = len(text.split())
    if not 4 <= num_words <= 40 or not text[0].isalpha() or not text.isascii() or BOILERPLATE.search(text):
        return None
    if re.match(r"[\w.]+\(", text):  # a signature, not a sentence
        return None
    return text + "."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
