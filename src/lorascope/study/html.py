"""Tables of HTML for notebooks. Every text is escaped: a study's words are a person's, not markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_page(title: str, *parts: str) -> str:
    """A title above parts, each HTML already."""
    return f"<div><strong>{html.escape(title)}</strong>{''.join(parts)}</div>"


def html_line(text: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(text)}</p>"


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table. Cells are written as text."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
