"""Settings of a task: task over method over study, in what is planned; and what has no effect is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_errors import GOOD, error_of

from lorascope.study.loading.load import load_study
from lorascope.study.per_task import study_for
from lorascope.study.spec import Study

METHODS = """\
train: {epochs: 3, batch_size: 32, max_length: 200}
methods:
  - {kind: full, train: {epochs: 4, warmup: 10%}}
  - {kind: lora, rank: 8, learning_rate: 1e-3}
"""
STUDY = f"name: s\nquestion: Is it?\nmodels: [minilm-l6]\n{METHODS}"
OWN = "{name: rte, settings: {max_length: 128, epochs: 2}, methods: {lora: {learning_rate: 3e-4, epochs: 1}}}"


def study_of(tmp_path: Path, tasks: str, more: str = "") -> Study:
    (tmp_path / "study.yaml").write_text(f"{STUDY}tasks: [{tasks}]\n{more}")
    return load_study(tmp_path / "study.yaml")


def test_a_task_takes_precedence_over_methods_and_they_over_the_study(tmp_path: Path) -> None:
    study = study_of(tmp_path, f"{OWN}, sst2")
    own, plain = (study_for(study, task) for task in study.tasks)
    assert (own.train.max_length, plain.train.max_length) == (128, 200)
    assert [method.train.epochs for method in own.methods] == [2, 1]
    assert [method.train.epochs for method in plain.methods] == [4, None]
    assert [method.learning_rate for method in own.methods][1] == 3e-4
    assert plain.methods == study.methods
    assert own.methods[0].train.warmup == 0.1 and own.train.batch_size == 32


def test_what_a_task_sets_of_training_leaves_its_examples_as_they_are(tmp_path: Path) -> None:
    from lorascope.data.sources import SourceDescription
    from lorascope.plan.steps.runs import data_step

    study = study_of(tmp_path, OWN)
    plain = study_of(tmp_path, "rte")
    resplit = study_of(tmp_path, "{name: rte, protocol: resplit, test_rows: 900}")
    source = SourceDescription({"hub": "x"})
    first, second, other = (data_step(s, s.tasks[0], source, s.data).id for s in (study, plain, resplit))
    assert first == second != other


WRONG = {
    "{name: rte, settings: {precision: bf16}}": "tasks[0].settings: unknown key `precision`",
    "{name: rte, test_rows: 900}": "tasks[0].test_rows has no effect: under `protocol: strict` it does not decide",
    "{name: rte, protocol: resplit}": "tasks[0]: `protocol: resplit` carves a test set, and nothing says how large",
    "{name: rte, methods: {lora: {rnk: 4}}}": "`rnk` is not a setting of `lora`: did you mean `rank`?",
    "{name: rte, methods: {lora: {sites: [query]}}}": "`sites` is the same for every task of a study",
    "{name: rte, methods: {lora: {rank: 0}}}": "tasks[0].methods.lora: rank cannot be 0",
    "{name: rte, methods: {lroa: {rank: 4}}}": "the study has no method `lroa`: did you mean `lora`?",
    "{name: rte, methods: {lora: {}}}": "tasks[0].methods.lora has no effect: it sets nothing",
    "{name: rte, settings: {epochs: 2}, methods: {lora: {epochs: 1}, full: {epochs: 1}}}": (
        "tasks[0].settings.epochs has no effect: every method has its own in `methods` of the task"
    ),
    "{name: rte, settings: {micro_batch_size: 5}}": "batch_size 32 of `full` is not a multiple of micro_batch_size 5",
    "{name: rtte, settings: {epochs: 2}}": "unknown task `rtte`: did you mean `rte`?",
}


@pytest.mark.parametrize("task", WRONG)
def test_a_setting_that_a_task_cannot_have_is_named(tmp_path: Path, task: str) -> None:
    assert WRONG[task] in error_of(f"{STUDY}tasks: [{task}]\n", tmp_path)


def test_a_setting_that_the_search_replaces_is_named(tmp_path: Path) -> None:
    tasks = "tasks: [{name: rte, settings: {warmup: 2%}, methods: {lora: {learning_rate: 1e-4}}}]\nsearch: true\n"
    text = error_of(GOOD.replace("tasks: [mrpc]\n", tasks), tmp_path)
    assert "tasks[0].settings.warmup has no effect: the search sets it for every method" in text
    assert "tasks[0].methods.lora.learning_rate has no effect: the search sets it" in text


OWN_FILES = "name: mine, kind: classification, train: t.csv, text: text, label: label"
WRONG_FILES = {
    "duplicates: drop": "tasks[0].duplicates has no effect: there is one file",
    "positive: spam": "tasks[0].positive has no effect: only F1 looks for a class",
    "metrics: [f1], labels: [ham, spam]": "which of `ham`, `spam`\n  hint: add `positive: ham` or `positive: spam`",
    "metrics: [f1], labels: [ham, spam], positive: spma": "`positive: spma` is not one of the classes: did you mean `spam`?",
    "metrics: [f1], labels: [a, b, c], positive: a": "`positive` has no effect: F1 of 3 classes is the mean over all",
    "labels: [1, '1.0']": "`labels` must be at least two different classes; found `1`, `1`",
    "protocol: paper": "tasks[0].protocol has no effect: your own files are split in one way",
}


@pytest.mark.parametrize("more", WRONG_FILES)
def test_a_setting_without_effect_on_own_files_is_named(tmp_path: Path, more: str) -> None:
    assert WRONG_FILES[more] in error_of(f"{STUDY}tasks: [{{{OWN_FILES}, {more}}}]\n", tmp_path)


def test_a_claim_on_f1_asks_for_the_class_too(tmp_path: Path) -> None:
    claim = "hypotheses: {H: {superior: lora, to: full, on: f1}}\n"
    text = error_of(f"{STUDY}tasks: [{{{OWN_FILES}}}]\n{claim}", tmp_path)
    assert "hypotheses.H: it is about F1, which tasks[0] does not report" in text
