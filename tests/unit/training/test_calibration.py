"""The calibration step: real updates of real (tiny) runs, on the batches that say most."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import STUDY, write_small_study
from tiny import tiny_reading

from lorascope import api, registry
from lorascope.engine.store.directory import Store
from lorascope.report.plan import wording as plan_wording
from lorascope.report.plan.document import plan_markdown
from lorascope.training import calibration
from lorascope.training.calibration import _spread_places, mean_of_epoch, sample_first_epoch
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory
from lorascope.training.member import Callbacks, Member, Recipe


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("calibrated")
    study = api.load(write_small_study(directory, STUDY.replace("draws: 200", "draws: 100")))
    api.calibrate(study, store=directory / "store", devices=["cpu"])
    return directory


def test_a_calibration_makes_a_plan_of_known_times_and_runs_no_run(calibrated: Path) -> None:
    study = api.load(calibrated / "study.yaml", overrides=["measure.drift.draws=100"])
    plan = api.plan(study, store=calibrated / "store", devices=["cpu"])
    unknown = {p.step.kind for p in plan.to_run if p.estimate.seconds is None}
    assert unknown == {"analysis"}
    assert {p.estimate.source for p in plan.to_run if p.step.kind in ("train", "drift", "evaluate")} == {"calibration"}
    assert not Store(calibrated / "store").artifacts("train")
    assert plan.worker_start_seconds is not None
    assert plan.worker_start_seconds > 0.5
    assert {p.step.kind for p in plan.steps if p.is_cached} == {"data", "tokens", "sanity", "baseline"}


def test_its_figures_are_of_a_few_updates_and_of_the_gang_that_would_train(calibrated: Path) -> None:
    artifacts = Store(calibrated / "store").artifacts("calibration")
    assert len(artifacts) == 4
    for artifact in artifacts:
        found = artifact.result["calibration"]
        assert 6 <= found["timed_updates"] <= 30
        assert 0 < found["update_seconds"] < 5
        assert found["evaluation_seconds"] > 0
        assert found["overhead_seconds"] > 0
        assert found["gang"] in (1, 2)
        assert artifact.result["gang_peak_memory_bytes"] > 2**26


def test_a_second_calibration_finds_everything(calibrated: Path) -> None:
    study = api.load(calibrated / "study.yaml", overrides=["measure.drift.draws=100"])
    before = [artifact.id for artifact in Store(calibrated / "store").artifacts()]
    api.calibrate(study, store=calibrated / "store", devices=["cpu"])
    assert [artifact.id for artifact in Store(calibrated / "store").artifacts()] == before
    assert all(
        state == "missing" for step, state in api.status(study, store=calibrated / "store") if step.kind == "train"
    )
    record = json.loads((Store(calibrated / "store").artifacts("calibration")[0].path / "record.json").read_text())
    assert set(record["step"]["params"]["machine"]) == {"host", "device", "torch"}


def test_the_plan_knows_who_trains_together(calibrated: Path, tmp_path: Path) -> None:
    study = api.load(calibrated / "study.yaml", overrides=["measure.drift.draws=100"])
    assert api.plan(study, store=calibrated / "store", devices=["cpu"]).undecided == ()
    decided = {
        json.loads(path.read_text())["together"] for path in (calibrated / "store" / "cache" / "gangs").glob("*.json")
    }
    gangs = {a.result["calibration"]["gang"] for a in Store(calibrated / "store").artifacts("calibration")}
    assert decided == {gang > 1 for gang in gangs}
    copy = shutil.copytree(calibrated / "store", tmp_path / "store")
    shutil.rmtree(copy / "cache" / "gangs")
    undecided = api.plan(study, store=copy, devices=["cpu"])
    assert [p.step.kind for p in undecided.undecided] == ["train"] * 4
    text = plan_wording.memory_sentence(undecided)
    assert text is not None
    assert "whether 4 runs train together (`train.gang: auto`)" in text
    assert text in plan_markdown(undecided, command="", version="", figure=None)
    fixed = api.load(calibrated / "study.yaml", overrides=["measure.drift.draws=100", "train.gang=2"])
    assert api.plan(fixed, store=copy, devices=["cpu"]).undecided == ()


def test_a_run_timed_on_a_sample_is_found_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.EXECUTORS.entries, "local", registry.EXECUTORS["inline"])  # it is to see the next line
    monkeypatch.setattr(calibration, "VALIDATION_EXAMPLES", 16)
    study = api.load(write_small_study(tmp_path, STUDY.replace("draws: 200", "draws: 100")))
    api.calibrate(study, store=tmp_path / "store", devices=["cpu"])
    evaluated = Store(tmp_path / "store").artifacts("evaluate")
    assert {gate["gate"] for a in evaluated for gate in a.result["gates"]} >= {"save, reload, score"}
    for run in Store(tmp_path / "store").artifacts("calibration"):
        assert len(pd.read_parquet(run.file("validation_predictions.parquet"))) == 16


class _Columns:
    """Examples of known lengths."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)


def member(lengths: np.ndarray, *, batch_size: int = 4) -> Member:
    from lorascope.study.spec import Seeds, TrainSpec

    return Member(
        method=None, reading=tiny_reading(), columns=_Columns(lengths),  # type: ignore[arg-type]
        recipe=Recipe(TrainSpec(epochs=3, batch_size=batch_size), 1e-3, Seeds.model_validate(1)),
        callbacks=Callbacks(lambda model: {}),
    )  # fmt: skip


def test_the_longest_batch_comes_first_of_the_same_batches() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=397)
    plain, sampled = member(lengths), member(lengths)
    sample_first_epoch(sampled)
    count = plain.updates_per_epoch
    before = {tuple(plain.rows(update)) for update in range(count)}
    after = [tuple(sampled.rows(update)) for update in range(count + 2)]
    assert set(after) == before
    assert lengths[list(after[0])].max() == lengths.max()
    assert [tuple(sampled.rows(count + 2 + u)) for u in range(3)] == [
        tuple(plain.rows(count + 2 + u)) for u in range(3)
    ]


@pytest.mark.parametrize("count", [7, 15, 31])
def test_the_mean_of_an_epoch_follows_from_a_few_of_its_updates(count: int) -> None:
    """Times that grow with the longest example, beside which a part stays the same, and a long tail of lengths."""
    lengths = np.random.default_rng(1).lognormal(3, 0.6, size=4000).astype(int) + 3
    sampled = member(lengths, batch_size=8)
    longest = sample_first_epoch(sampled)
    assert len(longest) == sampled.updates_per_epoch + 2
    seconds = 0.02 + 0.003 * longest
    timed = seconds[2 : 2 + count].tolist()
    assert mean_of_epoch(timed, longest) == pytest.approx(float(seconds[2:].mean()), rel=1e-6)
    assert np.mean(timed) != pytest.approx(float(seconds[2:].mean()), rel=0.01)


def test_places_are_spread_evenly_from_the_middle() -> None:
    assert _spread_places(8) == [4, 2, 6, 1, 5, 3, 7, 0]
    assert sorted(_spread_places(11)) == list(range(11))
    assert _spread_places(1) == [0]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's high-water mark anew"
)
def test_what_earlier_steps_threw_away_is_not_charged_to_the_next() -> None:
    """A model that holds itself in a circle and small pieces that the C library keeps, 200 MB each."""
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    circle: dict[str, object] = {"weights": torch.ones(50_000_000)}
    circle["self"] = circle
    pieces = [torch.ones(2500) for _ in range(20_000)]
    assert peak_memory_bytes("cpu") > before + 3e8
    del circle, pieces
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") < before + 1e8
