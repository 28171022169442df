"""The templates of this package, and what a Markdown page made from one looks like."""

from __future__ import annotations

import re
from typing import Any

from lorascope.report.page.markdown import markdown_table


def template_environment(*, autoescape: bool) -> Any:
    """jinja2's environment over report/templates. A name that a template misspells is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("lorascope.report", "templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def markdown_page(template: str, **content: Any) -> str:
    """A Markdown template filled in; at most one empty line in a row."""
    templates = template_environment(autoescape=False)
    templates.filters |= {"table": markdown_table, "capitalised": _capitalised}
    text = templates.get_template(template).render(**content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
