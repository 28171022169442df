"""The tasks that docs/adding-a-task.md shows work as written: they pass the same contract as the registered ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorascope.data.sources import describe_source
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.plugins import Entry
from lorascope.registry import TASKS
from lorascope.study.spec import DataSpec
from lorascope.study.tasks import task_spec
from lorascope.tasks.conformance import ClassConformance, TaskCase
from lorascope.tasks.steps import prepare_data

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-task.md"


def shown_classes() -> dict[str, Any]:
    """The classes that the document defines, by name."""
    namespace: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL):
        exec(compile(block, DOCUMENT.name, "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture(params=["CoLA", "SortedWords", "word-order"])
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskCase:
    for split, num_rows in (("train", 60), ("validation", 20)):
        rows = {"sentence": [f"{split} {n}" for n in range(num_rows)], "label": [n % 2 for n in range(num_rows)]}
        pd.DataFrame(rows).to_parquet(tmp_path / f"cola_{split}.parquet")
    shown = shown_classes()
    name = "WordOrder" if request.param == "word-order" else request.param
    monkeypatch.setitem(TASKS.entries, request.param, Entry("task", request.param, literal=shown[name]))
    described = {"name": "five", "kind": request.param, "words": 5}
    spec = task_spec(described if name == "WordOrder" else {"name": name})
    source = describe_source(spec, data_dir=tmp_path, protocol="strict")
    params = {
        "task": spec.model_dump(mode="json"),
        "source": dict(source.fingerprint),
        "protocol": "strict",
        "data": DataSpec().model_dump(mode="json"),
    }
    out = tmp_path / "out"
    out.mkdir()
    step = Step(kind="data", version=1, params=params, locations=source.locations)
    result = prepare_data(StepContext(step, out, out, {}, lambda event: None, "cpu", tmp_path, tmp_path))
    assert result["task"]["class"] == request.param
    return TaskCase(result, pd.read_parquet(out / "test.parquet").head(10).to_dict("records"))


def test_the_shown_case_is_that_of_the_data_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_classes()
    monkeypatch.setitem(TASKS.entries, "sorted-words", Entry("task", "sorted-words", literal=shown["SortedWords"]))
    case = shown["task_case"]("sorted-words")
    assert case.task.metric_names == ("accuracy",)
    assert len(case.predictions()) == 10


class TestShownTasks(ClassConformance):
    """The conformance suite, over the tasks of the document."""
