"""Data seen before the start: columns, classes, splits, what they can decide, and what is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from lorascope.cli.app import app
from lorascope.errors import StudyError
from lorascope.plan import data_checks
from lorascope.plan.data_checks import look_at_data
from lorascope.study.loading.load import load_study

STUDY = """\
name: small
question: Is it?
models: [minilm-l6]
tasks:
  - {name: sms, kind: classification, train: t.csv, text: text, label: kind, metrics: [accuracy, f1], positive: spam}
methods: [full, lora]
hypotheses: {H1a: {non_inferior: lora, to: full, margin: 3%}}
"""


def write(folder: Path, text: str = STUDY, *, num_rows: int = 300, **changes: str) -> Path:
    rows = [{"text": f"message {row}", "kind": "spam" if row % 4 == 0 else "ham"} for row in range(num_rows)]
    pd.DataFrame(rows).rename(columns=changes).to_csv(folder / "t.csv", index=False)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def test_columns_classes_and_rows_of_each_split_are_said(tmp_path: Path) -> None:
    (found,) = look_at_data(load_study(write(tmp_path)), data_dir=None).tasks
    assert str(found) == (
        "sms: columns text, kind; 2 classes: ham, spam; 243 train, 27 validation, 30 test examples; protocol strict; F1 (spam)"
    )


def test_a_test_set_that_cannot_decide_a_margin_is_said(tmp_path: Path) -> None:
    (warning,) = look_at_data(load_study(write(tmp_path)), data_dir=None).warnings
    assert warning.startswith("sms: 300 rows: 30 test rows; a margin of 3 points (H1a) cannot be decided")
    large = load_study(write(tmp_path, STUDY.replace("margin: 3%", "margin: 30%")))
    assert look_at_data(large, data_dir=None).warnings == []


@pytest.mark.parametrize("verb", ["validate", "plan"])
def test_data_that_the_run_would_refuse_are_refused_before_it(tmp_path: Path, verb: str) -> None:
    path = write(tmp_path, kind="mood")
    result = CliRunner().invoke(app, [verb, str(path), *(["--store", str(tmp_path / "s")] if verb == "plan" else [])])
    assert isinstance(result.exception, StudyError)
    text = str(result.exception)
    assert "study.yaml:5: tasks[0]: " in text and "t.csv has no column `kind`" in text


def test_a_class_that_f1_needs_is_asked_for_before_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY.replace(", positive: spam", ""))
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert isinstance(result.exception, StudyError)
    text = str(result.exception)
    assert "nothing says which of `ham`, `spam`" in text and "add `positive: ham` or" in text


def test_what_is_not_on_this_machine_is_listed_and_no_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY.replace("tasks:\n", "tasks:\n  - rte\n"))
    result = CliRunner().invoke(app, ["validate", str(path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert [task["task"] for task in found["data"]] == ["sms"]
    assert any("not checked: the examples of rte, which are on the hub" in text for text in found["not_checked"])


def test_large_files_are_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_checks, "LARGEST_BYTES", 100)
    found = look_at_data(load_study(write(tmp_path)), data_dir=None)
    assert not found.tasks and "their files are larger than" in found.not_checked[0]


def test_files_of_a_data_directory_are_opened(tmp_path: Path) -> None:
    for split, num_rows in (("train", 100), ("validation", 40)):
        texts = [f"{split} {row}" for row in range(num_rows)]
        table = pd.DataFrame({"sentence1": texts, "sentence2": texts, "label": [row % 2 for row in range(num_rows)]})
        table.to_parquet(tmp_path / f"rte_{split}.parquet")
    study = load_study(
        write(tmp_path, STUDY.replace("tasks:\n", "tasks:\n  - {name: rte, protocol: resplit, test_rows: 80}\n"))
    )
    found = look_at_data(study, data_dir=tmp_path).tasks[0]
    assert found.num_examples == {"train": 54, "validation": 6, "test": 80}
    assert "protocol resplit" in str(found)
