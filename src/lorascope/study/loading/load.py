"""From a YAML file to a `Study`, or to one error that names every mistake in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorascope.study.checks.serving import check_tails
from lorascope.study.checks.study import check_files, check_names, check_study
from lorascope.study.loading.document import KeyPath, Mistake, describe, dotted, read_document
from lorascope.study.loading.explain import explain_errors
from lorascope.study.loading.overrides import apply_override
from lorascope.study.spec import Study
from lorascope.study.tasks import file_fields

Check = Callable[[Study], Iterable[Mistake]]
Change = Callable[[Any], Any]


def load_study(
    path: str | Path, *, overrides: Sequence[str] = (), files: bool = False, further: Check = lambda study: ()
) -> Study:
    """The study in a YAML file, with `--set` overrides applied in order. Files it names are relative to it.

    overrides: "methods.lora.rank=16", ...; each value is YAML. files: also require that the files it names exist. further:
    more mistakes, looked for if there are no others (`plan.suitability.check_models`). Raises StudyError with file, line,
    what was found, what is allowed and the nearest match, for all mistakes at once.
    """
    path = Path(path)
    document = read_document(path)
    for override in overrides:
        apply_override(document, override)
    mistakes = list(check_names(document.data))
    try:
        study = Study.model_validate(with_absolute_paths(document.data, path.parent))
    except ValidationError as error:
        mistakes += explain_errors(error.errors(include_url=False), document.data)
        raise document.error(mistakes) from None
    mistakes += [*_truths_as_numbers(document.data, study, ()), *check_study(study)]
    if files:
        mistakes += [*check_files(study), *check_tails(study)]
    mistakes = mistakes or list(further(study))
    if mistakes:
        raise document.error(mistakes)
    return study.read_from(path, overrides=overrides)


def _truths_as_numbers(data: Any, read: Any, path: KeyPath) -> Iterator[Mistake]:
    """Where the file says `true` and a number was read: Python takes one for the other. read: what became of `data`."""
    if isinstance(data, bool):
        if isinstance(read, int | float) and not isinstance(read, bool):
            yield Mistake(path, f"{dotted(path)}: expected a number; found {describe(data)}")
    elif isinstance(data, dict):
        for key, value in data.items():
            inner = read.get(key) if isinstance(read, dict) else getattr(read, key, None)
            yield from _truths_as_numbers(value, inner, (*path, key))
    elif isinstance(data, list) and isinstance(read, list | tuple) and len(read) == len(data):
        for index, (value, inner) in enumerate(zip(data, read, strict=True)):
            yield from _truths_as_numbers(value, inner, (*path, index))


def _at_home(path: str) -> Path:
    """A path with its `~` replaced. That of a user who does not exist here stays, and is reported as a file that is absent."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_old_study(path: str | Path, *, overrides: Sequence[str] = ()) -> Study:
    """The study of results that are there: it need not obey rules that were made since it was run. Raises StudyError for a
    file that is no study."""
    path = Path(path)
    document = read_document(path)
    for override in overrides:
        apply_override(document, override)
    try:
        study = Study.model_validate(with_absolute_paths(document.data, path.parent))
    except ValidationError as error:
        raise document.error(explain_errors(error.errors(include_url=False), document.data)) from None
    return study.read_from(path, overrides=overrides)


def with_absolute_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The study with the files of tasks, models, methods and measurements given from the study's own folder, not from where
    it was started. A link to a program keeps its own name: a virtual environment's interpreter is one."""
    return _with_paths(
        data,
        lambda file: str((folder / _at_home(file)).resolve()),
        program=lambda file: os.path.abspath(folder / _at_home(file)),
    )


def with_paths_from(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same the other way: absolute paths as paths from `folder`, so that a study there means the same files."""

    def relative(file: str) -> str:
        return os.path.relpath(file, folder)

    return _with_paths(data, relative, program=relative)


def _with_paths(data: dict[str, Any], change: Change, *, program: Change) -> dict[str, Any]:
    """The study with each path changed. program: how paths of programs are."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    def task(item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        return {key: changed(value) if key in file_fields(item) else value for key, value in item.items()}

    def model(item: Any) -> Any:
        source = item.get("source") if isinstance(item, dict) else None
        if not isinstance(source, dict) or "path" not in source:
            return item
        return {**item, "source": {**source, "path": changed(source["path"])}}

    def method(item: Any) -> Any:
        if not isinstance(item, dict) or "hyperparameters" not in item:
            return item
        return {**item, "hyperparameters": changed(item["hyperparameters"])}

    def each(key: str, change_item: Change) -> dict[str, Any]:
        return {key: [change_item(item) for item in data[key]]} if isinstance(data.get(key), list) else {}

    def measured(item: Any) -> Any:
        given = dict(item)
        if isinstance(given.get("drift"), dict):
            given["drift"] = {**given["drift"], "text": changed(given["drift"].get("text"))}
        if isinstance(given.get("serving"), dict):
            serving = given["serving"] = dict(given["serving"])
            if isinstance(serving.get("python"), str):
                serving["python"] = program(serving["python"])
            if "kernel_tables" in serving:
                serving["kernel_tables"] = changed(serving["kernel_tables"])
        return given

    measures = {"measure": measured(data["measure"])} if isinstance(data.get("measure"), dict) else {}
    return {**data, **each("tasks", task), **each("models", model), **each("methods", method), **measures}
