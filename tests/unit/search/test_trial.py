"""The `trial` step: what it commits, that it reads no test set, and that its stages are one training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from tiny import as_artifact, step_context, tiny_columns, tiny_examples
from transformers import AutoTokenizer

from lorascope.engine.context import StepContext
from lorascope.engine.step import Resources, Step
from lorascope.engine.warm import Warm
from lorascope.models.catalog import describe_model
from lorascope.search import trial
from lorascope.search.trial import forget_states, state_file, train_trial, train_trials
from lorascope.study.spec import ModelSpec, Seeds, TrainSpec
from lorascope.training.run import train_run

FULL = {"kind": "full"}
LORA = {"kind": "lora", "rank": 2, "alpha": 4, "dropout": 0.1, "sites": ["query"]}
THIRDS = (1 / 3, 2 / 3, 1.0)


@pytest.fixture
def context(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Callable[..., StepContext]:
    """A context of a `trial` step on a tiny BERT, whose tokens have no test set. Those in one `place` share a cache."""
    checkpoint = tiny_checkpoints["bert"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    identity, locations = describe_model(
        ModelSpec.model_validate({"name": "tiny", "source": {"path": str(checkpoint)}})
    )

    def make(
        method: Mapping[str, Any],
        *,
        stops: tuple[float, ...] = (1.0,),
        rate: float = 1e-2,
        place: str = "a",
        **train: Any,
    ) -> StepContext:
        directory = tmp_path / place / str(len(list(tmp_path.rglob("record.json"))))
        data = step_context(directory, Step("data", 1, {}), {}, cache_dir=tmp_path / place)
        description = {
            "class": "docstrings", "name": "tiny", "num_labels": 2, "label_names": ["bad", "good"],
            "text_columns": ["text"], "metrics": ["accuracy"],
        }  # fmt: skip
        tokens = step_context(directory, Step("tokens", 1, {}), {})
        for split, number in (("train", 48), ("validation", 24)):
            tiny_columns(tokens.out / split, tiny_examples(number, seed=number), tokenizer)
        deps = {"data": as_artifact(data, {"task": description}), "tokens": as_artifact(tokens, {})}
        spec = TrainSpec.model_validate({"batch_size": 8, "epochs": 3, "early_stopping": None, **train})
        params = {
            "model": identity, "method": dict(method), "learning_rate": rate,
            "seeds": Seeds.model_validate(3).model_dump(), "seeds_for": "tiny",
            "train": spec.model_dump(mode="json", exclude={"gang"}),
            "stops": list(stops),
        }  # fmt: skip
        step = Step("trial", 1, params, locations=locations, resources=Resources(gang_key="k", gang_limit=4))
        return step_context(directory, step, deps, cache_dir=tmp_path / place, warm=Warm())

    return make


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_trial_scores_what_its_run_scores_and_keeps_no_weights(
    context: Callable[..., StepContext], method: Mapping[str, Any]
) -> None:
    judged, run = context(method), context(method)
    found, trained = train_trial(judged), train_run(run)
    assert found["value"] == trained["validation"]["accuracy"]
    assert found["best_epoch"] == trained["best_epoch"]
    assert found["loss"] == pytest.approx(trained["validation"]["loss"], rel=1e-5)
    assert found["tokens"] == found["planned_tokens"] > 0
    assert found["gang_peak_memory_bytes"] > 2**20
    assert [point["value"] for point in found["curve"]][-1:] != []
    assert list(judged.out.iterdir()) == []


def test_a_trial_that_diverges_is_a_result(context: Callable[..., StepContext]) -> None:
    found = train_trial(context(FULL, rate=1e30))
    assert (found["value"], found["loss"]) == (None, None)
    assert "became" in found["diverged"] or "broke the model" in found["diverged"]
    assert found["tokens"] > 0


def test_what_breaks_a_trial_otherwise_is_a_failure(context: Callable[..., StepContext]) -> None:
    with pytest.raises(Exception, match="nonsense"):
        train_trial(context({**LORA, "sites": ["nonsense"]}))


def stages(
    context: Callable[..., StepContext], *, place: str, method: Mapping[str, Any] = LORA
) -> list[dict[str, Any]]:
    return [train_trial(context(method, stops=THIRDS[:count], place=place)) for count in (1, 2, 3)]


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_stages_that_take_up_a_state_equal_one_training_from_the_beginning(
    context: Callable[..., StepContext], method: Mapping[str, Any], tmp_path: Path
) -> None:
    staged = stages(context, place="staged", method=method)
    whole = train_trial(context(method, stops=THIRDS, place="whole"))
    assert [found["taken_up"] for found in staged] == [False, True, True]
    assert not whole["taken_up"]
    for key in ("value", "loss", "curve", "updates", "tokens", "planned_tokens"):
        assert staged[-1][key] == whole[key], key
    assert [found["updates"] for found in staged] == [6, 12, 18]
    assert staged[0]["tokens"] < staged[1]["tokens"] < staged[2]["tokens"]


def test_a_state_that_vanishes_makes_its_trial_begin_anew_and_no_other(
    context: Callable[..., StepContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when it is looked for, and gone when it is read."""
    for rate in (1e-2, 1e-3):
        train_trial(context(LORA, stops=THIRDS[:1], rate=rate))
    undisturbed = train_trial(context(LORA, stops=THIRDS[:2], place="b"))
    members = [context(LORA, stops=THIRDS[:2], rate=rate) for rate in (1e-2, 1e-3)]
    gone = state_file(members[0].cache_dir, members[0].step, THIRDS[:1])

    def copy(source: Path, target: Path) -> None:
        if source == gone:
            source.unlink()
        copyfile(source, target)

    monkeypatch.setattr(trial.shutil, "copyfile", copy)
    found = dict(train_trials(members))
    assert [found[index]["taken_up"] for index in (0, 1)] == [False, True]
    assert found[0]["updates"] == found[1]["updates"] == 12
    assert [p["value"] for p in found[0]["curve"]] == [p["value"] for p in undisturbed["curve"]]


