"""A task rebuilt in a later step from what the `data` step recorded about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.registry import TASKS, resolve
from lorascope.tasks.task import Task


def task_from_result(result: Mapping[str, Any]) -> Task:
    """The task of a `data` artifact, from its `result`. The same in every step and on every machine."""
    return resolve(TASKS, result["task"]["class"]).from_description(result["task"])
