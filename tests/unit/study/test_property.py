"""Whatever stands in a study file, the answer is a study or a StudyError: never another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.errors import StudyError
from lorascope.study.loading.load import load_study
from lorascope.study.spec import Study

GOOD: dict[str, Any] = {
    "name": "small",
    "question": "Is it?",
    "models": ["minilm-l6", {"name": "mine", "source": {"path": "x"}}],
    "tasks": ["mrpc", {"name": "own", "kind": "classification", "train": "a.csv", "text": ["t"], "label": "l"}],
    "methods": ["full", {"kind": "lora", "rank": 8, "train": {"epochs": 1}}],
    "seeds": [1, {"initialisation": 1, "order": 2, "dropout": 3}],
    "data": {"train_examples": 100},
    "train": {"epochs": 2, "warmup": "6%", "checkpoint_every": "30 s", "early_stopping": {"patience": 1}},
    "hypotheses": {"H1": {"non_inferior": "lora", "to": "full", "margin": "3%"}},
}
KEYS = st.sampled_from(["name", "kind", "source", "hub", "train", "to", "lower", "margin", "rank", "x y", ""])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5000) | st.floats(-2, 2) | st.text(max_size=6) | KEYS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def paths_in(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in items for found in ((*path, key), *paths_in(value, (*path, key)))]


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with `value` at `path`."""
    if not path:
        return value
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = replaced(data[path[0]], path[1:], value)
    return copy


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(paths_in(GOOD)), value=VALUES)
def test_any_value_anywhere_gives_a_study_or_an_error_for_people(tmp_path: Path, path: tuple, value: Any) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(replaced(GOOD, path, value), ensure_ascii=False), encoding="utf-8")
    try:
        assert isinstance(load_study(file), Study)
    except StudyError as error:
        assert str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(paths_in(GOOD)), text=st.text(max_size=12), key=st.text(max_size=4))
def test_any_override_gives_a_study_or_an_error_for_people(tmp_path: Path, path: tuple, text: str, key: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(GOOD))
    override = f"{'.'.join(map(str, path))}{key}={text}"
    try:
        assert isinstance(load_study(file, overrides=[override]), Study)
    except StudyError as error:
        assert str(error)
