"""What must hold of a study beyond the shape of its file: names that exist, no doubles, nothing without effect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import StudyError
from lorascope.metrics.quality import QUALITY
from lorascope.registry import MODELS, TASKS, nearest, resolve
from lorascope.study.checks.search import check_search
from lorascope.study.checks.serving import check_overhead, check_serving
from lorascope.study.checks.tasks import carves, check_tasks
from lorascope.study.conclusion import parse_conclusion
from lorascope.study.hyperparameters import given_hyperparameters
from lorascope.study.hypothesis import BASELINES, Overhead
from lorascope.study.loading.document import Mistake
from lorascope.study.loading.overrides import item_name
from lorascope.study.methods.base import MethodBase
from lorascope.study.spec import PathSource, Study
from lorascope.study.tasks import unit_of
from lorascope.study.tasks.base import PER_TASK, TaskSettings

_OWN_TASK = "for your own data give {name, kind: classification, train: FILE, text: COLUMN, label: COLUMN}"
_OWN_MODEL = "for any other give {name, source: {hub: OWNER/NAME, revision: COMMIT}} or {name, source: {path: DIR}}"


def check_names(data: dict[str, Any]) -> Iterator[Mistake]:
    """Models and tasks given by name alone that nobody has registered. data: the study before validation."""
    tasks = [name for name, task in TASKS.loaded().items() if task.settings is None]
    for table, known, remedy in ((MODELS, list(MODELS), _OWN_MODEL), (TASKS, tasks, _OWN_TASK)):
        key = table.kind
        items = data.get(key)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            own = {"name"} if table is MODELS else PER_TASK
            name_alone = isinstance(item, str) or (isinstance(item, dict) and set(item) <= own)
            name = item_name(item)
            if name_alone and name is not None and name not in known:
                match = nearest(name, known)
                meant = f": did you mean `{match}`?" if match else ""
                hint = f"registered: {', '.join(known)}; {remedy}"
                problem = table.problems.get(name, f"unknown {table.noun} `{name}`{meant}")
                yield Mistake((key, index), f"{key}[{index}]: {problem}", hint)


def check_study(study: Study) -> Iterator[Mistake]:
    """Every mistake that can be seen without data or a model."""
    yield from _doubles("models", [model.name for model in study.models], "give one of them another `name`")
    yield from _doubles("tasks", [task.name for task in study.tasks], "give one of them another `name`")
    yield from _doubles("methods", [method.name for method in study.methods], "give each its own `name`")
    yield from _doubles("seeds", [seed.label for seed in study.seeds], "the same seed twice is one observation")
    yield from _doubles("track", [tracker.kind for tracker in study.track], "each tracker shows the whole study once")
    yield from _reserved_names(study)
    yield from _same_methods(study)
    for index, task in enumerate(study.tasks):
        if isinstance(task, TaskSettings) and task.name in TASKS:
            text = f"tasks[{index}]: `{task.name}` is the name of a task that lorascope knows"
            yield Mistake(("tasks", index, "name"), text, "give your own data another `name`")
    yield from check_tasks(study)
    for index, method in enumerate(study.methods):
        yield from _micro_batches(study, method, index)
    if study.search is not None:
        yield from check_search(study, study.search)
    if study.measure.serving is not None:
        yield from check_serving(study, study.measure.serving)
    yield from _hypotheses(study)
    yield from _conclusion(study)
    yield from _without_effect(study)


def _doubles(key: str, names: Sequence[str], hint: str) -> Iterator[Mistake]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Mistake((key, index), f"{key}[{index}]: `{name}` is there twice", hint)


def _reserved_names(study: Study) -> Iterator[Mistake]:
    """Baselines stand in hypotheses under their names, so no method may have one."""
    for index, method in enumerate(study.methods):
        if method.name in BASELINES:
            text = f"methods[{index}]: `{method.name}` is the name of a baseline"
            yield Mistake(("methods", index), text, f"give the method another name; reserved: {', '.join(BASELINES)}")


def _same_methods(study: Study) -> Iterator[Mistake]:
    """Methods that differ in nothing but their names: their runs would be one and the same."""
    settings: list[dict[str, Any]] = []
    for index, method in enumerate(study.methods):
        own = {key: value for key, value in method.train.model_dump().items() if value is not None}
        train = {**study.train.model_dump(), **own}
        space = study.search.space_of(method) if study.search else None
        settings.append({**method.model_dump(exclude={"name", "train"}), "train": train, "space": space})
        first = settings.index(settings[-1])
        if first < index and study.methods[first].name != method.name:
            text = f"methods[{index}]: `{method.name}` differs from `{study.methods[first].name}` in its name only"
            yield Mistake(("methods", index), text, "their runs would be the same: change a setting, or remove one")


def check_files(study: Study) -> Iterator[Mistake]:
    """Files and directories that the study names and that are not on this machine."""
    for index, task in enumerate(study.tasks):
        for role in task.files if isinstance(task, TaskSettings) else ():
            path = getattr(task, role)
            if path is not None and not os.path.isfile(path):
                yield _absent(("tasks", index, role), Path(path), wanted="file")
    for index, model in enumerate(study.models):
        if isinstance(model.source, PathSource) and not os.path.isdir(model.source.path):
            yield _absent(("models", index, "source", "path"), Path(model.source.path), wanted="directory")
    yield from _hyperparameters(study)
    drift = study.measure.drift
    if drift is not None and drift.text is not None and not os.path.isfile(drift.text):
        yield _absent(("measure", "drift", "text"), Path(drift.text), wanted="file")
    serving = study.measure.serving
    if serving is not None and serving.python is not None and not os.access(serving.python, os.X_OK):
        yield _absent(("measure", "serving", "python"), Path(serving.python), wanted="program")
    if serving is not None and serving.kernel_tables is not None and not os.path.isdir(serving.kernel_tables):
        yield _absent(("measure", "serving", "kernel_tables"), Path(serving.kernel_tables), wanted="directory")


def _hyperparameters(study: Study) -> Iterator[Mistake]:
    """Files of hyper-parameters that are absent, or another method's, and what they set that the study sets too."""
    for index, method in enumerate(study.methods):
        key = ("methods", index, "hyperparameters")
        for model in study.models if method.hyperparameters else ():
            for task in study.tasks:
                try:
                    values = given_hyperparameters(study, method, model=model.name, task=task.name)
                except StudyError as error:
                    place = f"{error.where}: " if error.where else ""
                    yield Mistake(key, f"methods[{index}].hyperparameters: {place}{error.message}", error.hint)
                    continue
                for name in sorted(values.keys() & (method.model_fields_set | method.train.model_fields_set)):
                    text = f"methods[{index}]: {name} has no effect: `hyperparameters` sets it"
                    yield Mistake(key, text, "remove one of the two")


