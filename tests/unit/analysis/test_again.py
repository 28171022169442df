"""Statistics redone from folders that hold less than today's reports keep next to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from lorascope.analysis.again import analyse_folder
from lorascope.errors import DataError, StudyError
from lorascope.study.loading.load import load_study

REPOSITORY = Path(__file__).parents[3]
COMMITTED = REPOSITORY / "benchmarks" / "results" / "classification-h200"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(COMMITTED, tmp_path / "folder")


def test_a_committed_folder_is_analysed_by_its_own_facts() -> None:
    again = analyse_folder(COMMITTED)
    assert again.lacks == () and [result.name for result in again.analysis.hypotheses] == ["H1a"]
    assert len(again.facts.gates) == 87 and "transformers" in again.facts.provenance.versions


def test_without_facts_gates_are_those_that_the_measurements_show(folder: Path) -> None:
    (folder / "facts.json").unlink()
    with pytest.raises(StudyError, match="does not say which study it is of"):
        analyse_folder(folder)
    again = analyse_folder(folder, study=load_study(REPOSITORY / "studies" / "classification.yaml"))
    known = {(g.model, g.task, g.method, g.gate): g.passed for g in analyse_folder(COMMITTED).facts.gates}
    shown = {(g.model, g.task, g.method, g.gate): g.passed for g in again.facts.gates}
    assert shown and shown.items() <= known.items()
    assert {"facts.json"} == {text.partition(":")[0] for text in again.lacks}
    assert any("facts.json" in note for note in again.analysis.notes)


def test_measurements_of_another_study_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"are not of the study quickstart"):
        analyse_folder(folder, study=load_study(REPOSITORY / "studies" / "quickstart.yaml"))


def test_a_folder_without_measurements_or_primary_metric_says_so(folder: Path) -> None:
    (folder / "analysis.json").unlink()
    with pytest.raises(StudyError, match="does not say what the primary metric of mrpc"):
        analyse_folder(folder)
    (folder / "measurements.parquet").unlink()
    with pytest.raises(StudyError, match=r"holds no measurements.parquet; found alone.json, curves.parquet"):
        analyse_folder(folder)


def test_baselines_are_read_from_the_measurements(folder: Path) -> None:
    (folder / "facts.json").unlink()
    again = analyse_folder(folder, study=load_study(REPOSITORY / "studies" / "classification.yaml"))
    table = pd.read_parquet(folder / "measurements.parquet")
    rows = table[(table["method"] == "baseline:random") & table["example_id"].isna() & (table["metric"] == "accuracy")]
    (found,) = [b for b in again.facts.baselines if (b.task, b.name, b.metric) == ("rte", "random", "accuracy")]
    assert found.mean == pytest.approx(rows[rows["task"] == "rte"]["value"].mean()) and len(found.values) == 5
