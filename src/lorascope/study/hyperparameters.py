"""Hyper-parameters of a method as plain values: which a search may set, how they are put into a method's spec, and the
file in which a search leaves its optimum and a later study takes it up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from lorascope.errors import StudyError
from lorascope.registry import nearest
from lorascope.study.loading.document import parse_yaml, read_text
from lorascope.study.methods import method_specs
from lorascope.study.methods.base import MethodBase
from lorascope.study.ranges import Range
from lorascope.study.spec import Study
from lorascope.study.train import TrainOverrides

_NOT_SEARCHED = {"name", "kind", "train", "hyperparameters", "sites", "micro_batch_size"}
WHOLE = frozenset({"batch_size", "epochs", "rank", "alpha"})
"""Settings that count something: a range between two whole numbers means the whole numbers in it."""

# Beyond these a setting has no meaning, so an optimum there is no sign of a range that ends too early.
NATURAL_LOW = {"warmup": 0.0, "weight_decay": 0.0, "dropout": 0.0, "batch_size": 1, "rank": 1}
NATURAL_HIGH = {"warmup": 1.0, "dropout": 0.9}


def is_whole(name: str, dimension: Range) -> bool:
    """Whether a range of this setting means the whole numbers in it."""
    only_whole = name in ("batch_size", "rank")
    return only_whole or (name in WHOLE and isinstance(dimension.low, int) and isinstance(dimension.high, int))


@cache
def searchable(kind: str) -> dict[str, Any]:
    """Setting -> its pydantic type, for every one that a search may set of a method of this kind."""
    fields = {**TrainOverrides.model_fields, **method_specs()[kind].model_fields}
    return {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in fields.items()
        if name not in _NOT_SEARCHED
    }


def with_hyperparameters(method: MethodBase, values: Mapping[str, Any]) -> MethodBase:
    """The method with these values in the place of its own. Raises StudyError for one it does not have, or cannot."""
    own, train = {}, {}
    for name, value in values.items():
        checked = checked_value(name, value, kind=method.kind)
        (train if name in TrainOverrides.model_fields else own)[name] = checked
    if "alpha" in own:  # it takes the place of a scale that the method was written with
        own["scale"] = None
    changed = {**own, "train": method.train.model_copy(update=train), "hyperparameters": None}
    return method.model_copy(update=changed).settled()


def checked_value(name: str, value: Any, *, kind: str) -> Any:
    """The value as the setting's own type. Raises StudyError in the words of a study."""
    known = searchable(kind)
    if name not in known:
        match = nearest(name, known)
        meant = f": did you mean `{match}`?" if match else ""
        raise StudyError(
            f"`{name}` has no effect on a method of kind `{kind}`{meant}", hint=f"it has {', '.join(known)}"
        )
    try:
        return TypeAdapter(known[name]).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise StudyError(f"{name} cannot be {value!r}: {message[0].lower()}{message[1:]}") from None


def optimum_name(study: Study, *, model: str, task: str, method: str) -> str:
    """The file of one optimum: the model is part of the name only where the study has several."""
    parts = (model, task, method) if len(study.models) > 1 else (task, method)
    return f"{'_'.join(parts)}.yaml"


def given_hyperparameters(study: Study, method: MethodBase, *, model: str, task: str) -> dict[str, Any]:
    """What `method.hyperparameters` says for a (model, task). Raises StudyError for a file that is absent or another's."""
    assert method.hyperparameters is not None
    path = _file_of(Path(method.hyperparameters), study, method, model=model, task=task)
    found = parse_yaml(read_text(path), source=str(path))
    values = found.get("hyperparameters") if isinstance(found, dict) else None
    if not isinstance(values, dict) or not values:
        raise StudyError(
            "the file holds no hyper-parameters",
            hint="such as `hyperparameters: {learning_rate: 5e-4}`, next to `kind` and `model`",
            where=str(path),
        )
    for key, wanted in (("kind", method.kind), ("model", model)):
        if found.get(key, wanted) != wanted:
            raise StudyError(
                f"these hyper-parameters were found for the {key} `{found[key]}`, not for `{wanted}`",
                hint=f"search for this {key} too; if they are meant to be carried over, change `{key}` in a copy",
                where=str(path),
            )
    try:
        with_hyperparameters(method, values)
    except StudyError as error:
        raise StudyError(error.message, hint=error.hint, where=str(path)) from None
    return values


def _file_of(given: Path, study: Study, method: MethodBase, *, model: str, task: str) -> Path:
    if os.path.isfile(given):
        return given
    if not os.path.isdir(given):
        raise StudyError(f"there is no file or directory {given}", hint="a search writes results/STUDY/optimal")
    names = [f"{model}_{task}_{method.name}.yaml", optimum_name(study, model=model, task=task, method=method.name)]
    for name in names:
        if (given / name).is_file():
            return given / name
    there = sorted(path.name for path in given.glob("*.yaml"))
    raise StudyError(
        f"{given} has no {names[-1]}", hint=f"there: {', '.join(there) or 'no file'}; files are named TASK_METHOD.yaml"
    )
