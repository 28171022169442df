"""Write the report of one analysis artifact. The one entry point of this package.

Files are written next to their target and renamed, so a reader never sees half a file, and the same artifact always
gives the same bytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.report.page import canvas, latex, svg
from lorascope.report.page.document import Document, Illustration
from lorascope.report.page.facts import read_facts
from lorascope.report.page.files import write_whole as write_whole
from lorascope.report.page.templating import markdown_page, template_environment
from lorascope.report.study.sections import build_document
from lorascope.stats.drift.draws import DRAWS

if TYPE_CHECKING:
    from markupsafe import Markup


NEEDED = ("measurements.parquet", "analysis.json", "facts.json", "curves.parquet")
FURTHER = (DRAWS, "serving.parquet")
"""Draws of the bootstrap, where drift was measured; the figures of serving, where an older version served."""


def render_report(analysis_dir: Path, directory: Path) -> Path:
    """Render `analysis_dir` into `directory` (results/<study>/, made if absent) and return the path of report.html.

    analysis_dir holds NEEDED, and of FURTHER what there is. Writes ANALYSIS_REPORT.md, report.html, figures/*.png and *.pdf,
    tables/*.tex, and copies what it was made from, so that the statistics can be redone from `directory` alone. Files of
    other names are left alone. Raises FileNotFoundError for a missing input, before anything is written.
    """
    copies = {name: (analysis_dir / name).read_bytes() for name in NEEDED}
    further = (analysis_dir / name for name in FURTHER)
    copies |= {path.name: path.read_bytes() for path in further if path.exists()}
    document = build_document(read_facts(analysis_dir))
    drawn = {illustration.name: _draw(illustration) for illustration in document.illustrations}
    for name, forms in drawn.items():
        for ending in ("png", "pdf"):
            write_whole(directory / "figures" / f"{name}.{ending}", forms[ending])
    for table in document.tables:
        write_whole(directory / "tables" / f"{table.name}.tex", latex.latex_table(table).encode())
    for name, content in copies.items():
        write_whole(directory / name, content)
    write_whole(directory / "ANALYSIS_REPORT.md", _markdown(document).encode())
    page = directory / "report.html"
    write_whole(page, _html(document, drawn).encode())
    return page


def _draw(illustration: Illustration) -> dict[str, Any]:
    """The wide drawing as files and SVG, and the narrow one as SVG for phones."""
    label = illustration.title
    wide = illustration.draw(canvas.WIDE)
    narrow = illustration.draw(canvas.NARROW)
    inlined = {
        "wide": svg.inline_svg(wide, prefix=f"{illustration.name}-w", label=label),
        "narrow": svg.inline_svg(narrow, prefix=f"{illustration.name}-n", label=label),
    }
    alone = canvas.with_caption(wide, title=label, caption=illustration.caption)
    return {**inlined, "png": svg.figure_bytes(alone, "png"), "pdf": svg.figure_bytes(alone, "pdf")}


def _markdown(document: Document) -> str:
    return markdown_page("report.md.j2", document=document)


def _html(document: Document, drawn: dict[str, dict[str, Any]]) -> str:
    templates = template_environment(autoescape=True)
    templates.filters["inline"] = _inline
    return templates.get_template("report.html.j2").render(document=document, drawn=drawn, css=_style())


def _style() -> Markup:
    """The style sheet with the figures' method colours filled in."""
    from importlib.resources import files

    from markupsafe import Markup

    css = (files("lorascope.report") / "templates" / "report.css").read_text(encoding="utf-8")
    css = css.replace("LIGHT_METHODS", svg.colour_variables(canvas.METHOD_COLOURS))
    return Markup(css.replace("DARK_METHODS", svg.colour_variables(canvas.METHOD_COLOURS_DARK)))


def _inline(text: str) -> Markup:
    """The two marks that our own sentences use, `code` and **strong**, as HTML; everything else is escaped."""
    from markupsafe import Markup, escape

    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked))