def test_a_state_that_cannot_be_read_fails_its_trial_alone(
    context: Callable[..., StepContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate in (1e-2, 1e-3):
        train_trial(context(LORA, stops=THIRDS[:1], rate=rate))
    members = [context(LORA, stops=THIRDS[:2], rate=rate) for rate in (1e-2, 1e-3)]
    broken = state_file(members[0].cache_dir, members[0].step, THIRDS[:1])

    def copy(source: Path, target: Path) -> None:
        if source == broken:
            raise OSError(5, "Input/output error")
        copyfile(source, target)

    monkeypatch.setattr(trial.shutil, "copyfile", copy)
    found = dict(train_trials(members))
    assert isinstance(found[0], OSError)
    assert found[1]["taken_up"] and found[1]["updates"] == 12


def test_a_state_too_large_to_be_worth_keeping_is_not_kept(
    context: Callable[..., StepContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = stages(context, place="kept")
    monkeypatch.setattr(trial, "LARGEST_STATE_BYTES", 10)
    anew = stages(context, place="anew")
    assert [found["taken_up"] for found in anew] == [False, False, False]
    assert anew[-1]["curve"] == kept[-1]["curve"]


def test_states_are_forgotten_when_the_search_is_over(context: Callable[..., StepContext], tmp_path: Path) -> None:
    early = context(LORA, stops=THIRDS[:1])
    train_trial(early)
    (state,) = (tmp_path / "a" / "trials").iterdir()
    forget_states(tmp_path / "a", context(FULL, stops=THIRDS[:1]).step)
    assert state.exists(), "another trial's"
    forget_states(tmp_path / "a", early.step)
    assert not state.exists()


def test_trials_that_differ_in_their_own_settings_train_together(context: Callable[..., StepContext]) -> None:
    settings: list[dict[str, Any]] = [
        {"rate": 1e-2}, {"rate": 1e-3, "warmup": 0.3, "weight_decay": 0.1}, {"rate": 3e-3, "epochs": 2},
    ]  # fmt: skip
    methods = [LORA, {**LORA, "alpha": 32, "dropout": 0.0}, {**LORA, "rank": 4}]
    alone = [train_trial(context(m, **s)) for m, s in zip(methods, settings, strict=True)]
    together = dict(train_trials([context(m, **s) for m, s in zip(methods, settings, strict=True)]))
    assert [together[index]["gang"] for index in range(3)] == [3, 3, 3]
    for index, found in enumerate(alone):
        assert [p["value"] for p in together[index]["curve"]] == [p["value"] for p in found["curve"]]
        assert together[index]["loss"] == pytest.approx(found["loss"], rel=1e-4)
