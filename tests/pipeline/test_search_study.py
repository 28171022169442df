"""A study that searches, through the command line: run, run again, kill -9, take up what was found."""

from __future__ import annotations

import json
import random
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from kill import kill_repeatedly
from small_study import environment, lorascope, run, what_was_measured, write_small_study

from lorascope.engine.store.directory import Store

STUDY = """
name: small
question: Does LoRA learn sentiment as well as full fine-tuning?
models: [{name: tiny, source: {path: bert}}]
tasks:
  - {name: sentiment, kind: classification, train: train.csv, text: text, label: label, metrics: [accuracy, f1], positive: good}
methods:
  - full
  - {kind: lora, rank: 4}
seeds: [1, 2]
train: {epochs: 4, batch_size: 16, max_length: 32, evaluations_per_epoch: 2, gang: 3}  # auto asks a clock
search:
  trials: 6
  at_once: 3
  pruning: halving
  train_examples: 300
  space:
    full: {learning_rate: {low: 1e-4, high: 1e-1, log: true}, warmup: {low: 0, high: 0.3}}
    lora: {learning_rate: {low: 1e-3, high: 1e-1, log: true}, alpha: {low: 4, high: 16}, dropout: {low: 0, high: 0.2}}
hypotheses:
  H1: {non_inferior: lora, to: full, margin: 5%}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a study whose searches ran undisturbed."""
    directory = tmp_path_factory.mktemp("searched")
    write_small_study(directory, STUDY)
    done = run(directory, "run", "study.yaml", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


def optima(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (directory / "results" / "small" / "optimal").iterdir()}


def test_one_command_searches_then_trains_and_a_second_one_finds_it_all(finished: Path) -> None:
    kinds = Counter(artifact.step.kind for artifact in Store(finished / "store").artifacts())
    assert kinds["search"] == 2 and kinds["train"] == kinds["evaluate"] == 4
    assert set(optima(finished)) == {"sentiment_full.yaml", "sentiment_lora.yaml"}
    outcome = json.loads(run(finished, "run", "study.yaml", "--json").stdout)
    assert outcome["computed"] == []
    assert "6 trials" in run(finished, "status", "study.yaml").stdout


def test_runs_are_trained_with_what_their_search_found(finished: Path) -> None:
    store = Store(finished / "store")
    found = {artifact.id.split("-")[3]: artifact.result["optimum"]["params"] for artifact in store.artifacts("search")}
    for artifact in store.artifacts("train"):
        params = artifact.step.params
        assert params["learning_rate"] == found[params["method"]["kind"]]["learning_rate"]


def test_halving_ends_trials_early_and_their_states_are_gone(finished: Path) -> None:
    for artifact in Store(finished / "store").artifacts("search"):
        states = Counter(trial["state"] for trial in artifact.result["trials"])
        assert states["pruned"] >= 3 and states["complete"] >= 1
        tokens, unpruned = (sum(t[key] for t in artifact.result["trials"]) for key in ("tokens", "unpruned_tokens"))
        assert tokens < 0.7 * unpruned
    taken_up = [
        a.result["taken_up"] for a in Store(finished / "store").artifacts("trial") if len(a.step.params["stops"]) > 1
    ]
    assert taken_up and all(taken_up)
    assert list((finished / "store" / "cache" / "trials").iterdir()) == []


def test_the_report_shows_the_search(finished: Path) -> None:
    text = (finished / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    assert "## Search" in text
    assert f"(TPE) in optuna {version('optuna')}, each trained with" in text
    figures = {path.name for path in (finished / "results" / "small" / "figures").glob("search*.png")}
    assert {"search_progress.png", "search_importance.png"} <= figures


def test_killed_searches_find_the_same_optimum_by_replay(finished: Path, tmp_path: Path) -> None:
    """kill -9 of worker, coordinator and both, in turn, some in the midst of a trial."""
    path = write_small_study(tmp_path, STUDY)
    store = Store(tmp_path / "store")
    kills = kill_repeatedly(
        lorascope(
            "run", str(path), "--store", str(store.root), "--results", str(tmp_path / "results"),
        ),
        store=store,
        rng=random.Random(6),
        num_kills=6,
        delay_s=(1.0, 4.0),
        environment=environment(LORASCOPE_CHECKPOINT_SECONDS="0.05"),
        log=tmp_path / "killed.log",
        sight=lambda: any((store.root / "work").glob("trial-*/checkpoint.pt")),
    )  # fmt: skip
    assert sum(kill.hit for kill in kills) >= 4, f"too few kills met the study under way: {kills}"
    assert optima(tmp_path) == optima(finished)
    assert {a.id for a in store.artifacts()} == {a.id for a in Store(finished / "store").artifacts()}
    pd.testing.assert_frame_equal(
        what_was_measured(tmp_path / "results" / "small"), what_was_measured(finished / "results" / "small")
    )


def test_another_study_takes_up_an_optimum_without_training_again(finished: Path) -> None:
    given = STUDY[: STUDY.index("search:")] + STUDY[STUDY.index("hypotheses:") :]
    given = given.replace("  - full\n", "  - {kind: full, hyperparameters: results/small/optimal}\n")
    given = given.replace("rank: 4}", "rank: 4, hyperparameters: results/small/optimal}")
    (finished / "given.yaml").write_text(given.replace("name: small", "name: given", 1))
    done = run(finished, "run", "given.yaml", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert {step.split("-")[0] for step in json.loads(done.stdout)["computed"]} == {"analysis"}
