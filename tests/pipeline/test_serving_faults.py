"""Serving goes on: an engine that is killed is started again, and an interrupted comparison keeps what it had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from small_study import environment, lorascope, run, write_small_study
from tiny import save_tiny_checkpoint

from lorascope.stats.serving.table import read_served

STUDY = """
name: small
question: What do adapters cost?
models: [{name: tiny, source: {path: llama}}]
tasks:
  - {name: sentiment, kind: classification, train: train.csv, text: text, label: label, metrics: [accuracy, f1], positive: good}
methods:
  - {kind: lora, learning_rate: 1e-2, rank: 4}
seeds: [1, 2]
train: {epochs: 4, batch_size: 16, max_length: 32}
measure:
  serving: {arms: [merged, 2], batch_sizes: [1, 4], requests: 20, warmup: 4, repeats: 2, precision: fp32, switching: false}
hypotheses:
  H2: {overhead: adapters-2, over: merged, on: latency_mean, at_most: 30%}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose runs are trained and not served yet."""
    folder = tmp_path_factory.mktemp("faults")
    write_small_study(folder, STUDY)
    save_tiny_checkpoint(folder / "llama", "llama")
    done = run(folder, "run", "study.yaml", "--only", "evaluate*")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def engines_of(coordinator: int) -> list[psutil.Process]:
    try:
        below = psutil.Process(coordinator).children(recursive=True)
        return [p for p in below if any("transformers_engine.py" in word for word in p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def wait_for(found, *, timeout_s: float = 240.0):
    deadline = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return answer


def test_a_dead_engine_and_an_interrupted_comparison_go_on(folder: Path) -> None:
    first = subprocess.Popen(
        lorascope("run", "study.yaml"), cwd=folder, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (engine,) = wait_for(lambda: engines_of(first.pid))
    engine.kill()
    (written,) = wait_for(lambda: list((folder / "store" / "work").glob("serving-*/processes/*.json")))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.read_bytes() for path in written.parent.glob("*.json")}
    assert json.loads(written.read_text())["lost"][0].startswith("died")

    done = run(folder, "run", "study.yaml", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (folder / "store" / "artifacts").glob("serving/*/processes.json")
    processes = json.loads(path.read_text())
    assert [(p["repeat"], p["failure"]) for p in processes] == [(0, None), (0, None), (1, None), (1, None)]
    for content in before.values():
        kept = {key: value for key, value in json.loads(content).items() if key != "figures"}
        assert kept in processes, "what was found before the interruption was found again"
    assert not any(psutil.pid_exists(child) for child in [engine.pid])
    report = (folder / "results" / "small" / "ANALYSIS_REPORT.md").read_text()
    assert "## Serving" in report


def test_the_same_command_again_serves_nothing(folder: Path) -> None:
    done = run(folder, "run", "study.yaml", "--json")
    assert json.loads(done.stdout)["computed"] == []


def test_every_number_of_the_report_is_a_process_of_its_own(folder: Path) -> None:
    frame = read_served(folder / "results" / "small")
    p95 = frame[frame["metric"] == "latency_ms_p95"]
    assert p95.groupby(["arm", "level"])["repeat"].nunique().to_dict() == {
        (arm, size): 2 for arm in ("merged", "adapters-2") for size in (1.0, 4.0)
    }
    requests = pd.read_parquet(next((folder / "store" / "artifacts").glob("serving/*/requests.parquet")))
    again = requests.groupby(["arm", "repeat", "level"])["latency_ms"].quantile(0.95)
    for (arm, repeat, level), value in again.items():
        mine = p95[(p95["arm"] == arm) & (p95["repeat"] == repeat) & (p95["level"] == level)]["value"]
        assert mine.item() == pytest.approx(value)
