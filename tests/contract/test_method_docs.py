"""The method that docs/adding-a-method.md shows works as written: it passes the contract of the registered ones."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import method_contract
import pytest
from pydantic import ValidationError
from tiny import tiny_base

from lorascope.errors import StudyError
from lorascope.plugins import NameTable
from lorascope.registry import METHOD_SETTINGS, METHODS
from lorascope.study import methods as study_methods
from lorascope.study.hyperparameters import searchable
from lorascope.study.spec import Study
from lorascope.training.preparation import prepared_model

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
MODULE, SETTINGS = "lorascope.methods.bitfit", "lorascope.study.methods.bitfit"


def shown_code() -> dict[str, Any]:
    """What the document's Python blocks define, by name."""
    namespace: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL):
        exec(compile(block, str(DOCUMENT), "exec", dont_inherit=True), namespace)
    return namespace


SHOWN = shown_code()
TestBitFit = SHOWN["TestBitFit"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, kind in ((MODULE, "BitFit"), (SETTINGS, "BitFitSpec")):
        module = types.ModuleType(name)
        module.__dict__[kind] = SHOWN[kind]
        monkeypatch.setitem(sys.modules, name, module)
    methods = NameTable("methods", {kind: e.place for kind, e in METHODS.items()} | {"bitfit": f"{MODULE}:BitFit"})
    monkeypatch.setattr(method_contract, "METHODS", methods)
    monkeypatch.setattr(study_methods, "METHODS", methods)
    places = {kind: entry.place for kind, entry in METHOD_SETTINGS.items()} | {"bitfit": f"{SETTINGS}:BitFitSpec"}
    monkeypatch.setattr(study_methods, "METHOD_SETTINGS", NameTable("method_settings", places))
    Study.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    Study.model_rebuild(force=True)


def study_with(**method: Any) -> Study:
    return Study.model_validate(
        {"name": "s", "question": "?", "models": ["m"], "tasks": ["mrpc"], "methods": ["full", method], "search": True}
    )


def test_a_study_knows_the_shown_method_by_its_two_lines() -> None:
    study = study_with(kind="bitfit", learning_rate=2e-3)
    assert study.methods[1] == SHOWN["BitFitSpec"](name="bitfit", kind="bitfit", learning_rate=2e-3)
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert study.search is not None and "warmup" in study.search.of("bitfit", "bitfit")
    assert list(searchable("bitfit")) == [*searchable("full")]
    with pytest.raises(ValidationError, match=r"methods\.1\.bitfit\.rank"):
        study_with(kind="bitfit", rank=8)


def test_shown_method_trains_a_small_part_of_the_model(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["bert"])
    method = SHOWN["BitFit"](TestBitFit.spec)
    model = prepared_model(base, [method], [method_contract.SEEDS])[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.endswith("bias") or name.startswith(base.head) for name in trained)
    assert "bert.encoder.layer.0.attention.self.query.bias" in trained
    assert method.expected_parameters(base.model, head=base.head) < sum(p.numel() for p in model.parameters()) / 10


def test_shown_method_refuses_a_model_without_biases(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["llama"])
    with pytest.raises(StudyError, match="has no biases"):
        prepared_model(base, [SHOWN["BitFit"](TestBitFit.spec)], [method_contract.SEEDS])[0]
