"""A study written out whole: overrides applied, every default stated, so that no later default changes what it says."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorascope.study.checks.study import check_study
from lorascope.study.loading.load import with_paths_from
from lorascope.study.methods.base import MethodBase
from lorascope.study.spec import Study


def resolved_yaml(study: Study, *, folder: Path) -> str:
    """The study as a file in `folder`, which reads as an equal study. A default that may not be written, because it has no
    effect in this study, is left out."""
    from ruamel.yaml import YAML

    data = with_paths_from(_stated(study), folder)
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _stated(study: Study) -> dict[str, Any]:
    """Every setting that a file may state, as literals. What a search or a file of hyper-parameters sets is not the study's
    to state, so methods are then as they were written."""
    data = study.model_dump(mode="json")
    if study.search is not None or any(method.hyperparameters for method in study.methods):
        data["methods"] = [
            {"kind": method.kind, "name": method.name, **method.model_dump(mode="json", exclude_unset=True)}
            for method in study.methods
        ]
    data["methods"] = [
        _as_scaled(method, dumped) for method, dumped in zip(study.methods, data["methods"], strict=True)
    ]
    short = {
        **_without_nulls(data),
        "train": data["train"],
    }  # there a null says something: no clipping, no early stopping
    data = short if _reads_as(short, study) else data
    while (fewer := _without_one_mistake(data, study)) is not None:
        data = fewer
    return data if _reads_as(data, study) else study.model_dump(mode="json", exclude_unset=True)


def _as_scaled(method: MethodBase, dumped: dict[str, Any]) -> dict[str, Any]:
    """With the scale that it was written with in the place of the alpha that follows from it."""
    scale = getattr(method, "scale", None)
    return dumped if scale is None else {k: v for k, v in dumped.items() if k != "alpha"} | {"scale": scale}


def _without_nulls(value: Any) -> Any:
    """Without keys that hold nothing."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return {key: inner for key, inner in kept.items() if inner != {} or value[key] == {}}


def _without_one_mistake(data: dict[str, Any], study: Study) -> dict[str, Any] | None:
    """The data without a default that only counts as a mistake because it is written, None where there is none."""
    for mistake in check_study(Study.model_validate(data)):
        fewer = copy.deepcopy(data)
        if _removed(fewer, mistake.path) and _reads_as(fewer, study):
            return fewer
    return None


def _reads_as(data: dict[str, Any], study: Study) -> bool:
    try:
        return Study.model_validate(data) == study
    except ValidationError:  # the key was needed
        return False


def _removed(data: Any, path: Sequence[Any]) -> bool:
    """Whether there was such a key; it is gone then."""
    for part in path[:-1]:
        is_item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not is_item and not (isinstance(data, dict) and part in data):
            return False
        data = data[part]
    return isinstance(data, dict) and data.pop(path[-1], data) is not data
