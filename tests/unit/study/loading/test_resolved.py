"""A study written out whole reads as the same study, from wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorascope.study.loading.load import load_study
from lorascope.study.loading.resolved import resolved_yaml

STUDIES = sorted((Path(__file__).parents[4] / "studies").glob("*.yaml"))
SEARCHED = """
name: searched
question: Which rate is best?
models: [{name: tiny, source: {path: models/tiny}}]
tasks: [{name: toy, kind: classification, train: rows.csv, text: text, label: label}]
methods: [full, {kind: lora, sites: [query]}]
seeds: [1]
train: {epochs: 1, early_stopping: null, gradient_clip: null}
search:
  trials: 3
  space: {full: {learning_rate: [1e-5, 1e-4]}, lora: {learning_rate: {low: 1e-4, high: 1e-2, log: true}}}
measure: {drift: {sites: [residual]}}
"""


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_written_out_whole_reads_as_the_same_study(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    (tmp_path / "study.yaml").write_text(resolved_yaml(study, folder=tmp_path))
    assert load_study(tmp_path / "study.yaml") == study


def test_a_searched_study_is_written_with_paths_from_its_new_folder(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(SEARCHED)
    study = load_study(tmp_path / "study.yaml", overrides=["search.trials=2"])
    folder = tmp_path / "results" / "searched"
    folder.mkdir(parents=True)
    text = resolved_yaml(study, folder=folder)
    (folder / "study.yaml").write_text(text)
    assert "../../models/tiny" in text and str(tmp_path) not in text
    assert load_study(folder / "study.yaml") == study
    assert load_study(folder / "study.yaml").search.trials == 2  # type: ignore[union-attr]


def test_a_default_is_written_out_so_that_a_later_one_changes_nothing(tmp_path: Path) -> None:
    text = resolved_yaml(load_study(STUDIES[0]), folder=tmp_path)
    assert "weight_decay: 0.01" in text and "protocol: strict" in text and "early_stopping: {patience: 3}" in text
