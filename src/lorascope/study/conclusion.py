"""The conclusion of a study: hypotheses joined by `and`, `or`, `not` and parentheses, e.g. "H1a and (H1b or H2)".

A hypothesis is supported (true), refuted (false) or inconclusive (unknown), so the logic is Kleene's
strong three-valued one (Kleene 1952, section 64): unknown and false is false, unknown or true is true,
otherwise unknown stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lorascope.errors import StudyError
from lorascope.registry import nearest

Verdict = Literal["supported", "refuted", "inconclusive"]
_RANK: Mapping[Verdict, int] = {"refuted": 0, "inconclusive": 1, "supported": 2}
_VERDICT: tuple[Verdict, ...] = ("refuted", "inconclusive", "supported")
_TOKEN = re.compile(r"\s*(?:([A-Za-z0-9][A-Za-z0-9_.-]*)|([()])|(\S))")
_WORDS = ("and", "or", "not")
_HINT = "A conclusion joins hypotheses by `and`, `or`, `not` and parentheses, such as `H1a and (H1b or H2)`."
_MAX_DEPTH = 50


@dataclass(frozen=True)
class Expression:
    """operator: "name" (then `name` is set), "not", "and" or "or" (then `operands` are)."""

    operator: str
    name: str = ""
    operands: tuple[Expression, ...] = ()

    def evaluate(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        """The verdict of the whole. verdicts: one for every name in it."""
        if self.operator == "name":
            return verdicts[self.name]
        ranks = [_RANK[operand.evaluate(verdicts)] for operand in self.operands]
        if self.operator == "not":
            return _VERDICT[2 - ranks[0]]
        return _VERDICT[min(ranks) if self.operator == "and" else max(ranks)]

    def names(self) -> tuple[str, ...]:
        """Every hypothesis named, once, in order."""
        if self.operator == "name":
            return (self.name,)
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.names()))


def parse_conclusion(text: str, names: Iterable[str]) -> Expression:
    """The expression `text` states. `not` binds tighter than `and`, `and` tighter than `or`.

    Raises StudyError for anything that is no such expression and for a name that is not among `names`.
    """
    return _Parser(text, tuple(names)).parse()


class _Parser:
    """Recursive descent over (token, column)."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self.text, self.names, self.position, self.depth = text, names, 0, 0
        self.tokens: list[tuple[str, int]] = []
        for match in _TOKEN.finditer(text):
            if match.group(3):
                raise self._error(f"unexpected character {match.group(3)!r} at column {match.start(3) + 1}")
            self.tokens.append((match.group(1) or match.group(2), match.start(match.lastindex or 0) + 1))

    def parse(self) -> Expression:
        if not self.tokens:
            raise self._error("it is empty")
        expression = self._either()
        if self.position < len(self.tokens):
            token, column = self.tokens[self.position]
            raise self._error(f"unexpected {token!r} at column {column}")
        return expression

    def _either(self) -> Expression:
        return self._joined("or", self._both)

    def _both(self) -> Expression:
        return self._joined("and", self._single)

    def _joined(self, word: str, operand) -> Expression:
        operands = [operand()]
        while self._take(word):
            operands.append(operand())
        return operands[0] if len(operands) == 1 else Expression(word, operands=tuple(operands))

    def _single(self) -> Expression:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._error(f"it is nested more than {_MAX_DEPTH} deep")
        try:
            if self._take("not"):
                return Expression("not", operands=(self._single(),))
            if self._take("("):
                inner = self._either()
                if not self._take(")"):
                    raise self._error("a parenthesis is not closed")
                return inner
            return self._name()
        finally:
            self.depth -= 1

    def _name(self) -> Expression:
        if self.position == len(self.tokens):
            raise self._error("it ends where a hypothesis is expected")
        token, column = self.tokens[self.position]
        if token in ("(", ")") or token.lower() in _WORDS:
            raise self._error(f"found {token!r} at column {column} where a hypothesis is expected")
        if token not in self.names:
            known = f"Declared hypotheses: {', '.join(self.names) or 'none'}."
            close = nearest(token, self.names)
            raise self._error(
                f"it names {token!r}, which is not a hypothesis of this study",
                hint=known + (f" Did you mean {close!r}?" if close else ""),
            )
        self.position += 1
        return Expression("name", name=token)

    def _take(self, word: str) -> bool:
        if self.position < len(self.tokens) and self.tokens[self.position][0].lower() == word:
            self.position += 1
            return True
        return False

    def _error(self, problem: str, *, hint: str = _HINT) -> StudyError:
        return StudyError(f"the conclusion {self.text!r} cannot be read: {problem}", hint=hint, where="conclusion")
