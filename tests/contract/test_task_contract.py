"""Every registered task keeps the contract of `lorascope.tasks.task`, from its source to its metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lorascope.data.sources import describe_source
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step, canonical_json
from lorascope.registry import TASKS, resolve
from lorascope.study.spec import DataSpec
from lorascope.study.tasks import FileTask, NamedTask
from lorascope.tasks.conformance import ClassConformance, TaskCase
from lorascope.tasks.glue import GLUE
from lorascope.tasks.steps import prepare_data

WORDS = ["lake", "stone", "river", "field", "cloud", "horse", "apple", "bridge", "candle", "mirror"]


def write_glue(directory: Path, kind: type[GLUE]) -> None:
    for split, num_rows in (("train", 120), ("validation", 40), ("test", 50)):
        rows = {
            column: [f"{split} {WORDS[row % 10]} {row} {column} is here" for row in range(num_rows)]
            for column in kind.columns
        }
        table = pd.DataFrame({**rows, "label": [row % 2 for row in range(num_rows)], "idx": range(num_rows)})
        table.to_parquet(directory / f"{kind.config}_{split}.parquet")


def write_files(directory: Path) -> FileTask:
    path = directory / "train.csv"
    rows = [{"text": f"{WORDS[row % 10]} number {row}", "mood": ["sad", "glad", "calm"][row % 3]} for row in range(150)]
    pd.DataFrame(rows).to_csv(path, index=False)
    return FileTask.model_validate(
        {
            "name": "moods",
            "kind": "classification",
            "train": str(path),
            "text": "text",
            "label": "mood",
            "metrics": ["accuracy", "f1", "mcc"],
        }
    )


@pytest.fixture(scope="module", params=sorted(TASKS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskCase:
    directory = tmp_path_factory.mktemp(request.param)
    kind = resolve(TASKS, request.param)
    spec: NamedTask | FileTask = write_files(directory) if kind.settings is not None else NamedTask(name=request.param)
    if issubclass(kind, GLUE):
        write_glue(directory, kind)
    source = describe_source(spec, data_dir=directory, protocol="strict")
    assert source == describe_source(spec, data_dir=directory, protocol="strict")
    assert str(directory) not in canonical_json(source.fingerprint)
    params = {
        "task": spec.model_dump(mode="json"),
        "source": dict(source.fingerprint),
        "protocol": "strict",
        "data": DataSpec().model_dump(mode="json"),
    }
    out = directory / "out"
    out.mkdir()
    step = Step(kind="data", version=1, params=params, locations=source.locations)
    context = StepContext(step, out, out, {}, lambda event: None, "cpu", directory, directory / "cache")
    result = json.loads(json.dumps(prepare_data(context)))
    frames = {split: pd.read_parquet(out / f"{split}.parquet") for split in ("train", "validation", "test")}
    ids = [example_id for frame in frames.values() for example_id in frame["example_id"]]
    assert len(set(ids)) == len(ids), "an example stands twice"
    assert result["num_examples"] == {split: len(frame) for split, frame in frames.items()}
    return TaskCase(result, frames["test"].head(12).to_dict("records"))


class TestEveryTask(ClassConformance):
    """The conformance suite, over `registry.TASKS`."""


def test_describing_a_source_loads_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from lorascope.data.sources import describe_source; from lorascope.study.tasks import NamedTask\n"
        "for name in ('mrpc', 'sst2', 'rte', 'docstrings'):\n"
        "    describe_source(NamedTask(name=name), data_dir=None, protocol='strict')\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert shown.stdout.strip() == "[]"
