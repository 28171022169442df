"""Every registered method against the contract."""

from __future__ import annotations

from method_contract import MethodContract

from lorascope.registry import METHODS
from lorascope.study.methods.full import FullSpec
from lorascope.study.methods.lora import LoraSpec


class TestFull(MethodContract):
    spec = FullSpec(name="full", kind="full")


class TestLora(MethodContract):
    spec = LoraSpec(name="lora", kind="lora", rank=4, alpha=8, dropout=0.1)
    gang = (
        LoraSpec(name="none", kind="lora", rank=8, alpha=4, dropout=0.0),
        LoraSpec(name="much", kind="lora", rank=1, alpha=8, dropout=0.5),
    )
    learning_rate = 2e-2


class TestLoraOnAllLinearLayers(MethodContract):
    spec = LoraSpec(name="lora", kind="lora", rank=2, alpha=2, sites=("all-linear",))
    learning_rate = 2e-2


class TestLoraOnMlp(MethodContract):
    spec = LoraSpec(name="lora", kind="lora", rank=2, alpha=4, sites=("mlp",))
    learning_rate = 2e-2


def test_every_registered_method_is_under_contract() -> None:
    tested = {case.spec.kind for case in MethodContract.__subclasses__()}
    assert tested >= {kind for kind, entry in METHODS.items() if entry.plugin is None}
