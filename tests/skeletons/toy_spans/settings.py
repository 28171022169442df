"""Settings of `kind: toy-spans`: questions whose answers are spans of a context, from a file of the study's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lorascope.study.tasks.base import TaskSettings


class SpanTask(TaskSettings):
    """questions: JSON lines of {"id", "question", "context", "start", "end"}; start and end count words of the context, both
    ends included, null where it has no answer. longest_answer: in words."""

    files: ClassVar[tuple[str, ...]] = ("questions",)
    sentences: ClassVar[Mapping[str, str]] = {
        "questions": "JSON lines with id, question, context, start and end, relative to the study file.",
        "longest_answer": "The most words that an answer has. Default: 2.",
    }

    kind: Literal["toy-spans"]  # type: ignore[assignment] - one of the kinds
    questions: str
    longest_answer: int = 2
