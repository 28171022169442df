"""The search for a faster setting: only what is proven and faster is chosen, and nothing that goes wrong stops it. The engine
is a stand-in whose batches take as long as its settings say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from lorascope.serving import together, tuning
from lorascope.serving.arms import EngineArm
from lorascope.serving.equivalence import EquivalenceGate
from lorascope.serving.exchange import EngineConfig, EngineFailure, Ready, ServedBatches, ServedRequests
from lorascope.serving.levers import Lever, changed_modules, combine, known_levers
from lorascope.serving.protocol import ServingComparison
from lorascope.serving.record import read_serving
from lorascope.study.measure import ServingSpec

TARGETS, TOKENS, SLOTS = "lora_target_modules", "max_num_batched_tokens 1024", "max_loras 1"


class Engine:
    """seconds: of a batch by the options it has been started with; an exception is raised instead."""

    seconds: ClassVar[Mapping[str, float | Exception]] = {}
    started: ClassVar[list[EngineConfig]] = []
    asked: ClassVar[list[tuple[str, int]]] = []
    """(options beside `shared`, batch size) of every load"""

    def __init__(self, engine: str, config: EngineConfig, **named: Any) -> None:
        self.config = config
        self.ready = Ready(1.0, {}, "none", {}, {}, None, ())
        Engine.started.append(config)

    def start(self) -> Engine:
        if isinstance(self._took, Exception):
            raise self._took
        return self

    @property
    def _took(self) -> float | Exception:
        key = "+".join([*self.config.options, *(["slots"] if self.config.slots else [])])
        return self.seconds.get(key, 1.0)

    def end(self) -> None:
        pass

    def memory(self) -> dict[str, int]:
        return {}

    def serve(self, batches: Any, **named: Any) -> ServedBatches:
        self.asked.append(("+".join(list(self.config.options)[1:]), len(batches[0])))
        asked = [request for batch in batches for request in batch]
        answers = tuple(ServedRequests(r.id, 0.0, 0.01, 0.01, (0.01,), None, 0.0) for r in asked)
        assert isinstance(self._took, float)
        return ServedBatches(answers, (self._took,) * len(batches))


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServingComparison:
    """Two adapters on two modules, served in batches of 1 and 2 by the stand-in."""
    monkeypatch.setattr(tuning, "EngineProcess", Engine)
    monkeypatch.setattr(Engine, "started", [])
    monkeypatch.setattr(Engine, "asked", [])
    adapters = {}
    for name, module in (("a", "q_proj"), ("b", "v_proj")):
        (tmp_path / name).mkdir()
        save_file(
            {f"base_model.model.model.layers.0.self_attn.{module}.lora_A.weight": np.zeros((2, 4), np.float32),
             "base_model.model.score.weight": np.zeros((2, 4), np.float32)},
            tmp_path / name / "adapter_model.safetensors",
        )  # fmt: skip
        adapters[name] = tmp_path / name
    return ServingComparison(
        spec=ServingSpec(arms=("merged", 2), batch_sizes=(1, 2), requests=3, warmup=0, tune=True, engine="vllm"),
        workload="classification",
        arms={"adapters-2": EngineArm("adapters-2", tmp_path, adapters)},
        prompts=[[5, 6, 7], [8, 9]],
        check=lambda engine, arm: [EquivalenceGate("log-odds", 0.0, 1e-3, True, 1, "")],
        engine="vllm",
        python=tmp_path,
        config=EngineConfig("classification", tmp_path, {}, "float32", "cpu", 8, 1, options={"shared": 1}),
        directory=tmp_path,
    )


def serve_in(monkeypatch: pytest.MonkeyPatch, **seconds: float | Exception) -> None:
    """Keys: the options beside `shared`, joined by __."""
    named = {"+".join(["shared", *key.split("__")]): value for key, value in seconds.items()}
    monkeypatch.setattr(Engine, "seconds", named)


def test_what_helped_is_tried_together_and_the_fastest_is_chosen(comparison, monkeypatch):
    serve_in(monkeypatch, lora_target_modules=0.8, max_num_batched_tokens=0.9, slots=1.2,
             lora_target_modules__max_num_batched_tokens=0.7)  # fmt: skip
    search = tuning.search_levers(comparison)
    assert search.chosen is not None
    assert search.chosen.options == {"lora_target_modules": ["q_proj", "v_proj"], "max_num_batched_tokens": 1024}
    measured = {trial.levers: trial.cost_ms for trial in search.trials if trial.outcome == "measured"}
    assert measured == {
        (): pytest.approx(1000), (TARGETS,): pytest.approx(800), (TOKENS,): pytest.approx(900),
        (SLOTS,): pytest.approx(1200), (TARGETS, TOKENS): pytest.approx(700),
    }  # fmt: skip
    assert [trial.levers for trial in search.trials if trial.chosen] == [(TARGETS, TOKENS)]
    assert all(config.options["shared"] == 1 for config in Engine.started), "the study's own options stay"
    assert [config.slots for config in Engine.started if config.slots] == [1]


def test_levers_that_spoil_each_other_are_not_chosen_together(comparison, monkeypatch):
    serve_in(monkeypatch, lora_target_modules=0.8, max_num_batched_tokens=0.9,
             lora_target_modules__max_num_batched_tokens=0.95)  # fmt: skip
    chosen = tuning.search_levers(comparison).chosen
    assert chosen is not None and chosen.name == TARGETS


def test_nothing_is_chosen_where_nothing_is_faster_by_more_than_luck(comparison, monkeypatch):
    serve_in(monkeypatch, lora_target_modules=0.995)
    search = tuning.search_levers(comparison)
    assert search.chosen is None and not any(trial.chosen for trial in search.trials)


def test_what_this_vllm_does_not_know_or_cannot_start_is_said_and_skipped(comparison, monkeypatch):
    serve_in(
        monkeypatch,
        lora_target_modules=EngineFailure("vllm: vLLM 0.1 does not know the option\n | log", kind="option"),
        max_num_batched_tokens=EngineFailure("vllm: no memory", kind="out-of-memory"),
        slots=0.5,
    )
    search = tuning.search_levers(comparison)
    found = {trial.levers: (trial.outcome, trial.reason) for trial in search.trials}
    assert found[(TARGETS,)] == ("unknown", "vllm: vLLM 0.1 does not know the option")
    assert found[(TOKENS,)] == ("failed", "vllm: no memory")
    assert search.chosen is not None and search.chosen.name == SLOTS


def test_a_setting_that_answers_otherwise_is_not_timed(comparison, monkeypatch):
    serve_in(monkeypatch, lora_target_modules=0.1)

    def check(engine: Any, arm: EngineArm) -> list[EquivalenceGate]:
        right = TARGETS not in engine.config.options
        return [EquivalenceGate("log-odds", 0.5, 1e-3, right, 1, "it answers otherwise")]

    search = tuning.search_levers(replace(comparison, check=check))
    (trial,) = [trial for trial in search.trials if trial.levers == (TARGETS,)]
    assert (trial.outcome, trial.batch_ms) == ("unproven", {})
    assert search.chosen is None


def test_a_lever_of_gpus_is_not_tried_on_a_processor(comparison):
    search = tuning.search_levers(comparison)
    idle = {trial.levers[0]: trial.reason for trial in search.trials if trial.outcome == "idle"}
    assert {"specialize_active_lora", "VLLM_LORA_ENABLE_DUAL_STREAM", "VLLM_TUNED_CONFIG_FOLDER"} <= idle.keys()
    assert len(Engine.started) == 4, "the default and three levers"


def test_trials_started_together_take_turns_by_size(comparison, monkeypatch):
    monkeypatch.setattr(together, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(tuning, "known_levers", lambda *given, **named: [Lever("a", {"a": 1}), Lever("b", {"b": 1})])
    at_once = comparison.spec.model_copy(update={"engines_at_once": 3})
    search = tuning.search_levers(replace(comparison, spec=at_once))
    assert Engine.asked == [("a", 1), ("b", 1), ("", 1), ("a", 2), ("b", 2), ("", 2)]
    assert [trial.batch_ms.keys() for trial in search.trials] == [{"1", "2"}] * 3


def test_a_search_that_was_interrupted_goes_on_with_the_next_trial(comparison):
    first = tuning.search_levers(comparison)
    num_started = len(Engine.started)
    assert tuning.search_levers(comparison) == first and len(Engine.started) == num_started
    last = max(comparison.directory.glob("trial-*.json"), key=lambda path: json.loads(path.read_text())["order"])
    last.unlink()
    assert tuning.search_levers(comparison) == first and len(Engine.started) == num_started + 1


def test_the_winner_is_served_in_every_repeat_beside_the_default(comparison):
    tuned = replace(comparison, tuned=Lever("both", {"x": 1}))
    settings = [(p.repeat, p.arm, p.setting) for p in tuned.processes() if p.arm == "adapters-2"]
    assert settings.count((0, "adapters-2", "tuned")) == settings.count((4, "adapters-2", "tuned")) == 1
    assert not any(p.setting == "tuned" for p in comparison.processes())


def test_levers_for_a_gpu_follow_from_adapters_batches_and_tables(comparison):
    def levers(**changed: Any) -> dict[str, Lever]:
        given = {"device": "cuda:0", "batch_sizes": (1, 3), "longest_prompt": 700, "slots": None, "kernel_tables": None}
        found = known_levers(comparison.arms["adapters-2"].adapters, **{**given, **changed})
        return {lever.name.split()[0]: lever for lever in found}

    found = levers(kernel_tables=Path("tables"))
    assert not any(lever.idle for lever in found.values())
    assert found["VLLM_TUNED_CONFIG_FOLDER"].options == {"VLLM_TUNED_CONFIG_FOLDER": "tables"}
    assert found["cudagraph_capture_sizes"].options == {"cudagraph_capture_sizes": [1, 2, 3, 4, 8]}
    assert found["max_num_batched_tokens"].options == {"max_num_batched_tokens": 3072}
    assert found["max_loras"].slots == 1
    found = levers(batch_sizes=(1, 16), slots=1)
    assert {name for name, lever in found.items() if lever.idle} == {
        "VLLM_TUNED_CONFIG_FOLDER", "cudagraph_capture_sizes", "max_loras",
    }  # fmt: skip


def test_modules_are_those_of_any_adapter_and_a_head_is_none(comparison):
    assert changed_modules(comparison.arms["adapters-2"].adapters) == ["q_proj", "v_proj"]
    both = combine([Lever("a", {"x": 1}), Lever("b", {"y": 2}, slots=3)])
    assert (both.name, both.options, both.slots) == ("a + b", {"x": 1, "y": 2}, 3)


def test_trials_are_told_apart_from_the_processes_of_the_comparison(comparison, tmp_path):
    """A trial that failed its proof must not take the arm out of the analysis."""
    trial = {**tuning.search_levers(comparison).trials[0].to_json(), "gates": [{"passed": False}]}
    pd.DataFrame([{"arm": "adapters-2", "value": 1.0}]).to_parquet(tmp_path / "serving.parquet")
    (tmp_path / "processes.json").write_text(json.dumps([trial]))
    artifact: Any = SimpleNamespace(file=tmp_path.joinpath, result={"merging": [{"what": "x"}]})
    record = read_serving([({"model": "tiny"}, artifact)])
    assert record is not None and (record.gates, record.engines, record.failures) == ([], [], [])
    assert record.merging == [{"model": "tiny", "what": "x"}]
    assert [(found["model"], found["arm"], found["levers"]) for found in record.trials] == [("tiny", "adapters-2", [])]
