"""A study written out whole: overrides applied, every default stated, so that no later default changes what it says."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorascope.study.checks.study import check_files, check_study
from lorascope.study.loading.document import KeyPath
from lorascope.study.loading.load import with_paths_from
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
    data = {key: value for key, value in data.items() if key not in ("search", "conclusion") or value is not None}
    while useless := _without_effect(data):
        for path in useless:
            _remove(data, path)
    return data if Study.model_validate(data) == study else study.model_dump(mode="json", exclude_unset=True)


def _without_effect(data: dict[str, Any]) -> list[KeyPath]:
    study = Study.model_validate(data)
    mistakes: Iterable[Any] = [*check_study(study), *check_files(study)]
    return [m.path for m in mistakes if "has no effect" in m.text and _holds(data, m.path)]


def _holds(data: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        if (
            isinstance(data, dict)
            and part in data
            or isinstance(data, list)
            and isinstance(part, int)
            and part < len(data)
        ):
            data = data[part]
        else:
            return False
    return isinstance(path[-1], str)


def _remove(data: Any, path: Sequence[str | int]) -> None:
    for part in path[:-1]:
        data = data[part]
    data.pop(path[-1], None)
