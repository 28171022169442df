"""Guesses where nothing was timed: they grow with what costs time, and stop where there is nothing to guess from."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_fixture import finish, small_graph, trained

from lorascope.engine.store.directory import Store
from lorascope.plan.guess import Guesses, num_parameters
from lorascope.plan.history import read_history
from lorascope.plan.outlook import Machines, plan_study
from lorascope.study.spec import ModelSpec


def seconds_of_a_run(directory: Path, *overrides: str, method: str = "full", device: str = "cpu") -> float:
    graph = small_graph(directory, *overrides)
    step = next(step for step in graph.of_kind("train") if graph.labels[step.id].method == method)
    found = Guesses(graph, device=device).of(step)
    assert found is not None and found.seconds is not None and found.source == "guess"
    return found.seconds


def test_a_guess_grows_with_epochs_and_is_smaller_on_capped_data(tmp_path: Path) -> None:
    usual = seconds_of_a_run(tmp_path)
    assert seconds_of_a_run(tmp_path, "train.epochs=40") > 2 * usual
    assert seconds_of_a_run(tmp_path, "data.train_examples=32") < usual


def test_an_adapter_of_a_large_model_costs_less_than_all_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorascope.plan.guess.num_parameters", lambda model: 7_000_000_000)
    full, lora = (seconds_of_a_run(tmp_path, method=method) for method in ("full", "lora"))
    assert 0.5 < lora / full < 0.8
    assert seconds_of_a_run(tmp_path, device="cuda") < 0.1 * full


def test_parameters_are_counted_from_the_config_or_read_in_the_name(tmp_path: Path) -> None:
    small_graph(tmp_path)
    counted = num_parameters(ModelSpec.model_validate({"name": "m", "source": {"path": str(tmp_path / "bert")}}))
    assert counted is not None and 1_000 < counted < 1_000_000
    for name, number in (("smollm2-135m", 135_000_000), ("TinyLlama-1.1B-Chat", 1_100_000_000)):
        source = {"hub": f"owner/{name}", "revision": "0" * 40}
        assert num_parameters(ModelSpec.model_validate({"name": "mine", "source": source})) == number
    nameless = {"name": "mine", "source": {"hub": "owner/model", "revision": "0" * 40}}
    assert num_parameters(ModelSpec.model_validate(nameless)) is None


def test_nothing_is_guessed_once_a_step_was_timed(tmp_path: Path) -> None:
    graph, store = small_graph(tmp_path), Store(tmp_path / "store")
    finish(store, graph.of_kind("train")[0], seconds=20, result=trained(training=12, evaluation=6))
    planned = plan_study(graph, store, read_history(store, device="cpu"), machines=Machines(1, 1, "cpu"))
    assert planned.total.num_guessed == 0 and planned.total.num_unknown > 0
