"""Proof before time: what is not proven to be the run is never timed. The engine here is a stand-in that counts requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorascope.serving import protocol
from lorascope.serving.arms import Arm
from lorascope.serving.engines import EngineConfig, Ready, Served, ServedBatches
from lorascope.serving.equivalence import EquivalenceGate
from lorascope.study.measure import ServingSpec


class Engine:
    """Answers every request after 10 ms."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.ready = Ready(1.0, {}, "none", {}, {}, None, ())
        self.num_asked = 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def serve(self, batches: Any, **named: Any) -> ServedBatches:
        asked = [request for batch in batches for request in batch]
        self.num_asked += len(asked)
        return ServedBatches(tuple(Served(r.id, 0.0, 0.01, 0.01, (0.01,), None) for r in asked), (0.01,) * len(batches))

    def memory(self) -> dict[str, int]:
        return {"weights_bytes": 1}


@pytest.mark.parametrize("passed", [True, False])
def test_an_arm_is_timed_only_if_it_computes_what_its_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    monkeypatch.setattr(protocol, "EngineProcess", Engine)
    asked_when_checked = []

    def check(engine: Any, arm: Arm) -> list[EquivalenceGate]:
        asked_when_checked.append(engine.num_asked)
        return [EquivalenceGate("probability", 0.5, 1e-3, passed, 1, "it answers otherwise")]

    comparison = protocol.Comparison(
        spec=ServingSpec(arms=("merged",), batch_sizes=(1,), requests=3, warmup=1, repeats=1),
        workload="classification",
        arms={"merged": Arm("merged", tmp_path, {})},
        prompts=[[5, 6, 7]],
        check=check,
        engine="transformers",
        python=tmp_path,
        config=EngineConfig("classification", tmp_path, {}, "float32", "cpu", 8, 1),
        directory=tmp_path,
    )
    (process,) = comparison.processes()
    found = protocol.run_process(comparison, process)
    assert asked_when_checked == [0], "the check comes before any load"
    assert bool(found["figures"]) is passed
    assert (tmp_path / f"{process.name}.parquet").exists() is passed
    assert found["gates"][0]["passed"] is passed
    assert protocol.run_process(comparison, process) == found, "a second time it is read, not served"
    assert len(asked_when_checked) == 1
