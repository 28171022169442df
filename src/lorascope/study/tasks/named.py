"""A task that lorascope, or a plug-in, knows by name: where its examples come from is not left to the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from lorascope.study.tasks.base import TaskBase


class NamedTask(TaskBase):
    """A task lorascope knows: mrpc, sst2, rte, qnli, docstrings."""

    sentences: ClassVar[Mapping[str, str]] = {
        "name": "A registered task (`lorascope ls tasks`).",
        **TaskBase.sentences,
    }

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
