"""The search for a faster setting with real vLLM: a lever it knows is proven and timed, one it does not know is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_served import PROMPTS, VLLM_PYTHON, save_adapters, save_small_llama, small_config

from lorascope.serving import tuning
from lorascope.serving.arms import EngineArm
from lorascope.serving.engines import EngineProcess
from lorascope.serving.equivalence import EquivalenceGate, generation_gate
from lorascope.serving.exchange import Request
from lorascope.serving.levers import Lever, known_levers
from lorascope.serving.protocol import ServingComparison
from lorascope.serving.reference import Generated, OfflineModel
from lorascope.study.measure import ServingSpec


def test_a_lever_is_proven_and_timed_and_an_unknown_one_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert VLLM_PYTHON.exists(), f"{VLLM_PYTHON} is not there: make it with `make serve-env`"
    base = save_small_llama(tmp_path / "base")
    adapters = save_adapters(base, tmp_path, ["one"])
    config = small_config(base, adapters)
    reference = OfflineModel(base, workload="generation", dtype="float32", adapters=adapters)

    def check(engine: EngineProcess, arm: EngineArm) -> list[EquivalenceGate]:
        requests = [Request(index, prompt, "one", output_tokens=8) for index, prompt in enumerate(PROMPTS)]
        outputs: list[Any] = [one.output for one in engine.serve([requests], keep_outputs=True).requests]
        judged = reference.judge([Generated(p, "one", tokens) for p, tokens in zip(PROMPTS, outputs, strict=True)])
        return [generation_gate(judged, num_tokens=8 * len(PROMPTS), dtype="float32")]

    def levers(*arguments: Any, **named: Any) -> list[Lever]:
        targets = next(iter(known_levers(*arguments, **named)))
        return [targets, Lever("of tomorrow", {"of_tomorrow": True})]

    monkeypatch.setattr(tuning, "known_levers", levers)
    comparison = ServingComparison(
        spec=ServingSpec(arms=(1,), batch_sizes=(1, 4), requests=8, warmup=2, output_tokens=8, engine="vllm", tune=True),
        workload="generation", arms={"adapters-1": EngineArm("adapters-1", base, adapters)}, prompts=PROMPTS, check=check,
        engine="vllm", python=VLLM_PYTHON, config=config, directory=tmp_path,
    )  # fmt: skip
    default, targets, unknown = tuning.search_levers(comparison).trials
    for trial in (default, targets):
        assert trial.outcome == "measured", trial.reason
        assert trial.gates[0]["passed"] and trial.gates[0]["n"] == 48
        assert trial.batch_ms.keys() == {"1", "4"} and all(ms > 0 for ms in trial.batch_ms.values())
    assert default.engine and targets.engine
    # Two modules of seven have slots: what shows that vLLM was restricted to them.
    slots = [trial.engine["memory"]["adapter_bytes"] for trial in (default, targets) if trial.engine]
    assert 0 < slots[1] < slots[0] / 2
    assert unknown.outcome == "unknown" and "does not know the option `of_tomorrow`" in unknown.reason
