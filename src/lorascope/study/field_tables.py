"""The tables of docs/writing-a-study.md, made from the spec and its descriptions.

`python -m lorascope.study.field_tables` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.study.base import Spec
from lorascope.study.fields import FIELDS
from lorascope.study.methods.base import MethodBase
from lorascope.study.spec import Seeds
from lorascope.study.tasks.base import TaskTrain
from lorascope.study.train import EarlyStopping, TrainOverrides


def field_tables() -> Mapping[type[Spec], str]:
    """A Markdown table for each part of a study: key, default, meaning."""
    return {model: _table(model) for model in FIELDS}


def _table(model: type[Spec]) -> str:
    rows = [f"| `{name}` | {_default(model, name)} | {meaning} |" for name, meaning in FIELDS[model].items()]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _default(model: type[Spec], name: str) -> str:
    if issubclass(model, MethodBase) and name == "name":
        return "its `kind`"
    if model is TrainOverrides:
        return "the study's"
    if model is TaskTrain:
        return "the method's"
    field = model.model_fields[name]
    return "required" if field.is_required() else f"`{_as_yaml(field.default)}`"


def _as_yaml(value: Any) -> str:
    """A default as one would write it in a study."""
    if isinstance(value, EarlyStopping):
        return f"{{patience: {value.patience}}}"
    if isinstance(value, Spec):
        return "{}"
    if isinstance(value, tuple):
        items = [item.label if isinstance(item, Seeds) else str(item) for item in value]
        return f"[{', '.join(items)}]"
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    for part, table in field_tables().items():
        print(f"{part.__name__}\n\n{table}\n")
