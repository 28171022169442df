"""Tables as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from lorascope.report.page.document import Table


def markdown_table(table: Table) -> str:
    """Title, pipe table, note. Marked rows open in bold."""
    lines = [
        _line(column.heading for column in table.columns),
        _line("---:" if column.numeric else "---" for column in table.columns),
    ]
    for place, row in enumerate(table.rows):
        first = f"**{row[0]}**" if place in table.marked else row[0]
        lines.append(_line((first, *row[1:])))
    note = f"\n\n{table.note}" if table.note else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + note


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
