"""The tasks a study can name or describe: one torch-free file a kind.

A kind is a name of `registry.TASKS` whose implementation says which settings it takes (`Task.settings`). Kinds of
plug-ins are settings of their own class too; only their plug-in knows it, so they are looked up when a study is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag, TypeAdapter, ValidationError

from lorascope.registry import TASKS, nearest, resolve
from lorascope.study.base import Spec
from lorascope.study.tasks.base import PER_TASK, TaskSettings
from lorascope.study.tasks.classification import FileTask
from lorascope.study.tasks.named import NamedTask


def settings_of(kind: str) -> type[TaskSettings] | None:
    """The class of a kind's settings; None where there is no such kind."""
    if kind not in TASKS:
        return None
    return resolve(TASKS, kind).settings


def _with_own_settings(value: Any) -> Any:
    """The settings of a plug-in's kind in their own class."""
    if not isinstance(value, Mapping):
        return value
    settings = settings_of(str(value["kind"]))
    if settings is None:
        raise ValueError(f"`{value['kind']}` takes no settings: name the task alone")
    try:
        return settings.model_validate(value)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(found) from None


def _branch_of_task(value: Any) -> str:
    """A name alone is a registered task; anything that looks like a field of a file task is one."""
    if isinstance(value, Spec):
        known = isinstance(value, NamedTask | FileTask)
        return f"<{type(value).__name__}>" if known else "<TaskSettings>"
    if not isinstance(value, Mapping):
        return "<NamedTask>"
    kind = value.get("kind")
    if isinstance(kind, str) and kind != "classification" and kind in TASKS:
        return "<TaskSettings>"
    fields = set(FileTask.model_fields) - PER_TASK
    return "<FileTask>" if any(nearest(key, fields) for key in value if key not in PER_TASK) else "<NamedTask>"


def unit_of(task: AnyTask) -> str | None:
    """What the size of an example of this task counts: "token", "image". None for a name that nobody knows."""
    key = task.name if isinstance(task, NamedTask) else task.kind
    return resolve(TASKS, key).reads.unit if key in TASKS else None


def file_fields(task: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a task, as it is written, that name files."""
    kind = task.get("kind")
    settings = settings_of(kind) if isinstance(kind, str) and kind != "classification" else FileTask
    return () if settings is None else settings.files


TaskSpec = Annotated[
    Annotated[FileTask, Tag("<FileTask>")]
    | Annotated[NamedTask, Tag("<NamedTask>")]
    | Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_with_own_settings), Tag("<TaskSettings>")],
    Discriminator(_branch_of_task),
]
AnyTask = NamedTask | TaskSettings


def task_spec(data: Mapping[str, Any]) -> AnyTask:
    """The task that a step's params hold as a dump."""
    return TypeAdapter(TaskSpec).validate_python(dict(data))


def without_paths(task: dict[str, Any]) -> dict[str, Any]:
    """A task's settings with each path replaced by its role: where a file lies does not affect what is computed."""
    roles = file_fields(task)
    return {key: (key if key in roles and value else value) for key, value in task.items()}
