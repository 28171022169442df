"""The words of users leave as words: in Markdown, LaTeX, HTML and on the console."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lorascope.engine.events import Notice, StepFailed
from lorascope.engine.failure import Failure
from lorascope.errors import StudyError
from lorascope.printable import printable
from lorascope.report.page import latex
from lorascope.report.page.document import Column, Table
from lorascope.report.page.markdown import markdown_code, markdown_table, markdown_text
from lorascope.report.page.templating import template_environment
from lorascope.tracking.console import PlainLines

ATTACK = (
    "</title><script>document.title='ran'</script> ![x](http://example.invalid/t.png) [c](javascript:alert(1)) `code` **b** "
    "\\input{x} \x1b]0;title\x07\x1b[31mred \u202eevil | cell\u2028<img src=x onerror=alert(1)> [r]: http://x [a][r] <http://x>"
)
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028]")
MARKUP = re.compile(r"<[a-z/!]|\]\(|\]\[|\]:|://|javascript:", re.IGNORECASE)


def table(text: str) -> Table:
    return Table("t", text, (Column(text), Column("n", True)), ((text, "1"), ("[0.1, 0.2]", text)), note=text)


def test_markdown_shows_what_users_wrote_and_obeys_none_of_it():
    for text in (markdown_text(ATTACK), markdown_table(table(ATTACK))):
        outside = re.sub(r"(?<!`)`[^`]+`(?!`)", "", text)
        assert not MARKUP.search(outside) and not OBEYED.search(text)
        assert "document.title='ran'" in text and "`code` **b**" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.91 [0.90, 0.93], `train.epochs` and **bold**", "0.91 [0.90, 0.93], `train.epochs` and **bold**"),
        ("# no heading", "&#35; no heading"),
        ("- no item", "&#45; no item"),
        ("12. no item", "&#49;2. no item"),
        ("> no quote", "&#62; no quote"),
        ("a\n\n# b", "a # b"),
        ("&lt;b&gt; & c", "&amp;lt;b&amp;gt; & c"),
        ("```<b>`", "&#96;&#96;&#96;&lt;b>&#96;"),
        ("\\`<b>`", "&#92;`<b>`"),
        ("latency_p95 at 5*3", "latency_p95 at 5*3"),
    ],
)
def test_our_own_marks_stay_and_others_are_shown(text, expected):
    assert markdown_text(text) == expected


def test_code_has_no_backticks_of_its_own():
    assert markdown_code("a`b\nc\x1b") == "`a'b c\ufffd`"


def test_a_cell_never_ends_a_row():
    lines = markdown_table(table(ATTACK)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_latex_holds_no_command_and_no_control_byte():
    text = latex.latex_table(table(ATTACK))
    assert not OBEYED.search(text) and r"\input" not in text and "[U+FFFD]" in text


def test_html_holds_no_control_byte_and_no_element_of_a_users():
    page = template_environment(autoescape=True).from_string("<p>{{ text }}</p>").render(text=ATTACK)
    assert not OBEYED.search(page) and set(re.findall(r"<[a-z/]+", page)) == {"<p", "</p"}


def test_the_console_shows_events_without_obeying_them():
    stream = io.StringIO()
    lines = PlainLines(Console(file=stream, width=400))
    lines(Notice(level="warning", text=ATTACK))
    lines(StepFailed(step="train-x", error="E", text=f"[link=http://x]{ATTACK}"))
    assert not OBEYED.search(stream.getvalue()) and "document.title='ran'" in stream.getvalue()


def test_errors_and_failures_carry_no_control_bytes():
    error = StudyError(f"no {ATTACK}", hint=ATTACK, where="study.yaml\x1b:1")
    assert not OBEYED.search(str(error))
    assert not OBEYED.search(Failure.of("train-x", error).text)
    failure = Failure.of("train-x", ValueError(ATTACK))
    assert not OBEYED.search(failure.text + (failure.traceback or ""))
    old = Failure("train-x", "builtins:ValueError", ATTACK)
    assert not OBEYED.search(old.text)


def test_lines_tabs_and_letters_of_all_scripts_stay():
    text = "a\tb\nc é 中文 עברית 👩‍💻 −5 ±"
    assert printable(text) == text
