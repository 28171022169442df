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


def printable(text: str) -> str:
    """The text with every character that would be obeyed replaced by U+FFFD. Lines and tabs stay."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))
