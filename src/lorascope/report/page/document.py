"""The blocks a report is made of, independent of any output format: paragraphs, bullet lists, tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """heading: with the unit in it. numeric: aligned right."""

    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """name: file stem of its .tex. rows: cells as text. marked: indices of rows to be seen first (failures)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    marked: frozenset[int] = frozenset()
    kind: str = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), f"table {self.name}: {len(row)} cells, {len(self.columns)} columns"


@dataclass(frozen=True)
class Illustration:
    """name: file stem. draw: width in inches -> figure; it is drawn once wide (page) and once narrow (phone)."""

    name: str
    title: str
    caption: str
    draw: Callable[[float], Figure]
    kind: str = "figure"


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]
    kind: str = "bullets"


Block = Table | Illustration | Paragraph | Bullets


@dataclass(frozen=True)
class Section:
    """anchor: its id in the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """One hypothesis in the executive summary. verdict: supported, refuted or inconclusive."""

    name: str
    verdict: str
    claim: str
    answer: str
    parts: Table | None
    would_decide: str


@dataclass(frozen=True)
class Document:
    """A whole report. summary: sentences that stand before the hypotheses (what ran, what did not)."""

    title: str
    question: str
    subtitle: str
    summary: tuple[str, ...]
    cards: tuple[Card, ...]
    conclusion: tuple[str, str] | None
    sections: tuple[Section, ...]

    @property
    def tables(self) -> list[Table]:
        """All of them, those of the hypotheses included."""
        parts = [card.parts for card in self.cards if card.parts]
        return parts + [block for section in self.sections for block in section.blocks if isinstance(block, Table)]

    @property
    def illustrations(self) -> list[Illustration]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Illustration)]