def _absent(key: tuple[str | int, ...], path: Path, *, wanted: str) -> Mistake:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
    neighbours = sorted(entry.name for entry in path.parent.iterdir()) if os.path.isdir(path.parent) else []
    match = nearest(path.name, neighbours)
    found = f"is not a {wanted}" if os.path.exists(path) else "does not exist"
    meant = f": did you mean `{match}`?" if match and match != path.name else ""
    return Mistake(key, f"{dotted}: {path} {found}{meant}", "paths in a study are relative to the study's file")


def _micro_batches(study: Study, method: MethodBase, index: int) -> Iterator[Mistake]:
    """The batch a method ends up with: its own sizes over those of the study."""
    batch = method.train.batch_size or study.train.batch_size
    micro = method.train.micro_batch_size or study.train.micro_batch_size
    if micro and batch % micro:
        text = f"methods[{index}]: batch_size {batch} is not a multiple of micro_batch_size {micro}"
        yield Mistake(("methods", index, "train"), text, "`train` here overrides `train` of the study, field by field")


def _and_baselines(verb: str, key: str) -> str:
    return f"; or a baseline: {', '.join(BASELINES)}" if verb != "lower" and key == "to" else ""


def _hypotheses(study: Study) -> Iterator[Mistake]:
    methods = [method.name for method in study.methods]
    for name, hypothesis in study.hypotheses.items():
        if isinstance(hypothesis, Overhead):
            yield from check_overhead(study, name, hypothesis)
            continue
        verb, other = tuple(type(hypothesis).model_fields)[:2]
        compared = {key: getattr(hypothesis, key) for key in (verb, other)}
        for key, method in compared.items():
            allowed = [*methods, *BASELINES] if key == "to" else methods
            if method not in allowed:
                match = nearest(method, allowed)
                meant = f": did you mean `{match}`?" if match else ""
                text = f"hypotheses.{name}: the study has no method `{method}`{meant}"
                yield Mistake(
                    ("hypotheses", name, key), text, f"its methods: {', '.join(methods)}{_and_baselines(verb, key)}"
                )
        if compared[verb] == compared[other]:
            text = f"hypotheses.{name}: `{compared[verb]}` is compared with itself"
            yield Mistake(("hypotheses", name, other), text, "name two different methods")
        if verb != "lower" and hypothesis.on != "primary":
            yield from _quality_metric(study, name, hypothesis.on)
        if verb == "lower" and hypothesis.on == "drift":
            yield from _measured_drift(study, name)
        if verb == "equivalent" and hypothesis.margin == 0:  # pyright: ignore[reportAttributeAccessIssue]
            text = f"hypotheses.{name}: no data can show equivalence within a margin of 0"
            yield Mistake(("hypotheses", name, "margin"), text, "declare the largest difference that would not matter")


