"""What must hold of a task beyond its shape: settings that it may have, and that have an effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorascope.errors import StudyError
from lorascope.registry import nearest
from lorascope.study.hyperparameters import checked_value, searchable
from lorascope.study.loading.document import Mistake, dotted
from lorascope.study.methods.base import MethodBase
from lorascope.study.per_task import task_settings
from lorascope.study.spec import Study, TaskSpec
from lorascope.study.tasks import FileTask, NamedTask, unit_of
from lorascope.study.tasks.classification import positive_problem

HAS_A_VALIDATION_SET = frozenset({"mrpc", "docstrings"})
"""Named tasks that carve nothing out of train under `strict`."""


def check_tasks(study: Study) -> Iterator[Mistake]:
    """Every mistake in the tasks that can be seen without their data."""
    for index, task in enumerate(study.tasks):
        yield from _splits(study, task, index)
        yield from _settings(study, task, index)
        yield from _methods(study, task, index)
        if isinstance(task, FileTask):
            yield from _files(task, index)
            yield from _positive(study, task, index)


def carves(study: Study, task: TaskSpec) -> bool:
    """Whether a split is carved out of train; a kind that only a plug-in knows may do so."""
    protocol = task.protocol or study.protocol
    if isinstance(task, FileTask):
        return protocol == "resplit" or task.validation is None or task.test is None
    if not isinstance(task, NamedTask) or protocol == "resplit":
        return True
    return protocol == "strict" and task.name not in HAS_A_VALIDATION_SET


def _splits(study: Study, task: TaskSpec, index: int) -> Iterator[Mistake]:
    resplit = task.protocol == "resplit"
    if resplit and task.test_rows is None:
        text = f"tasks[{index}]: `protocol: resplit` carves a test set, and nothing says how large"
        yield Mistake(("tasks", index, "protocol"), text, "add `test_rows`, such as 2000")
    if not resplit and task.test_rows is not None:
        protocol = task.protocol or study.protocol
        text = f"tasks[{index}].test_rows has no effect: under `protocol: {protocol}` it does not decide the test set"
        yield Mistake(("tasks", index, "test_rows"), text, "remove it, or add `protocol: resplit`")
    if isinstance(task, FileTask) and task.protocol in ("strict", "paper"):
        text = f"tasks[{index}].protocol has no effect: your own files are split in one way under `strict` and `paper`"
        yield Mistake(("tasks", index, "protocol"), text, "remove it, or use `resplit`")
    if study.search is not None and study.protocol != "paper" and task.protocol == "paper":
        text = f"tasks[{index}].protocol: under `paper` trials would be chosen on the test set"
        yield Mistake(("tasks", index, "protocol"), text, "remove it, or `search`")


def _settings(study: Study, task: TaskSpec, index: int) -> Iterator[Mistake]:
    for name in task_settings(task):
        why = _without_effect(study, task, name)
        if why is not None:
            key = ("tasks", index, "settings", name)
            yield Mistake(key, f"{dotted(key)} has no effect: {why}", "remove it")
    train = {**study.train.model_dump(), **task_settings(task)}
    for method in study.methods:
        own = {key: value for key, value in method.train.model_dump().items() if value is not None}
        sizes = {**study.train.model_dump(), **own, **task_settings(task), **task.methods.get(method.name, {})}
        batch, micro = sizes["batch_size"], sizes["micro_batch_size"]
        if (task_settings(task) or task.methods) and micro and isinstance(batch, int) and batch % micro:
            text = (
                f"tasks[{index}]: batch_size {batch} of `{method.name}` is not a multiple of micro_batch_size {micro}"
            )
            yield Mistake(
                ("tasks", index), text, "the task's settings take precedence over the study's, field by field"
            )
            return
    stops = "early_stopping" in study.train.model_fields_set and study.train.early_stopping
    if stops and task_settings(task) and train["epochs"] * train["evaluations_per_epoch"] <= 1:
        text = f"tasks[{index}].settings: there is one evaluation, so `train.early_stopping` has nothing to stop"
        yield Mistake(("tasks", index, "settings"), text, "raise `evaluations_per_epoch` or `epochs`")


def _without_effect(study: Study, task: TaskSpec, name: str) -> str | None:
    if name == "max_length" and unit_of(task) not in ("token", None):
        return "it cuts texts, and the task has none"
    if all(name in task.methods.get(method.name, {}) for method in study.methods):
        return "every method has its own in `methods` of the task"
    if all(name in _searched(study, method) for method in study.methods):
        return "the search sets it for every method"
    return None


def _searched(study: Study, method: MethodBase) -> Mapping[str, Any]:
    if study.search is None or method.hyperparameters is not None:
        return {}
    return study.search.of(method.name, method.kind)


def _methods(study: Study, task: TaskSpec, index: int) -> Iterator[Mistake]:
    methods = {method.name: method for method in study.methods}
    for name, values in task.methods.items():
        key = ("tasks", index, "methods", name)
        if name not in methods:
            match = nearest(name, methods)
            meant = f": did you mean `{match}`?" if match else ""
            text = f"tasks[{index}].methods: the study has no method `{name}`{meant}"
            yield Mistake(key, text, f"its methods: {', '.join(methods)}")
            continue
        if not values:
            yield Mistake(key, f"{dotted(key)} has no effect: it sets nothing", "remove it")
        for setting, value in values.items():
            yield from _method_setting(study, methods[name], setting, value, key=(*key, setting))


def _method_setting(
    study: Study, method: MethodBase, setting: str, value: Any, *, key: tuple[str | int, ...]
) -> Iterator[Mistake]:
    known = searchable(method.kind)
    if setting not in known:
        match = nearest(setting, known)
        meant = f": did you mean `{match}`?" if match else ""
        fixed = setting in type(method).model_fields
        found = "is the same for every task of a study" if fixed else f"is not a setting of `{method.kind}`{meant}"
        yield Mistake(key, f"{dotted(key)}: `{setting}` {found}", f"a task may set {', '.join(known)}")
        return
    try:
        checked_value(setting, value, kind=method.kind)
    except StudyError as error:
        yield Mistake(key, f"{dotted(key[:-1])}: {error.message}", error.hint)
        return
    if setting in _searched(study, method):
        yield Mistake(
            key, f"{dotted(key)} has no effect: the search sets it", "remove it, or take it out of `search.space`"
        )


def _files(task: FileTask, index: int) -> Iterator[Mistake]:
    if "duplicates" in task.model_fields_set and task.validation is None and task.test is None:
        text = f"tasks[{index}].duplicates has no effect: there is one file, out of which all splits are carved"
        yield Mistake(("tasks", index, "duplicates"), text, "remove it: such duplicates are always taken out of train")
    elif "duplicates" in task.model_fields_set and task.protocol == "resplit":
        text = f"tasks[{index}].duplicates has no effect: under `protocol: resplit` equal examples stay in one split"
        yield Mistake(("tasks", index, "duplicates"), text, "remove it")


def _positive(study: Study, task: FileTask, index: int) -> Iterator[Mistake]:
    """The class that F1 looks for, where F1 is reported or claimed."""
    claims = [name for name, claim in study.hypotheses.items() if getattr(claim, "on", None) == "f1"]
    wanted = "f1" in task.metrics or bool(claims)
    if task.positive is not None and not wanted:
        text = (
            f"tasks[{index}].positive has no effect: only F1 looks for a class, and it is not among the task's metrics"
        )
        yield Mistake(("tasks", index, "positive"), text, "remove it, or add f1 to `metrics`")
    elif wanted and task.class_names is not None:
        problem = positive_problem(task, task.class_names)
        if problem is not None:
            where = "labels" if task.positive is None else "positive"
            yield Mistake(("tasks", index, where), f"tasks[{index}]: {problem[0]}", problem[1])
    elif claims and task.positive is None and "f1" not in task.metrics:
        text = f"hypotheses.{claims[0]}: it is about F1, which tasks[{index}] does not report"
        yield Mistake(
            ("hypotheses", claims[0], "on"), text, "add f1 to the task's `metrics`, or name the class: `positive`"
        )
