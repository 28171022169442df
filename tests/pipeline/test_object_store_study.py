"""A whole study with its store in object storage: run, run again from an empty machine, looked at, exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_study import STUDY, only_exit_code, run, write_small_study

from object_server import object_server

SMALL = STUDY.replace("epochs: 4", "epochs: 1").replace("seeds: [1, 2]", "seeds: [1]").split("measure:")[0]
STORE = "s3://studies/small"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with object_server("studies") as found:
        yield found


def test_a_study_runs_in_a_bucket_and_an_empty_machine_finds_all_of_it(server: dict[str, str], tmp_path: Path) -> None:
    first = {**server, "LORASCOPE_LOCAL_STORE": str(tmp_path / "first")}
    second = {**server, "LORASCOPE_LOCAL_STORE": str(tmp_path / "second")}
    write_small_study(tmp_path, SMALL)
    done = run(tmp_path, "run", "study.yaml", "--store", STORE, "--json", **first)
    assert done.returncode == 0, only_exit_code(done)
    computed = json.loads(done.stdout)["computed"]
    assert len(computed) == 10
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "results")

    again = run(tmp_path, "run", "study.yaml", "--store", STORE, "--json", **second)
    outcome = json.loads(again.stdout)
    assert (again.returncode, outcome["computed"]) == (0, [])
    assert set(outcome["cached"]) == set(computed)
    assert (tmp_path / "results" / "small" / "report.html").exists()
    fetched = {path.name for path in (tmp_path / "second").rglob("*") if path.is_file()}
    assert "analysis.json" in fetched
    assert "adapter_model.safetensors" not in fetched, "nobody asked for the weights"

    (train,) = [step for step in computed if step.startswith("train-tiny-sentiment-lora-1")]
    status = json.loads(run(tmp_path, "status", "study.yaml", "--store", STORE, "--json", **second).stdout)
    assert status["is_over"]
    shown = json.loads(run(tmp_path, "show", train, "--store", STORE, "--json", **second).stdout)
    assert shown["path"] == f"{STORE}/records/{train}.json"
    assert run(tmp_path, "verify", "study.yaml", "--store", STORE, **second).returncode == 0
    exported = run(tmp_path, "export", train, "--store", STORE, "--to", "exported", **second)
    assert exported.returncode == 0, only_exit_code(exported)
    assert (tmp_path / "exported" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "store").exists()


def test_a_service_that_is_not_there_stops_the_study_before_it_starts(tmp_path: Path) -> None:
    write_small_study(tmp_path, SMALL)
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    nowhere["AWS_MAX_ATTEMPTS"] = "1"
    done = run(
        tmp_path, "run", "study.yaml", "--store", STORE, **nowhere, LORASCOPE_LOCAL_STORE=str(tmp_path / "local")
    )
    assert done.returncode == 3, only_exit_code(done)
    assert f"{STORE} does not answer as it should" in done.stderr
    assert "hint: Check the network" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
