"""A whole small study on a Ray cluster of three nodes, of which one is lost, and then the head with the coordinator."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clusters import ray_cluster
from kill import assert_untouched, committed
from small_study import STUDY, environment, lorascope, run, what_was_measured, write_small_study

from lorascope.engine.store import Store

# Runs long enough to be met under way, each on a worker of its own; drift is measured elsewhere.
LONGER = (
    STUDY.replace("epochs: 4,", "epochs: 25, early_stopping: null, gang: off,")
    .replace("measure: {drift: {examples: 60, draws: 200}}\n", "")
    .replace("  H1b: {lower: lora, than: full, on: drift, by: 5%}\n", "")
)


def start(directory: Path, cluster: Any) -> subprocess.Popen[str]:
    command = lorascope("run", "study.yaml", "--executor", "ray", "--address", cluster.address)
    with (directory / "ray.log").open("w") as log:
        settings = environment(LORASCOPE_CHECKPOINT_SECONDS="0.2")
        return subprocess.Popen(command, cwd=directory, env=settings, stdout=log, stderr=log, text=True)


def wait_for(condition: Callable[[], object], running: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert running.poll() is None, f"it ended too early:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"it did not happen:\n{log.read_text()[-3000:]}"
        time.sleep(0.05)


def training_pids(store: Store) -> set[int]:
    """The worker processes that train now."""
    holders = [store.lock(lock.name).holder() for lock in (store.root / "locks").glob("train-*")]
    return {holder.pid for holder in holders if holder is not None}


def notices(directory: Path) -> list[str]:
    lines = (directory / "results" / "small" / "events.jsonl").read_text().splitlines()
    return [event["text"] for event in map(json.loads, lines) if event["event"] == "notice"]


def test_a_lost_machine_and_a_lost_head_cost_only_unfinished_steps_and_change_no_measurement(tmp_path: Path) -> None:
    for name in ("local", "ray"):
        write_small_study(tmp_path / name, LONGER)
    undisturbed = run(tmp_path / "local", "run", "study.yaml")
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]

    here, store = tmp_path / "ray", Store(tmp_path / "ray" / "store")
    log = here / "ray.log"
    with ray_cluster(3, num_cpus=1) as cluster:
        running = start(here, cluster)
        wait_for(lambda: len(training_pids(store)) == 3, running, log)
        finished = committed(store)
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        wait_for(lambda: any("was lost" in text for text in notices(here)), running, log)
        wait_for(lambda: store.artifacts("train"), running, log)
        assert_untouched(finished, committed(store))
        wait_for(lambda: training_pids(store), running, log)
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        running.kill()
        running.wait()
        finished = committed(store)
        assert 0 < len(store.artifacts("train")) < 4, "the head was lost while nothing ran any more"

    with ray_cluster(1, num_cpus=1) as cluster:
        again = run(here, "run", "study.yaml", "--executor", "ray", "--address", cluster.address, "--json")
    assert again.returncode == 0, again.stderr[-3000:]
    assert not set(json.loads(again.stdout)["computed"]) & set(finished)
    assert_untouched(finished, committed(store))
    pd.testing.assert_frame_equal(
        what_was_measured(here / "results" / "small"), what_was_measured(tmp_path / "local" / "results" / "small")
    )
