"""The templates of this package, and what a Markdown page made from one looks like."""

from __future__ import annotations

import re
from typing import Any

from lorascope.printable import printable
from lorascope.report.page.markdown import Markdown, markdown_code, markdown_table, markdown_value


def template_environment(*, autoescape: bool) -> Any:
    """jinja2's environment over report/templates, for HTML (autoescape) or Markdown: every value is escaped on its way into
    the page. A name that a template misspells is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("lorascope.report", "templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=_shown if autoescape else markdown_value,
    )


def _shown(value: Any) -> Any:
    """A text without characters that would be obeyed, of its own type: what is HTML already stays so."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def markdown_page(template: str, **content: Any) -> str:
    """A Markdown template filled in; at most one empty line in a row."""
    templates = template_environment(autoescape=False)
    templates.filters |= {
        "table": markdown_table, "code": markdown_code, "capitalised": _capitalised, "alt": _alt,
    }  # fmt: skip
    text = templates.get_template(template).render(**content)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _alt(text: str) -> Markdown:
    """The description of an image, which ends at a bracket."""
    return Markdown(markdown_value(text).replace("[", "&#91;").replace("]", "&#93;"))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
