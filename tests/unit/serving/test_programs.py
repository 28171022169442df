"""Only `run` has a program run that a study names, and only one that the user allowed outside the study."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from small_study import STUDY, run, write_small_study

from lorascope import api
from lorascope.engine.store.directory import Store
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.plan.growing import Planner
from lorascope.serving.interpreter import NOT_SEEN, ask_engine, known_engine
from lorascope.study.loading.load import load_study
from lorascope.study.loading.preferences import read_preferences
from lorascope.study.measure import ServingSpec
from lorascope.study.spec import Study

PROGRAM = """#!/bin/sh
echo ran >> "$(dirname "$0")/CANARY"
echo '{"missing": [], "versions": {"vllm": "7.0"}}'
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration, which does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("LORASCOPE_SERVE_PYTHON", raising=False)
    (tmp_path / "user" / "lorascope").mkdir(parents=True)
    return tmp_path / "user" / "lorascope" / "config.yaml"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.sh"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


@pytest.fixture
def study(tmp_path: Path, program: Path, user: Path) -> Study:
    settings = "{serving: {engine: vllm, python: ./program.sh, arms: [merged, 2]}}"
    text = STUDY.replace("measure: {drift: {examples: 60, draws: 200}}", f"measure: {settings}")
    return load_study(write_small_study(tmp_path, "\n".join(line for line in text.splitlines() if "H1b" not in line)))


def serving_of(study: Study) -> ServingSpec:
    assert study.measure.serving is not None
    return study.measure.serving


def has_run(program: Path) -> bool:
    return (program.parent / "CANARY").exists()


def test_verbs_that_read_run_no_program(study, program, tmp_path):
    store = tmp_path / "store"
    planned = api.plan(study, store=store)
    (serving,) = [p.step for p in planned.steps if p.step.kind == "serving"]
    assert serving.params["engine"] == {"name": "vllm", "version": NOT_SEEN}
    api.watch(study, store=store, results=tmp_path).read()
    api.status(study, store=store)
    api.verify(study, store=store)
    api.repair(study, store=store)
    with pytest.raises(StudyError, match="no finished analysis"):
        api.report(study, store=store, results=tmp_path)
    assert run(tmp_path, "validate", "study.yaml").returncode == 0
    assert not has_run(program)


def test_run_refuses_a_program_that_was_not_allowed(study, program, tmp_path):
    with pytest.raises(StudyError, match="which you have not allowed lorascope to run") as caught:
        api.run(study, store=tmp_path / "store", results=tmp_path / "results")
    assert f"`--allow-program {program}`" in str(caught.value)
    assert not has_run(program) and not (tmp_path / "results").exists()


def test_an_allowed_program_is_run_named_and_its_version_remembered(study, program, tmp_path):
    store = Store(tmp_path / "store")
    engine, note = ask_engine(serving_of(study), store, allowed=[program])
    assert engine.identity == {"name": "vllm", "version": "7.0"} and has_run(program)
    assert note == f"serving runs {program} (vllm 7.0), allowed for this run"
    (program.parent / "CANARY").unlink()
    (step,) = Planner(study, store, data_dir=None).graph.of_kind("serving")
    assert step.params["engine"] == engine.identity
    assert step.id == Planner(study, store, data_dir=None, engine=engine).graph.of_kind("serving")[0].id
    assert not has_run(program), "what reads asks the store"


@pytest.mark.parametrize("answer", ["{}", "[]", "text", "", '{"missing": [], "versions": {}}'])
def test_a_program_that_is_no_interpreter_is_named(study, program, tmp_path, answer):
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    with pytest.raises(EnvironmentProblem, match=r"does not answer as an interpreter|needs vllm, which"):
        ask_engine(serving_of(study), Store(tmp_path / "store"), allowed=[program])


def test_a_list_in_the_users_configuration_allows_programs(study, program, user, tmp_path):
    user.write_text(f"allow_programs: [{program}]\n")
    _, note = ask_engine(serving_of(study), Store(tmp_path / "store"), allowed=[])
    assert note is not None and str(user) in note


def test_a_program_that_the_environment_names_is_the_users_choice(study, program, monkeypatch, tmp_path):
    monkeypatch.setenv("LORASCOPE_SERVE_PYTHON", str(program))
    ask_engine(serving_of(study), Store(tmp_path / "store"), allowed=[])
    assert has_run(program)


def test_a_program_in_the_current_directory_is_not_the_users_choice(study, monkeypatch, tmp_path):
    made = tmp_path / ".venv-serve" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.write_text(PROGRAM)
    made.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    spec = serving_of(study).model_copy(update={"python": None})
    with pytest.raises(StudyError, match="not allowed"):
        ask_engine(spec, Store(tmp_path / "store"), allowed=[])


def test_the_own_engine_is_always_allowed_and_known(study, tmp_path):
    spec = serving_of(study).model_copy(update={"engine": "transformers", "python": None})
    engine, note = ask_engine(spec, Store(tmp_path / "store"), allowed=[])
    assert note is None and known_engine(spec, None) == engine


def test_an_engine_is_found_in_records_of_before_it_was_remembered(study, program, tmp_path):
    store = Store(tmp_path / "store")
    engine, _ = ask_engine(serving_of(study), store, allowed=[program])
    (step,) = Planner(study, store, data_dir=None, engine=engine).graph.of_kind("serving")
    store.commit(step, store.stage(step.id), result={}, provenance={"finished": "2026"})
    (store.root / "remembered" / "engines.json").unlink()
    found = known_engine(serving_of(study), store)
    assert found is not None and found.identity == engine.identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("allow_program: [a]\n", "config.yaml:1: unknown key `allow_program`"),
        ("allow_programs: a\n", "config.yaml:1: allow_programs: "),
        ("- a\n", "config.yaml:1: the configuration is a mapping"),
        ("allow_programs: !!python/name:os.system []\n", "config.yaml:1: the tag"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_line(user, text, expected):
    user.write_text(text)
    with pytest.raises(StudyError) as caught:
        read_preferences()
    assert expected in str(caught.value)


def test_asking_an_interpreter_imports_nothing_from_here(study, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("open('CANARY', 'w').write('ran')\n")
    monkeypatch.chdir(tmp_path)
    from lorascope.serving.environment import check_engine

    check_engine("transformers", Path(os.path.abspath(sys.executable)))
    assert not (tmp_path / "CANARY").exists()
