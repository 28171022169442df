"""A plug-in package with a task, a method and an architecture: listed, run by a worker process, exported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from small_study import only_exit_code, run, write_small_study

from lorascope.engine.store.directory import Store

PACKAGE = Path(__file__).parents[1] / "support" / "plugin_package"
STUDY = """
name: toys
question: Does BitFit learn adjectives?
models: [{name: tiny, source: {path: bert}}]
tasks: [adjectives]
methods: [{kind: bitfit, learning_rate: 2e-2}]
seeds: [1]
data: {train_examples: 200, validation_examples: 60, test_examples: 60}
train: {epochs: 3, batch_size: 16, max_length: 32}
"""
OTHER = "{name: sentiment, kind: classification, train: train.csv, text: text, label: label}"
STAMP = {"distribution": "lorascope-toys", "release": "1.2"}


def installed() -> dict[str, str]:
    """The environment in which the package is installed."""
    return {"PYTHONPATH": os.pathsep.join([str(PACKAGE), *(entry for entry in sys.path if entry)])}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("toys")
    write_small_study(directory, STUDY)
    (directory / "data").mkdir()
    (directory / "data" / "adjectives_train.csv").write_bytes((directory / "train.csv").read_bytes())
    done = run(directory, "run", "study.yaml", "--data", "data", **installed())
    assert only_exit_code(done)[0] == 0, only_exit_code(done)
    return directory


@pytest.mark.parametrize(
    ("kind", "name"), [("tasks", "adjectives"), ("methods", "bitfit"), ("architectures", "toy"), ("methods", "lora")]
)
def test_a_list_says_where_each_comes_from(tmp_path: Path, kind: str, name: str) -> None:
    listed = {row["name"]: row for row in json.loads(run(tmp_path, "ls", kind, "--json", **installed()).stdout)}
    assert listed[name]["brought by"] == ("built in" if name == "lora" else "lorascope-toys 1.2")


def test_steps_of_plugins_say_so_and_no_others(studied: Path) -> None:
    artifacts = Store(studied / "store").artifacts()
    assert all(artifact.provenance["versions"]["lorascope-toys"] == "1.2" for artifact in artifacts)
    stamps = {artifact.step.kind: artifact.step.params.get("plugins") for artifact in artifacts}
    assert stamps["data"] == {"task": {**STAMP, "version": 3}}
    assert stamps["train"] == stamps["sanity"] == {"method": {**STAMP, "version": 2}}
    assert stamps["tokens"] is stamps["baseline"] is stamps["evaluate"] is None, "they rest on those that say it"


def test_what_is_built_in_has_the_ids_it_has_without_plugins(studied: Path) -> None:
    text = STUDY.replace("adjectives]", f"{OTHER}]").replace("{kind: bitfit, learning_rate: 2e-2}", "lora, full")
    (studied / "other.yaml").write_text(text)
    with_plugins, without = (
        [step["step"] for step in json.loads(run(studied, "status", "other.yaml", "--json", **there).stdout)["steps"]]
        for there in (installed(), {})
    )
    assert len(without) > 5
    assert with_plugins == without


def test_a_run_of_a_plugin_is_scored_reported_and_exported(studied: Path) -> None:
    store = Store(studied / "store")
    (train,) = store.artifacts("train")
    done = run(studied, "export", train.id, "--to", "exported", "--json", **installed())
    assert only_exit_code(done)[0] == 0, only_exit_code(done)
    assert json.loads(done.stdout)["form"] == "full"
    assert (studied / "exported" / "model.safetensors").is_file()
    assert "bitfit" in (studied / "results" / "toys" / "report.html").read_text().lower()


def test_a_study_that_needs_what_is_not_installed_is_refused(studied: Path) -> None:
    done = run(studied, "validate", "study.yaml")
    assert done.returncode == 2
    assert "unknown task `adjectives`" in done.stderr