def _quality_metric(study: Study, name: str, on: str) -> Iterator[Mistake]:
    """A claim about quality is on a metric that every task can be scored by. A task that does not say which may be any."""
    allowed = list(QUALITY)
    for task in study.tasks:
        key = task.kind if isinstance(task, TaskSettings) else task.name
        choices = resolve(TASKS, key).metric_choices if key in TASKS else None
        allowed = [metric for metric in allowed if choices is None or metric in choices]
    if on not in allowed:
        match = nearest(on, allowed)
        meant = f": did you mean `{match}`?" if match else ""
        what = "a metric of every task" if on in QUALITY else "a quality metric"
        text = f"hypotheses.{name}: `{on}` is not {what}{meant}"
        yield Mistake(("hypotheses", name, "on"), text, f"allowed: {', '.join(['primary', *allowed])}")


def _measured_drift(study: Study, name: str) -> Iterator[Mistake]:
    """A hypothesis on drift rests on the residual stream's drift, which must be measured."""
    drift = study.measure.drift
    if drift is None:
        text = f"hypotheses.{name}: it is about drift, which the study does not measure"
        yield Mistake(("hypotheses", name, "on"), text, "add `measure: {drift: {}}`")
    elif "residual" not in drift.sites:
        text = (
            f"hypotheses.{name}: it is about the drift of the residual stream, which `measure.drift.sites` leaves out"
        )
        yield Mistake(("hypotheses", name, "on"), text, "add `residual` to `measure.drift.sites`")


def _conclusion(study: Study) -> Iterator[Mistake]:
    if study.conclusion is None:
        return
    try:
        parse_conclusion(study.conclusion, list(study.hypotheses))
    except StudyError as error:
        yield Mistake(("conclusion",), error.message, error.hint)


def _without_effect(study: Study) -> Iterator[Mistake]:
    """Settings written in the file that would change nothing: their author believes otherwise."""
    train, written = study.train, study.train.model_fields_set
    drift = study.measure.drift
    if drift is not None and drift.out_of_task and "out_of_task" in drift.model_fields_set and len(study.tasks) == 1:
        text = "measure.drift.out_of_task has no effect: the study has one task, so no other task's examples"
        yield Mistake(("measure", "drift", "out_of_task"), text, "remove it, or add a task")
    if "early_stopping" in written and train.early_stopping and train.epochs * train.evaluations_per_epoch <= 1:
        text = "train.early_stopping has no effect: there is one evaluation, so nothing to stop early"
        yield Mistake(("train", "early_stopping"), text, "raise `evaluations_per_epoch` or `epochs`, or remove it")
    units = {unit for task in study.tasks if (unit := unit_of(task)) is not None}
    if "max_length" in written and units and "token" not in units:
        text = "train.max_length has no effect: it cuts texts, and the study has none"
        yield Mistake(("train", "max_length"), text, "remove it")
    fraction = study.data.validation_fraction
    is_carving = any(carves(study, task) for task in study.tasks)
    if "validation_fraction" in study.data.model_fields_set and not is_carving:
        text = "data.validation_fraction has no effect: every task has a validation set of its own"
        hint = "remove it, or use `protocol: strict`" if study.protocol == "paper" else "remove it"
        yield Mistake(("data", "validation_fraction"), text, hint)
    elif not 0 < fraction < 1 and is_carving:
        text = f"data.validation_fraction must lie between 0 and 1, both excluded; found {fraction:g}"
        yield Mistake(("data", "validation_fraction"), text, "selection needs examples, and so does training")
