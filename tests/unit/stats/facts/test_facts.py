"""The facts of a study as types: what they keep of the JSON, what they fill in, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixture import Shape, write_analysis

from lorascope.errors import DataError
from lorascope.stats.facts.declared import MethodFacts, TrainFacts
from lorascope.stats.facts.found import BalanceFacts, DataFacts, GateFacts
from lorascope.stats.facts.study import StudyFacts


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    directory = write_analysis(tmp_path_factory.mktemp("facts"), Shape(failed=True, protocol="paper"))
    return json.loads((Path(directory) / "facts.json").read_text())


def test_facts_are_written_as_they_were_read(written: dict) -> None:
    facts = StudyFacts.from_json(written)
    again = json.loads(json.dumps(facts.to_json()))
    assert StudyFacts.from_json(again) == facts
    for data in again["data"].values():
        assert data.pop("balance") == {"names": data["label_names"], "counts": data["label_counts"]}
    assert again == written


def test_a_null_that_was_written_stays_a_null() -> None:
    gate = {"gate": "reload", "passed": True, "seed": None, "value": None, "threshold": 0.1, "detail": ""}
    assert GateFacts.from_json(gate).to_json() == gate
    assert GateFacts("reload", True).to_json() == {"gate": "reload", "passed": True}


def test_a_file_of_an_older_version_is_read_without_what_it_lacks(written: dict) -> None:
    facts = StudyFacts.from_json({"study": {**written["study"], "protocol": "strict"}, "runs": None})
    assert (facts.runs, facts.serving, facts.missing_runs) == ((), None, 0)
    assert facts.provenance.finished is None


def test_facts_without_what_names_them_are_refused(written: dict) -> None:
    with pytest.raises(DataError, match=r"not say enough for GateFacts.*'passed'"):
        StudyFacts.from_json({**written, "gates": [{"gate": "reload"}]})


def test_a_balance_is_read_under_either_name_and_may_be_absent() -> None:
    sizes = {"num_examples": {"test": 2}, "source": "files"}
    old = {"label_names": ["b", "a"], "label_counts": {"test": {"a": 1, "b": 1}}}
    balance = BalanceFacts(names=("b", "a"), counts=old["label_counts"])
    assert DataFacts.from_json({**sizes, **old}).balance == balance
    assert DataFacts.from_json({**sizes, "balance": balance.to_json()}).balance == balance
    assert DataFacts.from_json(sizes).balance is None


def test_a_method_changes_only_the_settings_it_names() -> None:
    shared = TrainFacts(epochs=3, batch_size=16, gradient_clip=0.3)
    assert shared.changed_by(TrainFacts(batch_size=4)) == TrainFacts(epochs=3, batch_size=4, gradient_clip=0.3)
    declared = MethodFacts("lora", "lora", rank=8, sites=("query",))
    assert declared.changed_by(MethodFacts(learning_rate=1e-3)).rank == 8
