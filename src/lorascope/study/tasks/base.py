"""What settings of a task with a kind share: a task that a study describes, and does not only name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lorascope.study.base import Name, Spec


class TaskSettings(Spec):
    """Settings of a task of some kind. name: how the study calls it. kind: a name of `registry.TASKS`.

    files: the fields that name files, relative to the study's file. sentences: what each field is, for people.
    """

    files: ClassVar[tuple[str, ...]] = ()
    sentences: ClassVar[Mapping[str, str]] = {}

    name: Name
    kind: str
