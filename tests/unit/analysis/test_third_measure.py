"""A measure that only a test knows: from its line in the tables to rows, a gate, facts and a section of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_study import make_study
from small_study import STUDY, write_small_study

import lorascope
from lorascope import registry
from lorascope.engine.step import Step
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.measures.planned import PlannedModel, TrainedArms
from lorascope.plan.steps.measures import measurement_steps
from lorascope.plugins import Entry, Plugin

LEAN = (
    ("  - {kind: full, learning_rate: 3e-3}\n", ""),
    ("seeds: [1, 2]", "seeds: [1]"),
    ("epochs: 4", "epochs: 1"),
    ("measure: {drift: {examples: 60, draws: 200}}", "measure: {further: {zeros: {}}}"),
    (STUDY[STUDY.index("hypotheses:") :], ""),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    text = STUDY
    for whole, lean in LEAN:
        assert whole in text
        text = text.replace(whole, lean)
    return write_small_study(tmp_path, text)


def test_a_third_measure_goes_from_its_step_to_the_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table, place in ((registry.STEP_KINDS, "toy_measure:count_zeros"), (registry.MEASURES, "toy_measure:ZEROS")):
        monkeypatch.setitem(table.entries, "zeros", Entry(table.noun, "zeros", place))
    study, folder = lorascope.load(path), path.parent
    outcome = lorascope.run(study, store=folder / "store", results=folder / "results", executor="inline")
    assert not outcome.failed
    found = lorascope.results(study, store=folder / "store")
    rows = found.measurements[found.measurements["metric"] == "zero_weights"]
    assert rows[["model", "task", "method", "seed"]].to_numpy().tolist() == [["tiny", "sentiment", "lora", "*"]]
    assert rows["value"].item() >= 0 and rows["run"].item().startswith("train-")
    facts = json.loads(found.artifact.file("facts.json").read_text())
    assert facts["measures"] == {"zeros": {"title": "Zero weights", "sentences": ["The zeros of 1 runs were counted."]}}
    assert [gate["passed"] for gate in facts["gates"] if gate["gate"] == "has runs"] == [True]
    report = (folder / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    assert "## Zero weights" in report and "The zeros of 1 runs were counted." in report


def test_a_measure_that_nobody_brings_is_refused_by_name(path: Path) -> None:
    with pytest.raises(StudyError, match="`zeros` is not a further measure; there are: none"):
        lorascope.load(path)


def test_steps_of_a_plugins_measure_carry_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("measure", "zeros", "toy_measure:ZEROS", plugin=Plugin("toy", "1.2"))
    monkeypatch.setitem(registry.MEASURES.entries, "zeros", entry)
    study = make_study(measure={"further": {"zeros": {}}})
    trained = Step("train", 1, {"method": {}}, slug="t")
    arms = [TrainedArms("mrpc", {}, {"lora": [trained]})]
    ((step, label),) = measurement_steps(study, PlannedModel("m", {}, {}), arms)
    assert step.params["plugins"] == {"measure": {"distribution": "toy", "release": "1.2", "version": 1}}
    assert (step.kind, label.method) == ("zeros", "lora")


def test_a_broken_measure_is_an_error_only_where_a_study_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("measure", "zeros", "not_there:ZEROS", plugin=Plugin("toy", "1.2"))
    monkeypatch.setitem(registry.MEASURES.entries, "zeros", entry)
    assert list(measurement_steps(make_study(), PlannedModel("m", {}, {}), [])) == []
    with pytest.raises(EnvironmentProblem, match=r"the measure `zeros` of the plug-in toy 1\.2 cannot be loaded"):
        list(measurement_steps(make_study(measure={"further": {"zeros": {}}}), PlannedModel("m", {}, {}), []))
