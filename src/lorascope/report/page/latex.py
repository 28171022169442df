"""Tables as LaTeX: booktabs rules, every cell escaped, split so that no float is longer than a page."""

from __future__ import annotations

import re
import unicodedata

from lorascope.printable import printable
from lorascope.report.page.document import Table

_ROWS_A_PAGE = 38

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "²": r"$^2$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "α": r"$\alpha$",
    "η": r"$\eta$",
    "Δ": r"$\Delta$",
    "‖": r"$\|$",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\ldots{}",
    "\u00a0": "~",
}
_SPECIAL['"'] = "''"  # \textquotedbl needs T1 fonts, which a plain document does not load


def escape(text: str) -> str:
    """Text that pdfLaTeX sets in any document: specials escaped, a letter it has no glyph for named by its code."""
    return "".join(_SPECIAL.get(character) or _letter(character) for character in re.sub(r"\s", " ", printable(text)))


def _letter(character: str) -> str:
    if character == " " or 33 <= ord(character) < 127:
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if "\u00c0" <= character <= "\u017f" and plain:
        return character  # Latin letters with accents: known to LaTeX's own utf8 tables
    return plain or f"[U+{ord(character):04X}]"


def latex_table(table: Table) -> str:
    """One or several `table` environments; needs \\usepackage{booktabs} and nothing else."""
    pages = [table.rows[start : start + _ROWS_A_PAGE] for start in range(0, len(table.rows), _ROWS_A_PAGE)]
    return "\n".join(_page(table, rows, page=number, pages=len(pages)) for number, rows in enumerate(pages or [()], 1))


def _page(table: Table, rows: tuple[tuple[str, ...], ...], *, page: int, pages: int) -> str:
    part = f" (part {page} of {pages})" if pages > 1 else ""
    note = f" {table.note}" if table.note and page == 1 else ""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title + part)}.{escape(note)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.name)}{f'-{page}' if page > 1 else ''}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{@{{}}{_column_types(table)}@{{}}}}",
        r"\toprule",
        " & ".join(escape(column.heading) for column in table.columns) + r" \\",
        r"\midrule",
        # {} keeps a cell that opens with [ or * from being read as an option of the preceding \\
        *("{}" + " & ".join(escape(cell) for cell in row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _column_types(table: Table) -> str:
    """l and r, and a paragraph column where a cell is too long for one line of a page."""
    types = []
    for place, column in enumerate(table.columns):
        longest = max((len(row[place]) for row in table.rows), default=0)
        types.append("r" if column.numeric else r"p{0.28\linewidth}" if longest > 40 else "l")
    return "".join(types)
