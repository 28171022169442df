"""lorascope as a library: its names, its forms in a notebook, the progress that it shows."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
from report_fixture import Shape, write_analysis
from rich.console import Console
from tiny import committed

import lorascope
from lorascope import api
from lorascope.engine.events import StepStarted, StudyFinished, StudyStarted
from lorascope.engine.failure import Failure
from lorascope.pipeline import Outcome, Results
from lorascope.stats.interval import Interval
from lorascope.study.spec import Study
from lorascope.tracking.console import LiveView, NotebookView, rendering, shown_to_people

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(committed(write_analysis(tmp_path_factory.mktemp("analysis"), Shape()), {}))


def test_dir_lists_every_public_name_before_anything_is_loaded() -> None:
    script = "import lorascope, sys; print(*dir(lorascope)); print('lorascope.api' in sys.modules)"
    names, loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    subpackages = {"plan", "report"}
    assert {*api.__all__} - subpackages <= set(names.split()) and "api" in names.split()
    assert loaded == "False"
    assert all(getattr(lorascope, name) is not None for name in names.split())


def test_every_path_of_the_interface_may_be_text() -> None:
    functions = [getattr(api, name) for name in api.__all__ if inspect.isfunction(getattr(api, name))]
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            hint = str(parameter.annotation)
            assert "Path" not in hint or "str" in hint, f"{function.__name__}: {parameter}"
            assert "StorePlace" in hint or parameter.name != "store"


def test_scores_are_one_row_an_arm(results: Results) -> None:
    scores: Any = results.scores
    assert list(scores["arm"].unique()) == ["full", "lora"] and set(scores["task"]) == {"mrpc", "rte"}
    assert (scores["seeds"] == 5).all() and (scores["low"] < scores["mean"]).all()
    assert scores["mean"].tolist() == [score.mean for score in results.analysis.scores]


def test_forms_in_a_notebook_are_escaped(results: Results) -> None:
    study = Study.model_validate(
        {"name": "s", "question": EVIL, "models": ["minilm-l6"], "tasks": ["mrpc"], "methods": ["full"]}
    )
    failure = Failure("train-1", "builtins:ValueError", EVIL)
    average = Interval(-0.018, -0.031, -0.005, 0.90, "t")
    verdicts = [replace(results.analysis.hypotheses[0], claim=EVIL, average=average)]
    outcome = Outcome([], [], {"train-1": failure}, {}, 1.0, None, verdicts, {verdicts[0].name: "accuracy"})
    for form in (study._repr_html_(), outcome._repr_html_()):
        assert "&lt;img" in form and "<img" not in form
    assert "minilm-l6" in study._repr_html_() and "points (90% interval" in outcome._repr_html_()
    form = results._repr_html_()
    assert form.count("<tr>") == 2 + len(results.analysis.scores) + len(results.analysis.hypotheses)
    assert "%" in form and "LoRA" in form


def test_progress_is_shown_where_a_person_looks_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown_to_people() as emit:
        assert emit is None, "a test's output is no terminal"
    monkeypatch.setattr(Console, "is_terminal", True)
    with shown_to_people() as emit:
        assert isinstance(emit, LiveView)


def test_a_notebook_shows_one_output_that_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    display = types.ModuleType("IPython.display")
    handle = types.SimpleNamespace(update=lambda page: shown.append(("update", page)))
    display.HTML = lambda text: text  # type: ignore[attr-defined]
    display.display = lambda page, display_id: (shown.append(("display", page)), handle)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    console = Console()
    console.is_jupyter = True
    with rendering(console) as view:
        assert isinstance(view, NotebookView)
        view(StudyStarted(study="<b>small</b>", num_steps=2, num_cached=1))
        for _ in range(50):
            view(StepStarted(step="train-1", worker="cpu"))
        view(StudyFinished(study="small", num_done=1, num_cached=1, num_failed=0, num_blocked=0, seconds=1.0))
    assert [kind for kind, _ in shown] == ["display", "update"], "not once for every event"
    assert "&lt;b&gt;small&lt;/b&gt;: 2 steps, 1 in the store" in shown[-1][1] and "<b>" not in shown[-1][1]
