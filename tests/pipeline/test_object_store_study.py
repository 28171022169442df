"""A whole study with its store in object storage: run, run again from an empty machine, looked at, exported."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_server import object_server
from small_study import STUDY, only_exit_code, run, write_small_study

from lorascope.cli.app import main

SMALL = STUDY.replace("epochs: 4", "epochs: 1").replace("seeds: [1, 2]", "seeds: [1]").split("measure:")[0]
STORE = "s3://studies/small"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with object_server("studies") as found:
        yield found


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `lorascope ARGUMENTS` prints in this process, which must be content with it."""
    monkeypatch.setattr(sys, "argv", ["lorascope", *arguments, "--store", STORE])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_a_study_runs_in_a_bucket_and_an_empty_machine_finds_all_of_it(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    monkeypatch.chdir(tmp_path)
    for name, value in second.items():
        monkeypatch.setenv(name, value)
    assert json.loads(said(capsys, monkeypatch, "status", "study.yaml", "--json"))["is_over"]
    assert json.loads(said(capsys, monkeypatch, "show", train, "--json"))["path"] == f"{STORE}/records/{train}.json"
    assert "as committed" in said(capsys, monkeypatch, "verify", "study.yaml")
    assert train in said(capsys, monkeypatch, "ls", "steps", "--json")
    assert json.loads(said(capsys, monkeypatch, "plan", "study.yaml", "--json"))["total"]["to_run"] == 0
    said(capsys, monkeypatch, "export", train, "--to", "exported", "--json")
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
