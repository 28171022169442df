"""Whose folder results/NAME is, and where everybody else's results go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorascope.report.folder import Folder, folder_of, keep_report, make_room, study_text
from lorascope.study.loading.load import load_study
from lorascope.study.spec import Study

TEXT = """
name: twins
question: First
models: [minilm-l6]
tasks: [mrpc]
methods: [full]
seeds: [1]
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text(TEXT)
    (tmp_path / "other.yaml").write_text(TEXT.replace("First", "Second"))
    return tmp_path / "results"


def taken(study: Study, results: Path) -> Folder:
    folder = folder_of(study, results)
    folder.take()
    return folder


def read(results: Path, name: str = "study.yaml", *overrides: str) -> Study:
    return load_study(results.parent / name, overrides=overrides)


def test_the_folder_of_a_name_belongs_to_the_first_study_file(results: Path) -> None:
    assert taken(read(results), results).path == results / "twins"
    second = taken(read(results, "other.yaml"), results)
    assert second.path.parent == results and second.path.name.startswith("twins@")
    assert f"belongs to {results.parent / 'study.yaml'}" in second.why
    assert taken(read(results), results).path == results / "twins"
    assert taken(read(results, "other.yaml"), results).path == second.path


def test_an_edited_study_file_keeps_its_folder(results: Path) -> None:
    taken(read(results), results)
    (results.parent / "study.yaml").write_text(TEXT.replace("First", "Changed"))
    assert folder_of(read(results), results).path == results / "twins"
    other = taken(read(results, "other.yaml"), results).path
    (results.parent / "other.yaml").write_text(TEXT.replace("First", "Changed"))
    assert folder_of(read(results, "other.yaml"), results).path == other


def test_a_variation_has_a_folder_of_its_own_even_if_it_is_first(results: Path) -> None:
    varied = taken(read(results, "study.yaml", "seeds=[2]"), results)
    assert varied.path.name.startswith("twins@") and "--set seeds=[2]" in varied.why
    assert folder_of(read(results, "study.yaml", "seeds=[3]"), results).path != varied.path
    assert folder_of(read(results), results).path == results / "twins"


def test_another_name_by_override_is_a_name_like_any_other(results: Path) -> None:
    assert taken(read(results, "study.yaml", "seeds=[2]", "name=mine"), results).path == results / "mine"
    assert folder_of(read(results, "study.yaml", "name=mine"), results).path.name.startswith("mine@")


def test_a_copy_that_a_program_changed_is_a_variation(results: Path) -> None:
    study = read(results)
    taken(study, results)
    changed = study.model_copy(update={"question": "Changed?"})
    assert folder_of(changed, results).path.name.startswith("twins@")
    assert folder_of(study.model_copy(), results).path == results / "twins"


def test_a_renamed_study_file_takes_its_folder_along(results: Path) -> None:
    taken(read(results), results)
    (results.parent / "study.yaml").rename(results.parent / "renamed.yaml")
    assert folder_of(read(results, "renamed.yaml"), results).path == results / "twins"


def test_a_project_that_was_moved_keeps_its_folders(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    taken(read(results), results)
    moved = tmp_path_factory.mktemp("elsewhere") / "project"
    results.parent.rename(moved)
    assert folder_of(load_study(moved / "study.yaml"), moved / "results").path == moved / "results" / "twins"


def test_where_a_study_came_from_does_not_make_it_another(results: Path) -> None:
    (results.parent / "copy.yaml").write_text(TEXT)
    assert read(results) == read(results, "copy.yaml") == Study.model_validate(read(results).model_dump())


def test_the_report_of_an_edited_study_is_kept_once(results: Path) -> None:
    study, folder = read(results), taken(read(results), results).path
    assert make_room(folder, study_text(study, folder)) is None
    for name in ("report.html", "facts.json", "events.jsonl"):
        (folder / name).write_text("first")
    (folder / "figures").mkdir()
    (folder / "figures" / "forest.png").write_text("first")
    assert make_room(folder, study_text(study, folder)) is None, "nothing was edited"
    edited = study.model_copy(update={"question": "Edited"})
    kept = make_room(folder, study_text(edited, folder))
    assert kept is not None and kept == folder / "previous"
    assert (kept / "report.html").read_text() == (kept / "figures" / "forest.png").read_text() == "first"
    assert "First" in (kept / "study.yaml").read_text() and "Edited" in (folder / "study.yaml").read_text()
    assert not (kept / "events.jsonl").exists() and not (folder / "figures").exists()
    (folder / "report.html").write_text("second")
    assert (keep_report(folder) / "report.html").read_text() == "second"
    assert not (folder / "previous" / "previous").exists()


def test_a_folder_of_an_older_version_keeps_its_report_as_previous(results: Path) -> None:
    (results / "twins").mkdir(parents=True)
    (results / "twins" / "report.html").write_text("old")
    folder = taken(read(results), results).path
    kept = make_room(folder, study_text(read(results), folder))
    assert kept is not None and (kept / "report.html").read_text() == "old"
    assert json.loads((folder / ".study.json").read_text())["file"] == "../study.yaml"
