"""Which class is taken for which, and the examples on which arms disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_study import run_rows
from report_fixture import Shape, write_analysis

from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.study.examples import confusion_table, disagreements_table, predicted
from lorascope.report.study.sections import build_document

LABELS = np.array([0, 0, 0, 1, 1, 1])
RIGHT = {
    ("full", 42): [1, 1, 1, 1, 1, 0],
    ("full", 1337): [1, 1, 1, 1, 0, 0],
    ("lora", 42): [1, 1, 0, 1, 1, 1],
    ("lora", 1337): [0, 1, 1, 1, 1, 1],
}


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    directory = write_analysis(tmp_path / "analysis", Shape(tasks=("mrpc",), seeds=(42, 1337)))
    rows = [
        row
        for (method, seed), right in RIGHT.items()
        for row in run_rows("mrpc", method, seed, np.array(right), LABELS, seconds=1.0)
    ]
    pd.DataFrame(rows).assign(model="minilm-l6", site=None, layer=None).to_parquet(directory / "measurements.parquet")
    return read_facts(directory)


def test_confusions_are_counted_by_class_and_arm(facts: Facts):
    table = confusion_table(facts, predicted(facts))
    assert table is not None
    full = [row[2:] for row in table.rows if row[1] == "full fine-tuning"]
    names = [full[0][0], full[2][0]]
    assert full == [
        (names[0], names[0], "3.0", "3 to 3", "100%"),
        (names[0], names[1], "0.0", "0 to 0", "0%"),
        (names[1], names[0], "1.5", "1 to 2", "50%"),
        (names[1], names[1], "1.5", "1 to 2", "50%"),
    ]
    assert names[0] != names[1]


def test_the_examples_with_the_widest_disagreement_come_first(facts: Facts):
    table = disagreements_table(facts, predicted(facts))
    assert table is not None
    found = [row[2:3] + row[4:] for row in table.rows]
    assert found[0] == ("e5", "2 of 2", "0 of 2"), "LoRA is right with both seeds, full fine-tuning with none"
    assert found[1:] == [("e0", "1 of 2", "2 of 2"), ("e2", "1 of 2", "2 of 2"), ("e4", "2 of 2", "1 of 2")]


def test_a_report_has_a_section_of_single_examples(facts: Facts):
    section = next(section for section in build_document(facts).sections if section.title == "Single examples")
    assert [block.name for block in section.blocks] == ["confusion", "disagreements"]


def test_a_task_without_classes_has_no_such_section(facts: Facts):
    table = pd.read_parquet(facts.directory / "measurements.parquet")
    table[~table["metric"].isin(["label", "prediction"])].to_parquet(facts.directory / "measurements.parquet")
    assert all(section.title != "Single examples" for section in build_document(facts).sections)
