"""The real packages, offline and without an account: what was logged is read back with their own readers."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tracked_fixture import NAME, TRAIN, scoring, training, wandb_records, whole_study

from lorascope.engine.events import Event, Notice
from lorascope.engine.store.durable import sha256_of
from lorascope.engine.store.integrity import sealed, spelled
from lorascope.study.track import AnyTrackerSpec, MlflowSpec, TensorboardSpec, TrackioSpec, WandbSpec
from lorascope.tracking.feed import TrackerFeed

LOSSES = {10: 0.8, 20: 0.4, 30: 8 / 30, 40: 0.2}
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without keys, a folder of its own; nothing is sent anywhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", UNREACHABLE)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def show(directory: Path, spec: AnyTrackerSpec, *parts: list[Event]) -> list[str]:
    """Each part through a process of its own, as after a kill. What was said."""
    said: list[str] = []

    def hear(event: Event) -> None:
        assert isinstance(event, Notice)
        said.append(event.text)

    for events in parts:
        with TrackerFeed(
            spec, study="small", directory=directory / spec.kind, store=directory / "store", tell=hear
        ) as feed:
            for event in events:
                feed(event)
    return said


def with_report(directory: Path) -> list[Event]:
    """A whole study, whose report and whose run's weights are there to be kept."""
    artifact, results = directory / "store" / "artifacts" / "train" / TRAIN, directory / "results"
    for path in (artifact / "export" / "adapter.bin", results / "report.html", results / "a" / "b.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    files = {"export/adapter.bin": 2}
    sums = {name: sha256_of(artifact / name) for name in files}
    record = {"id": TRAIN, "step": {}, "result": {}, "provenance": {}, "files": files, "sha256": sums}
    (artifact / "record.json").write_text(spelled(sealed(record)))
    return whole_study(results / "report.html")


def test_wandb_without_a_key_goes_offline_and_says_so_once(tmp_path: Path) -> None:
    spec = WandbSpec(kind="wandb", project="peft", entity="lab", artifacts=("report", "weights"))
    said = show(tmp_path, spec, with_report(tmp_path))
    (text,) = said
    assert text.startswith("wandb: works offline (No API key configured") and "wandb sync" in text

    runs: dict[str, Any] = {}
    for file in (tmp_path / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"):
        records = list(wandb_records(file))
        run = next(record.run for record in records if record.HasField("run"))
        runs[run.display_name] = run, records
    assert set(runs) == {NAME, "small"}
    run, records = runs[NAME]
    assert (run.project, run.entity, run.run_group, run.job_type) == ("peft", "lab", "training", "train")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["method"] == "lora" and config["settings"]["method"]["rank"] == 4

    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    losses = {row["update"]: row["train/loss"] for row in history}
    assert losses == pytest.approx(LOSSES)
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["test/accuracy"] == 0.75
    assert next(record.exit.exit_code for record in records if record.HasField("exit")) == 0
    kept = [record.request.log_artifact for _, rs in runs.values() for record in rs if record.HasField("request")]
    kept += [record.artifact for _, rs in runs.values() for record in rs if record.HasField("artifact")]
    names = {artifact.name for artifact in kept if artifact.name} | {
        artifact.artifact.name for artifact in kept if hasattr(artifact, "artifact")
    }
    assert {TRAIN, "results-report"} <= names


def test_wandb_goes_on_in_the_run_it_had_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = show(tmp_path, WandbSpec(kind="wandb"), training()[:6], [*training(), *scoring()])
    files = list((tmp_path / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    run = next(record.run for record in wandb_records(files[0]) if record.HasField("run"))
    assert run.project == "small"
    assert said == [], "who asks for offline need not be told"


def test_wandb_with_a_key_that_is_none_goes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    (text,) = show(tmp_path, WandbSpec(kind="wandb"), training())
    assert "works offline (WANDB_API_KEY invalid" in text


def test_trackio_shows_curves_figures_and_groups(tmp_path: Path) -> None:
    spec = TrackioSpec(kind="trackio", artifacts=("report", "weights"))
    events = with_report(tmp_path)
    assert show(tmp_path, spec, events[:6], events) == []

    with sqlite3.connect(tmp_path / "trackio" / "small.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = dict(database.execute("SELECT run_name, config FROM configs").fetchall())
        kept = database.execute("SELECT name, type FROM artifacts ORDER BY id").fetchall()
    points: dict[str, dict[str, Any]] = defaultdict(dict)
    for run, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            points[run].setdefault(name, {})[step] = value
    assert set(points) == {NAME, "small"}
    assert points[NAME]["train/loss"] == pytest.approx(LOSSES)
    assert points[NAME]["test/accuracy"] == {40: 0.75}
    assert points["small"]["verdict/H1"] == {2: "supported"}
    config = json.loads(configs[NAME])
    assert config["_Group"] == "training" and config["settings"]["learning_rate"] == 0.01
    assert kept == [(TRAIN, "weights"), ("results-report", "report")]


def test_mlflow_keeps_runs_in_a_database(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    spec = MlflowSpec(kind="mlflow", uri=database, experiment="peft", artifacts=("report", "weights"))
    events = with_report(tmp_path)
    assert show(tmp_path, spec, events[:6], events) == []

    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("peft")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {NAME, "small"}, "the second process went on in the runs of the first"
    run = runs[NAME]
    assert run.info.status == "FINISHED"
    assert run.data.tags["phase"] == "training"
    assert run.data.params["settings.method.rank"] == "4" and run.data.params["seed"] == "1"
    assert run.data.metrics["test/accuracy"] == 0.75
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == pytest.approx(LOSSES)
    assert runs["small"].data.tags["verdict/H1"] == "supported"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "weights")] == ["weights/adapter.bin"]
    kept = {file.path for file in client.list_artifacts(runs["small"].info.run_id, "report")}
    assert kept == {"report/report.html", "report/a"}


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    assert show(tmp_path, TensorboardSpec(kind="tensorboard"), whole_study(tmp_path / "report.html")) == []

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = EventAccumulator(str(tmp_path / "tensorboard" / "training" / "tiny-mrpc-lora-1")).Reload()
    assert {point.step: point.value for point in run.Scalars("train/loss")} == pytest.approx(LOSSES)
    assert [point.value for point in run.Scalars("test/accuracy")] == [0.75]
    assert "_hparams_/session_start_info" in run.Tags()["tensors"]
    study = EventAccumulator(str(tmp_path / "tensorboard" / "study" / "small")).Reload()
    (verdict,) = study.Tensors("verdict/H1")
    assert verdict.tensor_proto.string_val == [b"supported"]
