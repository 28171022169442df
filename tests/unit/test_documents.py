"""Documents read easily: a short first table, short lines, links that lead to a heading, words that everybody uses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "lorascope"
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
STUDIES = sorted(REPOSITORY.glob("studies/*.yaml"))
WORDINGS = sorted(PACKAGE.glob("report/**/*.py"))

# What the house does not write, and why a reader would stumble over it.
AVOIDED = {
    r"\bbefall": "happens to, fails",
    r"\bbeside\b": "next to, with, in addition to",
    r"(?<!there )\bis no\b(?! longer| more)": "is not a",
    r"\bdies\b": "fails, ends, is lost",
    r"\bthose of before\b": "the earlier ones, by their name",
    r", for (it|they)\b": "because",
    r"\bdearer\b": "more expensive",
    r"\bknows no\b": "has no, does not know",
}


def prose(document: Path) -> Iterator[tuple[int, str]]:
    """The lines of a document outside of code blocks and tables, with their numbers."""
    inside_code = False
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside_code = not inside_code
        elif not inside_code and not line.startswith(("|", "![")):
            yield number, line


def sentences(source: Path) -> Iterator[tuple[int, str]]:
    """The texts of a Python file with their lines: the constants in it, those of f-strings too."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def heading_anchors(document: Path) -> set[str]:
    """The fragments by which GitHub links the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def avoided_words(lines: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"line {number}: {found.group()!r}: write {better}"
        for number, text in lines
        for pattern, better in AVOIDED.items()
        if (found := re.search(pattern, text, re.I))
    ]


def test_the_first_table_of_the_readme_has_five_rows() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = [line for line in lines[first : first + 20] if line.startswith("|")]
    length = next((number for number, line in enumerate(lines[first:]) if not line.startswith("|")), len(table))
    assert length - 2 == 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_of_a_document_is_longer_than_150_characters(document: Path) -> None:
    assert [number for number, line in prose(document) if len(line) > 150] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_documents_lead_to_a_heading_that_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", document.read_text())
    targets = [((document.parent / path) if path else document, anchor) for path, anchor in links]
    assert [(path.name, anchor) for path, anchor in targets if anchor not in heading_anchors(path)] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *STUDIES], ids=lambda path: path.name)
def test_documents_use_no_word_that_the_house_avoids(document: Path) -> None:
    assert avoided_words(iter(enumerate(document.read_text().splitlines(), start=1))) == []


@pytest.mark.parametrize("source", WORDINGS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_reports_use_no_word_that_the_house_avoids(source: Path) -> None:
    assert avoided_words(sentences(source)) == []


def test_the_tour_of_the_code_names_every_room() -> None:
    tour = (REPOSITORY / "CONTRIBUTING.md").read_text()
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"api.py", "pipeline.py", "registry.py"}
    assert [room for room in sorted(rooms) if f"`{room}" not in tour] == []
