"""Text and tables as GitHub-flavoured Markdown.

Two marks are ours, `code` and **strong**, and stay; what else Markdown would take for markup is shown as it stands, because our
sentences contain the words of users: no HTML, no links or images, no headings, and no characters that a terminal obeys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lorascope.printable import markdown_line, printable
from lorascope.report.page.document import Table

_BLOCK = re.compile(r"^(#{1,6}(?=\s|$)|>|[-+*](?=\s)|\d+[.)](?=\s)|~~~|={3,}$|-{3,}$)")


class Markdown(str):
    """Text that is Markdown already."""


def markdown_text(text: str) -> Markdown:
    """One paragraph: a text as it is to be read, in one line."""
    found = markdown_line(text)
    return Markdown(_BLOCK.sub(lambda match: f"&#{ord(match[0][0])};{match[0][1:]}", found))


def markdown_code(text: str) -> Markdown:
    """A text between backticks, without those of its own."""
    return Markdown(f"`{' '.join(printable(text).replace('`', chr(39)).split())}`")


def markdown_value(value: Any) -> Any:
    """What stands for a value in a template: texts are escaped, unless they are Markdown already."""
    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Markdown) else value


def markdown_table(table: Table) -> Markdown:
    """Title, pipe table, note. Marked rows open in bold."""
    lines = [
        _line(_cell(column.heading) for column in table.columns),
        _line("---:" if column.numeric else "---" for column in table.columns),
    ]
    for place, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row]
        first = f"**{cells[0]}**" if place in table.marked else cells[0]
        lines.append(_line((first, *cells[1:])))
    note = f"\n\n{markdown_text(table.note)}" if table.note else ""
    return Markdown(f"**{markdown_text(table.title)}**\n\n" + "\n".join(lines) + note)


def _cell(text: str) -> str:
    return markdown_line(text).replace("|", "\\|")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
