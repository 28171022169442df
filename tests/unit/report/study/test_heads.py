"""The report says which heads were replaced, and which layers of them are pretrained."""

from __future__ import annotations

import json
from pathlib import Path

from report_fixture import write_analysis

from lorascope.report.page.facts import read_facts
from lorascope.report.study.sections import build_document


def test_the_report_says_which_heads_were_replaced(tmp_path: Path) -> None:
    directory = write_analysis(tmp_path / "analysis")
    assert "heads" not in {table.name for table in build_document(read_facts(directory)).tables}
    path = directory / "facts.json"
    facts = json.loads(path.read_text())
    for run in facts["runs"]:
        drawn, kept = ["classifier.out_proj"], ["classifier.dense"]
        run["head"] = {"drawn": drawn, "kept": kept, "replaced": {"classifier.out_proj.weight": [3, 32]}}
    path.write_text(json.dumps(facts))
    (table,) = [table for table in build_document(read_facts(directory)).tables if table.name == "heads"]
    assert len(table.rows) == len({(run["model"], run["task"]) for run in facts["runs"]})
    assert table.rows[0][2:] == ("classifier.out_proj", "classifier.dense", "classifier.out_proj.weight (3 x 32)")
