"""Conclusions: what they mean, and what is said about those that cannot be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lorascope.errors import StudyError
from lorascope.study.conclusion import parse_conclusion

NAMES = ("H1a", "H1b", "H2")
VERDICTS = {"H1a": "supported", "H1b": "refuted", "H2": "inconclusive"}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("H1a", "supported"),
        ("not H1a", "refuted"),
        ("not H2", "inconclusive"),
        ("H1a and H2", "inconclusive"),
        ("H1b and H2", "refuted"),
        ("H1a or H2", "supported"),
        ("H1b or H2", "inconclusive"),
        ("H1a and (H1b or H2)", "inconclusive"),
        ("H1a or H1b and H1b", "supported"),
        ("not H1b AND H1a", "supported"),
    ],
)
def test_three_valued_logic(text, verdict):
    assert parse_conclusion(text, NAMES).evaluate(VERDICTS) == verdict


def test_names_are_listed_once_in_order():
    assert parse_conclusion("H2 and (H1a or H2)", NAMES).names() == ("H2", "H1a")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("H1a and", "it ends where a hypothesis is expected"),
        ("(H1a or H2", "a parenthesis is not closed"),
        ("H1a H2", "unexpected 'H2' at column 5"),
        ("H1a & H2", "unexpected character '&' at column 5"),
        ("or H1a", "found 'or' at column 1 where a hypothesis is expected"),
        ("__import__('os')", "unexpected character '_' at column 1"),
        ("(" * 80 + "H1a" + ")" * 80, "it is nested more than 50 deep"),
    ],
)
def test_unreadable_conclusions_say_where(text, problem):
    with pytest.raises(StudyError) as error:
        parse_conclusion(text, NAMES)
    assert error.value.message == f"the conclusion {text!r} cannot be read: {problem}"


def test_an_unknown_hypothesis_names_the_nearest():
    with pytest.raises(StudyError) as error:
        parse_conclusion("H1a and H1c", NAMES)
    assert str(error.value) == (
        "conclusion: the conclusion 'H1a and H1c' cannot be read: it names 'H1c', which is not a hypothesis of this study\n"
        "  hint: Declared hypotheses: H1a, H1b, H2. Did you mean 'H1b'?"
    )


def test_importing_it_loads_no_numeric_library():
    code = "import lorascope.stats, lorascope.study.conclusion, sys; assert not {'numpy', 'pandas', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
