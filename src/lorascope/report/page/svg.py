"""Figures as files and as inline SVG that follows the page: colours become CSS variables, ids become unique."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING

from lorascope.report.page import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG_DPI = 200


def figure_bytes(figure: Figure, format: str) -> bytes:
    """PNG or PDF on white, SVG transparent; the same figure gives the same bytes (no dates, no random ids)."""
    import matplotlib

    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[format]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lorascope", "svg.fonttype": "none", "pdf.fonttype": 42}):
        background = "none" if format == "svg" else "white"
        figure.savefig(buffer, format=format, dpi=_PNG_DPI, metadata=metadata, facecolor=background)
    return buffer.getvalue()


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """The <svg> element alone. prefix: keeps the ids of several figures apart. label: read out by screen readers."""
    text = figure_bytes(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|(?<=>)\s+(?=<)", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(label)}">'
    )
    text = re.sub(r"<svg[^>]*>", opening, text, count=1)
    for name, tint in canvas.NEUTRALS.items():
        text = text.replace(tint, f"var(--{name})")
    for place, tint in enumerate(canvas.METHOD_COLOURS):
        text = text.replace(tint, f"var(--method-{place})")
    return text


def colour_variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--method-{place}: {tint};" for place, tint in enumerate(colours))
