"""A task that lorascope, or a plug-in, knows by name: nothing about it is left to the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from lorascope.study.base import Name, Spec


class NamedTask(Spec):
    """A task lorascope knows: mrpc, sst2, rte, docstrings."""

    sentences: ClassVar[Mapping[str, str]] = {"name": "A registered task (`lorascope ls tasks`)."}

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
