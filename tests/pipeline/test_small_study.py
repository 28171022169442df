"""A whole study through the command line: run, run again, kill, share, fail in part."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from kill import TARGETS, kill_repeatedly
from small_study import STUDY, environment, lorascope, run, what_was_measured, write_small_study

from lorascope import api
from lorascope.cli.app import main
from lorascope.engine.events import Notice
from lorascope.engine.store.directory import Store
from lorascope.errors import StudyError
from lorascope.study.spec import Study

NUM_STEPS = 2 + 1 + 2 * (1 + 2 * 2 + 1) + 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a study that ran undisturbed."""
    directory = tmp_path_factory.mktemp("study")
    write_small_study(directory)
    done = run(directory, "run", "study.yaml", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(json.loads(done.stdout)["computed"]) == NUM_STEPS
    return directory


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their figures, which take most of the time."""
    nothing = {"png": b"", "pdf": b"", "wide": "", "narrow": ""}
    monkeypatch.setattr("lorascope.report.render._draw", lambda illustration: nothing)


def run_again(here: Path, study: Study) -> tuple[list[str], Path]:
    """What was said of a run in a copy of the finished study's folder, and the folder of its report."""
    said: list[str] = []
    outcome = api.run(
        study, store=here / "store", results=here / "results", executor="inline",
        emit=lambda event: said.append(event.text) if isinstance(event, Notice) else None,
    )  # fmt: skip
    assert outcome.failed == {} and outcome.report is not None
    return said, outcome.report.parent


def test_statistics_are_redone_from_the_folder_of_a_report_alone(finished: Path, tmp_path: Path, undrawn: None) -> None:
    results = shutil.copytree(finished / "results" / "small", tmp_path / "small")
    before = (results / "analysis.json").read_text()
    again = api.analyse(str(results))
    assert (results / "analysis.json").read_text() == before
    assert again.lacks == () and not (results / "previous").exists()
    assert {result.name for result in again.verdicts} == {"H1a", "H1b", "H2"}


def test_what_a_folder_lacks_is_named_and_bears_on_the_statistics(
    finished: Path, tmp_path: Path, undrawn: None
) -> None:
    results = shutil.copytree(finished / "results" / "small", tmp_path / "small")
    for name in ("draws.npz", "curves.parquet", "facts.json"):
        (results / name).unlink()
    for _ in range(2):  # the second time from what the first one wrote
        again = api.analyse(results)
        named = " ".join(again.lacks)
        assert all(name in named for name in ("draws.npz", "curves.parquet", "facts.json"))
    drift = json.loads((results / "analysis.json").read_text())["drift"]
    assert "examples" not in drift["profiles"][0]["drift"]["method"]
    assert "lacks draws.npz" in (results / "ANALYSIS_REPORT.md").read_text()
    assert (results / "previous" / "report.html").exists()
    (results / "study.yaml").unlink()
    (results / "facts.json").unlink()
    with pytest.raises(StudyError, match="does not say which study"):
        api.analyse(results)


def test_a_variation_leaves_the_report_of_the_study_alone(finished: Path, tmp_path: Path, undrawn: None) -> None:
    here = shutil.copytree(finished, tmp_path / "here")
    before = (here / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    said, varied = run_again(here, api.load(here / "study.yaml", overrides=["hypotheses.H2.by=10%"]))
    assert varied.parent == here / "results" and varied.name.startswith("small@")
    assert f"the results are in {varied}" in said[0] and "`--set hypotheses.H2.by=10%` is a variation" in said[0]
    assert (here / "results" / "small" / "ANALYSIS_REPORT.md").read_text() == before
    assert "by: 0.1" in (varied / "study.yaml").read_text() and "by: 0.5" not in (varied / "study.yaml").read_text()


def test_an_edited_study_replaces_its_report_and_keeps_the_last(finished: Path, tmp_path: Path, undrawn: None) -> None:
    here = shutil.copytree(finished, tmp_path / "here")
    (here / "study.yaml").write_text(STUDY.replace("by: 50%", "by: 20%"))
    said, results = run_again(here, api.load(here / "study.yaml"))
    assert results == here / "results" / "small" and f"kept in {results / 'previous'}" in said[-1]
    assert "by: 0.2" in (results / "study.yaml").read_text()
    assert "by: 0.5" in (results / "previous" / "study.yaml").read_text()
    assert (results / "previous" / "report.html").exists() and (results / "previous" / "draws.npz").exists()


def test_each_run_of_the_study_is_exported_as_what_it_trained(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    by_id, by_name = (
        ["train-tiny-sentiment-full-1"],
        ["study.yaml", "--arm", "lora", "--task", "sentiment", "--seed", "1"],
    )
    for kind, form, named in (("full", "full", by_id), ("lora", "adapter", by_name)):
        monkeypatch.setattr(sys, "argv", ["lorascope", "export", *named, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        published = json.loads(capsys.readouterr().out)
        assert published["form"] == form
        assert (finished / published["directory"] / "lorascope.json").is_file()
        assert (published["precision"] is None) is (kind == "full")


def test_a_run_is_found_by_its_names_or_as_the_best_on_validation(finished: Path) -> None:
    study, store = api.load(finished / "study.yaml"), finished / "store"
    runs = {seed: api.find_run(study, store=store, arm="lora", seed=seed) for seed in (1, 2)}
    scores = {run: Store(store).artifact(run).result["validation"]["accuracy"] for run in runs.values()}
    best = api.find_run(study, store=store, arm="lora", best=True)
    assert scores[best] == max(scores.values())
    with pytest.raises(StudyError, match="4 finished runs are of that name") as error:
        api.find_run(study, store=store)
    assert "--arm (full, lora) and --seed (1, 2)" in (error.value.hint or "")
    with pytest.raises(StudyError, match="no run of the arm `lroa`: did you mean `lora`"):
        api.find_run(study, store=store, arm="lroa")


def test_places_may_be_text_from_python(finished: Path, tmp_path: Path, undrawn: None) -> None:
    study, store = api.load(str(finished / "study.yaml")), str(finished / "store")
    assert api.run(study, store=store, results=str(tmp_path / "results"), executor="inline").done == []
    assert api.report(study, store=store, results=str(tmp_path / "results")).is_file()
    assert api.watch(study, store=store, results=str(tmp_path / "results")).read().is_over
    assert len(api.results(study, store=store).scores) == 2


def test_the_listing_tells_steps_apart_by_names_and_scores(finished: Path) -> None:
    rows = {row["step"]: row for row in json.loads(run(finished, "ls", "steps", "--json").stdout)}
    trained = [row for row in rows.values() if row["kind"] == "train"]
    assert {(row["study"], row["task"], row["arm"], row["seed"]) for row in trained} == {
        ("small", "sentiment", arm, seed) for arm in ("full", "lora") for seed in ("1", "2")
    }
    evaluated = [row["score"] for row in rows.values() if row["kind"] == "evaluate"]
    assert sorted(row["score"] for row in trained) == sorted(evaluated) and trained[0]["metric"] == "accuracy"
    assert f"accuracy {100 * trained[0]['score']:.1f}%" in run(finished, "ls", "steps").stdout


def test_the_same_command_again_is_all_cached(finished: Path) -> None:
    done = run(finished, "run", "study.yaml", "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0
    assert (len(outcome["computed"]), len(outcome["cached"])) == (0, NUM_STEPS)


def test_the_report_has_its_parts(finished: Path) -> None:
    results = finished / "results" / "small"
    for name in ("ANALYSIS_REPORT.md", "report.html", "measurements.parquet", "analysis.json", "figures", "tables"):
        assert (results / name).exists(), name
    text = (results / "ANALYSIS_REPORT.md").read_text()
    assert "H1a" in text
    assert "nan" not in text.lower().split()


def test_measurements_hold_every_run_and_every_test_example(finished: Path) -> None:
    study = api.load(finished / "study.yaml")
    found = api.results(study, store=finished / "store").measurements
    runs = found[(found["metric"] == "correct") & ~found["method"].str.startswith("baseline:")]
    sizes = runs.groupby(["method", "seed"])["example_id"].nunique()
    assert len(sizes) == 4
    assert sizes.nunique() == 1


def test_drift_of_every_run_is_measured_and_shown(finished: Path) -> None:
    found = pd.read_parquet(finished / "results" / "small" / "measurements.parquet")
    drift = found[(found["metric"] == "drift") & (found["split"] == "probe")]
    runs = drift[~drift["method"].str.startswith("reference:")]
    assert set(runs["site"]) == {"residual", "attention", "mlp"}
    summaries = runs[runs["layer"].isna()].groupby(["pooling", "method", "seed"])["value"].sum()
    assert len(summaries) == 3 * 4
    assert ((summaries > 0) & (summaries < 1.2)).all()
    embedding = runs[(runs["site"] == "residual") & (runs["layer"] == 0)].set_index("method")["value"]
    assert embedding["lora"].abs().max() < 1e-9, "LoRA does not touch the embedding"
    assert embedding["full"].min() > 1e-6, "full fine-tuning does"
    references = set(drift["method"]) - set(runs["method"])
    assert references == {
        "reference:other-examples", "reference:random-initialisation",
        "reference:seed-v-seed:full", "reference:seed-v-seed:lora",
    }  # fmt: skip
    text = (finished / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    assert "H1b" in text
    assert "Drift" in text


def test_same_study_elsewhere_gives_the_same_measurements(finished: Path, tmp_path: Path) -> None:
    """Another directory, another executor: identity holds no path and no executor, results hold no chance."""
    write_small_study(tmp_path)
    done = run(tmp_path, "run", "study.yaml", "--executor", "inline", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert set(json.loads(done.stdout)["computed"]) >= {
        a.id for a in Store(finished / "store").artifacts() if a.step.kind != "analysis"
    }
    pd.testing.assert_frame_equal(
        what_was_measured(tmp_path / "results" / "small"), what_was_measured(finished / "results" / "small")
    )


@pytest.mark.timeout(1800)  # a busy machine takes long over so many starts
@pytest.mark.parametrize(("num_kills", "epochs"), [(6, 20), pytest.param(20, 80, marks=pytest.mark.slow)])
def test_kills_of_a_real_study_change_no_measurement(tmp_path: Path, num_kills: int, epochs: int) -> None:
    """kill -9 of worker, coordinator and both, at random points of real training, with checkpoints at every turn. What the
    store and its locks bear, `test_engine_kill` shows with twenty kills of quick steps, and `make slow` with twenty here.

    The gang is given: on a processor `auto` asks a clock, and a gang of another size rounds differently.
    """
    longer = STUDY.replace("epochs: 4,", f"epochs: {epochs}, early_stopping: null, gang: 2,")
    for name in ("whole", "killed"):
        write_small_study(tmp_path / name, longer)
    assert run(tmp_path / "whole", "run", "study.yaml").returncode == 0
    store = Store(tmp_path / "killed" / "store")
    command = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path / "killed"), *lorascope("run", "study.yaml")]
    kills = kill_repeatedly(
        command,
        store=store,
        rng=random.Random(20261121),
        num_kills=num_kills,
        delay_s=(0.5, 3.0),
        environment=environment(LORASCOPE_CHECKPOINT_SECONDS="0.05"),
        log=tmp_path / "killed.log",
        sight=lambda: any((store.root / "work").glob("*/checkpoint.pt")),
    )
    hits = Counter(kill.target for kill in kills if kill.hit and kill.num_committed < NUM_STEPS)
    assert set(hits) == set(TARGETS), f"no kill of some target met the study under way: {hits}"
    assert sum(hits.values()) >= 0.4 * num_kills, f"too few kills met the study under way: {hits}"
    resumed = [a.result["resumed"] for a in store.artifacts("train")]
    assert max(resumed) >= 1, "no run was ever taken up from a checkpoint"
    measured = (what_was_measured(tmp_path / name / "results" / "small") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(*measured)


def test_two_processes_at_once_share_one_study(finished: Path, tmp_path: Path) -> None:
    write_small_study(tmp_path)
    both = [
        subprocess.Popen(
            lorascope("run", "study.yaml", "--json"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outcomes = [json.loads(process.communicate(timeout=600)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    computed = Counter(step for outcome in outcomes for step in outcome["computed"])
    assert set(computed.values()) == {1}, "a step was computed twice"
    assert len(computed) == NUM_STEPS
    pd.testing.assert_frame_equal(
        what_was_measured(tmp_path / "results" / "small"), what_was_measured(finished / "results" / "small")
    )


def test_a_failed_gate_stops_its_part_and_the_rest_is_reported(tmp_path: Path) -> None:
    """A learning rate at which the loss explodes: that arm stops and says why, the other arm is trained and shown."""
    write_small_study(
        tmp_path, STUDY.replace("learning_rate: 3e-3", "learning_rate: 1e30").replace("epochs: 4", "epochs: 1")
    )
    done = run(tmp_path, "run", "study.yaml")
    assert done.returncode == 1
    assert "gate" in done.stdout or "the training loss became" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    text = (tmp_path / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    assert "inconclusive" in text
    assert "full" in text


def test_status_show_verify_and_ls_speak_of_the_finished_study(finished: Path) -> None:
    found = json.loads(run(finished, "status", "study.yaml", "--json").stdout)
    states, is_over = found["steps"], found["is_over"]
    assert is_over
    assert {state["state"] for state in states} == {"done"}
    train = next(state["step"] for state in states if state["step"].startswith("train-"))
    shown = json.loads(run(finished, "show", train, "--json").stdout)
    assert shown["result"]["trainable_parameters"] > 0
    assert run(finished, "verify", "study.yaml").returncode == 0
    assert train in run(finished, "ls", "steps").stdout


@pytest.mark.parametrize("name", ["predictions.parquet", "measurements.parquet"])
def test_verify_finds_a_changed_file_of_a_run_and_of_the_analysis(finished: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    victim = next((tmp_path / "copy" / "store").rglob(name))
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    done = run(tmp_path / "copy", "verify", "study.yaml")
    assert done.returncode == 1
    assert name in done.stdout


def test_only_runs_the_chosen_part_and_what_it_needs(finished: Path, tmp_path: Path) -> None:
    write_small_study(tmp_path)
    done = run(tmp_path, "run", "study.yaml", "--only", "sanity*lora*", "--json")
    kinds = Counter(step.split("-")[0] for step in json.loads(done.stdout)["computed"])
    assert kinds == {"data": 1, "tokens": 1, "sanity": 1}
