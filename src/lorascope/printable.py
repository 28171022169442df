"""Texts of users as they may leave: without what a terminal or a page would obey instead of showing.

Names, questions, labels and error texts come from files that somebody else wrote. An escape sequence in one sets the title or
the colours of a terminal, and a direction mark makes a reader see other words than there are. Each such character is replaced
by U+FFFD, so that one sees that something was there.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction marks, embeddings, overrides and isolates
    "\u2028\u2029\ufff9-\ufffb\ud800-\udfff"  # separators of lines, annotations, halves of characters
    "\U000e0000-\U000e007f]"  # tags, which nothing shows
)
_UNSEEN = re.compile("[\u00ad\u180e\u200b\u2060-\u2064\ufeff]")
"""Characters without a width. Joiners (U+200C, U+200D) are not among them: words and emoji are written with them."""
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ENTITIES = {"\\": "&#92;", "<": "&lt;", "`": "&#96;"}


def printable(text: str) -> str:
    """The text with every character that would be obeyed replaced by U+FFFD. Lines and tabs stay."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))


def unseen_character(text: str) -> str | None:
    """The first character of the text that would be obeyed, or that nothing shows, other than a space."""
    found = _OBEYED.search(text) or _UNSEEN.search(text)
    return found[0] if found else None


def markdown_line(text: str) -> str:
    """The text in one line of Markdown: everything but `code` and **strong** escaped, so that it is shown as it stands. Only
    a single backtick on either side makes code: of longer rows Markdown has rules of its own."""
    parts = _CODE.split(" ".join(printable(text).split()))
    return "".join(f"`{part}`" if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(text: str) -> str:
    """Entities rather than backslashes, which a table would take for its own. Brackets stay where no link can begin: most of
    them are intervals."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = "".join(_ENTITIES.get(letter, letter) for letter in text)
    text = re.sub(r"\](?=[(\[:])", "&#93;", text)
    return re.sub(r"(?i)(?<=javascript):|:(?=//)", "&#58;", text)
