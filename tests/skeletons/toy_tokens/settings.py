"""Settings of `kind: toy-tokens`: prompts with the responses wanted, from a file of the study's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lorascope.study.tasks.base import TaskSettings


class TokensTask(TaskSettings):
    """pairs: JSON lines of {"id", "prompt", "response"}."""

    files: ClassVar[tuple[str, ...]] = ("pairs",)
    sentences: ClassVar[Mapping[str, str]] = {
        "name": "How the study and its report call the task.",
        "kind": "`toy-tokens`.",
        "pairs": "JSON lines with id, prompt and response, relative to the study file.",
    }

    kind: Literal["toy-tokens"]  # type: ignore[assignment] - one of the kinds
    pairs: str
