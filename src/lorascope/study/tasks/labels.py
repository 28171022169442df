"""How classes are spelled, in which order they come, and which of two F1 looks for.

The one rule: a label means the same class in every format. csv knows only texts, so a text that spells a whole number is
that number (`1`, `1.0`), and one that spells a truth value is that value (`True`, `TRUE`, `true`). Anything else is a
class by its own spelling, letters with accents in their composed form. The order depends on the classes alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0+)?")
_FRACTION = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_EXACT = 2**53
"""Beyond it, a number with a point no longer tells neighbouring whole numbers apart."""

# First the class that F1 leaves out, then the one that it looks for.
CONVENTIONS = frozenset(
    {("0", "1"), ("-1", "1"), ("false", "true"), ("no", "yes"), ("n", "y"), ("neg", "pos"), ("negative", "positive")}
)


def class_name(value: object) -> str:
    """The class that a label means: 1, 1.0, "1" and "1.0" are `1`; true and "True" are `true`; " spam" is `spam`.

    Raises ValueError for a value that is not a class: a fraction, a date, a list.
    """
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal) and value == value and abs(value) < _EXACT and value == int(value):
        return str(int(value))
    if isinstance(value, str):
        return _class_of_text(unicodedata.normalize("NFC", value.strip()))
    raise ValueError(value)


def _class_of_text(text: str) -> str:
    if whole := _WHOLE.fullmatch(text):
        return "0" if whole[1] == "-0" else whole[1]
    if _FRACTION.fullmatch(text):
        raise ValueError(text)
    return text.lower() if text.lower() in ("true", "false") else text


def label_order(names: Iterable[str]) -> tuple[str, ...]:
    """These classes in a fixed order: whole numbers by value, anything else by spelling. names: of `class_name`."""
    found = set(names)
    if all(_WHOLE.fullmatch(name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def says_positive(labels: Sequence[str]) -> bool:
    """Whether the names of two classes say which one F1 looks for, and it is the second."""
    return tuple(label.lower() for label in labels) in CONVENTIONS


def with_positive(labels: Sequence[str], positive: str) -> tuple[str, ...]:
    """Two classes with the one that F1 looks for as the second."""
    return tuple(sorted(labels, key=lambda label: label == positive))


def f1_title(labels: Sequence[str]) -> str:
    """What F1 is the F1 of, by the classes of a task: "F1 (fraud)", or "macro F1" of more than two classes."""
    return f"F1 ({labels[1]})" if len(labels) == 2 else "macro F1"
