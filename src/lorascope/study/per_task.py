"""A study as it is for one of its tasks: what the task sets takes precedence over methods, and methods over the study."""

from __future__ import annotations

from typing import Any

from lorascope.study.hyperparameters import with_hyperparameters
from lorascope.study.methods.base import MethodBase
from lorascope.study.spec import Study, TaskSpec
from lorascope.study.tasks.base import PER_TASK
from lorascope.study.train import TrainOverrides, TrainSpec


def study_for(study: Study, task: TaskSpec) -> Study:
    """The study with the protocol, the training and the methods that it has for `task`.

    Raises StudyError for settings of a method that it does not have, or cannot have.
    """
    written = task_settings(task)
    changes: dict[str, Any] = {"protocol": task.protocol or study.protocol}
    if written:
        changes["train"] = TrainSpec.model_validate({**study.train.model_dump(), **written})
    if written or task.methods:
        changes["methods"] = tuple(_method_for(method, task, written) for method in study.methods)
    return study.model_copy(update=changes)


def task_settings(task: TaskSpec) -> dict[str, Any]:
    """Field of `train` -> what the task sets in its place."""
    return {key: value for key, value in task.settings.model_dump().items() if value is not None}


def own_settings(task: TaskSpec) -> str:
    """What a task sets for itself: "sst2: max_length 128, lora: learning_rate 0.0003"; empty where it sets nothing."""
    texts = [f"{key} {value}" for key, value in task_settings(task).items()]
    texts += [f"{name}: {key} {value}" for name, values in task.methods.items() for key, value in values.items()]
    return f"{task.name}: {', '.join(texts)}" if texts else ""


def protocols_in_words(study: Study) -> str:
    """ "protocol strict"; of tasks that differ: "protocols strict (mrpc), resplit (sst2)"."""
    found: dict[str, list[str]] = {}
    for task in study.tasks:
        found.setdefault(task.protocol or study.protocol, []).append(task.name)
    if len(found) == 1:
        return f"protocol {next(iter(found))}"
    named = [f"{name} ({', '.join(tasks)})" for name, tasks in found.items()]
    return f"protocols {', '.join(named)}"


def identity_of(task: TaskSpec) -> dict[str, Any]:
    """The task's literals that its examples depend on, without how it is trained."""
    return task.model_dump(mode="json", exclude=set(PER_TASK - {"name"}))


def _method_for(method: MethodBase, task: TaskSpec, written: dict[str, Any]) -> MethodBase:
    of_method = {key: value for key, value in written.items() if key in TrainOverrides.model_fields}
    train = method.train.model_copy(update=of_method)
    own = with_hyperparameters(method.model_copy(update={"train": train}), task.methods.get(method.name, {}))
    return own.model_copy(update={"hyperparameters": method.hyperparameters})
