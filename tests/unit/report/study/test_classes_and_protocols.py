"""What a report says of each task: the class that F1 looks for, the protocol, and what was taken out of the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import Shape, write_analysis

from lorascope.analysis.naming import name_classes
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.study.limitations import limitations
from lorascope.report.study.sources import settings_table, sizes_table
from lorascope.report.study.summary import comparison_sentence, summary_sentences
from lorascope.report.study.tables import differences_table, results_table
from lorascope.study.spec import Study

SST2 = {"name": "sst2", "protocol": "resplit", "test_rows": 5000, "settings": {"max_length": 128, "epochs": 2}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 is split anew, with settings of its own; MRPC as always."""
    folder = write_analysis(tmp_path_factory.mktemp("report") / "analysis", Shape(tasks=("mrpc", "sst2")))
    facts = json.loads((folder / "facts.json").read_text())
    facts["study"]["tasks"] = [{"name": "mrpc"}, SST2]
    facts["data"]["sst2"] |= {"protocol": "resplit", "dropped_parts": 40233}
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def facts(directory: Path) -> Facts:
    return read_facts(directory)


def test_f1_is_named_with_its_class_in_every_row_and_sentence(facts: Facts) -> None:
    labels = {row[2] for row in results_table(facts).rows if row[0] == "MRPC"}
    assert labels == {"accuracy", f"F1 ({facts.data['mrpc'].balance.names[1]})"}  # type: ignore[union-attr]
    on_f1 = replace(facts.analysis.comparisons[0], metric="f1")
    changed = replace(facts, analysis=replace(facts.analysis, comparisons=[on_f1]))
    assert "F1 (" in comparison_sentence(changed, on_f1)
    assert "F1 (" in differences_table(changed).rows[0][1]


def test_macro_f1_is_named_as_such(facts: Facts) -> None:
    balance = replace(facts.data["mrpc"].balance, names=("a", "b", "c"))  # type: ignore[type-var]
    data = {**facts.data, "mrpc": replace(facts.data["mrpc"], balance=balance)}
    changed = replace(facts, stated=replace(facts.stated, data=data))
    assert changed.metric_style("f1", task="mrpc").label == "macro F1"
    assert changed.metric_style("f1", task="*").label == "F1"  # the tasks differ
    assert changed.metric_style("accuracy", task="mrpc").label == "accuracy"


def test_a_claim_about_f1_says_which(directory: Path) -> None:
    study = Study.model_validate(
        {"name": "s", "question": "?", "models": ["m"], "tasks": ["mrpc", "sst2"], "methods": ["full", "lora"],
         "hypotheses": {"H1": {"superior": "lora", "to": "full", "on": "f1"}, "H2": {"superior": "lora", "to": "full"}}}
    )  # fmt: skip
    analysis = read_facts(directory).analysis
    results = [replace(analysis.hypotheses[0], name=name, claim="LoRA is better") for name in ("H1", "H2")]
    classes = {"mrpc": ("not_equivalent", "equivalent"), "sst2": ("negative", "positive")}
    primary = {"mrpc": "accuracy", "sst2": "f1"}
    named = name_classes(replace(analysis, hypotheses=results), classes, study, primary=primary)
    assert [result.claim for result in named.hypotheses] == [
        "LoRA is better (F1 (equivalent) on mrpc; F1 (positive) on sst2)",
        "LoRA is better (F1 (positive) on sst2)",
    ]


def test_tables_name_the_protocol_of_each_task(facts: Facts) -> None:
    table = sizes_table(facts)
    assert table is not None
    assert [row[1] for row in table.rows] == ["strict", "resplit"]
    assert "40,233" in table.rows[1] and "0" in table.rows[0]
    assert "protocols `strict` (MRPC) and `resplit` (SST-2)" in summary_sentences(facts)[0]
    assert "not comparable with published ones" in results_table(facts).note
    assert any("not comparable with published ones" in text for text in limitations(facts))


def test_a_limit_of_a_task_stands_with_that_of_the_study(facts: Facts) -> None:
    assert "(SST-2: 128) tokens" in settings_table(facts).note


def test_examples_that_were_taken_out_are_counted(facts: Facts) -> None:
    (text,) = [text for text in limitations(facts) if text.startswith("Taken out of the earlier split")]
    assert "12 examples of MRPC" in text
