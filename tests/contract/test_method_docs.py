"""The method that docs/adding-a-method.md shows works as written: it passes the contract of the registered ones."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import method_contract
import pytest
from tiny import tiny_base

from lorascope.errors import StudyError
from lorascope.plugins import NameTable
from lorascope.training.preparation import prepared_model

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
MODULE = "lorascope.methods.bitfit"


def shown_code() -> dict[str, Any]:
    """What the document's Python blocks define, by name."""
    namespace: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL):
        exec(compile(block, str(DOCUMENT), "exec", dont_inherit=True), namespace)
    return namespace


SHOWN = shown_code()
TestBitFit = SHOWN["TestBitFit"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(MODULE)
    module.__dict__["BitFit"] = SHOWN["BitFit"]
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(method_contract, "METHODS", NameTable("methods", {"bitfit": f"{MODULE}:BitFit"}))


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
