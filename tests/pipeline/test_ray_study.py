"""A real Ray cluster of three nodes in this machine: where steps go, what a lost node and a lost head cost a study.

The tests share the cluster, in this order: the last one destroys it.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clusters import SMALL, ray_cluster
from engine_steps import make, make_alone
from kill import assert_untouched, committed
from object_server import object_server
from small_study import STUDY, environment, lorascope, run, what_was_measured, write_small_study

from lorascope.engine.events import Event, Notice
from lorascope.engine.ray.executor import RayExecutor
from lorascope.engine.scheduler import Computed, execute
from lorascope.engine.step import Resources, Step
from lorascope.engine.store.directory import Store
from lorascope.engine.store.opening import LOCAL_STORE, open_store
from lorascope.errors import EnvironmentProblem

# Runs long enough to be met under way, each on a worker of its own; drift is measured elsewhere.
LONGER = (
    STUDY.replace("epochs: 4,", "epochs: 8, early_stopping: null, gang: off,")
    .replace("measure: {drift: {examples: 60, draws: 200}}\n", "")
    .replace("  H1b: {lower: lora, than: full, on: drift, by: 5%}\n", "")
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The head and another node. Both reach a bucket, `studies`, and keep what is their own of it elsewhere than we."""
    with object_server("studies") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        patch.setenv(LOCAL_STORE, str(tmp_path_factory.mktemp("nodes")))
        with ray_cluster(2, num_cpus=1) as made:
            yield made


@pytest.fixture(scope="module")
def measuring(cluster: Any) -> Any:
    """The third node, kept for measuring."""
    return cluster.add_node(num_cpus=1, labels={"lorascope": "measure"}, **SMALL)


def compute(
    steps: list[Step], store: Store, cluster: Any, *, on_event: Callable[[Event], None] = lambda event: None
) -> tuple[Computed, list[Event]]:
    events: list[Event] = []
    executor = RayExecutor(store, address=cluster.address)

    def emit(event: Event) -> None:
        events.append(event)
        on_event(event)

    try:
        return execute(steps, store=store, executor=executor, emit=emit, poll_s=0.05), events
    finally:
        executor.close()


def found(store: Store, steps: list[Step], fact: str) -> set[Any]:
    return {store.artifact(step.id).result[fact] for step in steps}


def met(directory: Path, count: int, *, machines: int) -> list[Step]:
    """Steps none of which ends before so many workers have begun one."""
    return [make("meet", value=value, num=machines, place=str(directory / "place")) for value in range(count)]


def raylet(node: Any) -> str:
    return str(node.all_processes["raylet"][0].process.pid)


def test_every_machine_works_and_a_measurement_has_a_machine_to_itself(
    tmp_path: Path, cluster: Any, measuring: Any
) -> None:
    store = Store(tmp_path / "store")
    others = met(tmp_path, 6, machines=len(cluster.list_all_nodes()))
    quiet = make_alone("span", value=10, sleep_s=0.1, deps={str(n): step.id for n, step in enumerate(others)})
    last = make("span", value=11, sleep_s=0.0, deps={"quiet": quiet.id})
    outcome, events = compute([*others, quiet, last], store, cluster)
    assert outcome.done[-2:] == [quiet.id, last.id]
    assert found(store, others, "raylet") == {raylet(node) for node in cluster.list_all_nodes()}
    assert not found(store, [quiet], "pid") & found(store, [*others, last], "pid"), "it got a worker of its own"
    assert not [event for event in events if isinstance(event, Notice)]
    assert found(store, [quiet], "raylet") == {raylet(measuring)}


def test_a_store_in_a_bucket_needs_no_directory_that_machines_share(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Path(os.environ[LOCAL_STORE])
    monkeypatch.setenv(LOCAL_STORE, str(tmp_path))
    store = open_store("s3://studies/ray")
    steps = [make("count", value=value) for value in range(4)]
    last = make("count", value=1, deps={str(n): step.id for n, step in enumerate(steps)})
    outcome, events = compute([*steps, last], store, cluster)
    assert len(outcome.done) == 5
    assert not [event for event in events if isinstance(event, Notice)]
    assert store.artifact(last.id).result["value"] == 7
    assert not list(tmp_path.rglob("value.txt"))
    assert len(list(nodes.rglob("value.txt"))) == 5
    assert list(nodes.rglob("*.log"))
    assert store.locked() == []


def test_a_machine_that_joins_gets_work_while_the_study_runs(tmp_path: Path, cluster: Any) -> None:
    store, joined = Store(tmp_path / "store"), []
    steps = met(tmp_path, 24, machines=len(cluster.list_all_nodes()) + 1)

    def join(event: Event) -> None:
        if not joined:
            joined.append(cluster.add_node(num_cpus=1, **SMALL))

    outcome, _ = compute(steps, store, cluster, on_event=join)
    assert len(outcome.done) == len(steps)
    assert raylet(joined[0]) in found(store, steps, "raylet")
    cluster.remove_node(joined[0])


def test_each_gpu_has_a_worker_and_machines_without_one_only_look_on(tmp_path: Path, cluster: Any) -> None:
    """Ray counts two GPUs that are not there; the steps do not touch them."""
    gpus = cluster.add_node(num_cpus=4, num_gpus=2, **SMALL)
    store = Store(tmp_path / "store")
    others = met(tmp_path, 6, machines=2)
    quiet = make_alone("span", value=10, sleep_s=0.0, deps={str(n): step.id for n, step in enumerate(others)})
    outcome, _ = compute([*others, quiet], store, cluster)
    assert len(outcome.done) == 7
    assert found(store, [*others, quiet], "raylet") == {raylet(gpus)}
    assert found(store, [*others, quiet], "device") == {"cuda:0"}
    assert found(store, others, "gpus") == {"0", "1"}
    assert found(store, [quiet], "gpus") == {"0,1"}
    cluster.remove_node(gpus)


def test_what_no_machine_has_fails_with_the_remedy_and_the_rest_goes_on(tmp_path: Path, cluster: Any) -> None:
    store, kind = Store(tmp_path / "store"), "engine_count"
    greedy = Step(kind=kind, version=1, params={"value": 1}, resources=Resources(memory_bytes=1 << 60))
    picky = Step(kind=kind, version=1, params={"value": 2}, resources=Resources(device="accelerator"))
    fine = Step(kind=kind, version=1, params={"value": 3}, resources=Resources(memory_bytes=1 << 20))
    outcome, _ = compute([greedy, picky, fine], store, cluster)
    assert outcome.done == [fine.id]
    assert (
        outcome.failed[greedy.id].message == f"{greedy.id} needs {1 << 60} bytes, which no machine of the cluster has"
    )
    assert outcome.failed[picky.id].message == f"{picky.id} needs an accelerator, which no machine of the cluster has"
    with pytest.raises(EnvironmentProblem, match="--device cuda: no machine of the cluster has one"):
        RayExecutor(store, address=cluster.address, devices=["cuda"]).prepare()


def test_a_store_that_machines_do_not_share_is_found_before_any_work(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "store").mkdir()
    opened = fcntl.fcntl(os.open(tmp_path / "store", os.O_RDONLY), fcntl.F_DUPFD, 700)  # which no other process has
    store = Store(Path(f"/proc/self/fd/{opened}"))
    with pytest.raises(EnvironmentProblem) as refused:
        compute([make("count", value=1)], store, cluster)
    assert "the store is not shared with" in refused.value.message
    assert "it does not see what this machine writes" in refused.value.message
    assert list((tmp_path / "store").iterdir()) == [tmp_path / "store" / "steps"]


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


def training(store: Store, nodes: list[Any]) -> list[Any]:
    """Those of `nodes` on which a run is being trained now."""
    holders = [store.lock(lock.name).holder() for lock in (store.root / "locks").glob("train-*")]
    busy = {_raylet_above(holder.pid) for holder in holders if holder is not None}
    return [node for node in nodes if raylet(node) in busy]


def _raylet_above(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((v.partition(b"=")[2].decode() for v in variables if v.startswith(b"RAY_RAYLET_PID=")), None)


def notices(directory: Path) -> list[str]:
    lines = (directory / "results" / "small" / "events.jsonl").read_text().splitlines()
    return [event["text"] for event in map(json.loads, lines) if event["event"] == "notice"]


def test_a_lost_machine_or_head_costs_only_unfinished_steps(tmp_path: Path, cluster: Any, measuring: Any) -> None:
    for name in ("local", "ray"):
        write_small_study(tmp_path / name, LONGER)
    undisturbed = run(tmp_path / "local", "run", "study.yaml")
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]

    here, store = tmp_path / "ray", Store(tmp_path / "ray" / "store")
    log = here / "ray.log"
    running = start(here, cluster)
    others = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    assert len(others) == 2
    busy: list[Any] = []
    wait_for(lambda: busy.extend(training(store, others)) or busy, running, log)
    finished = committed(store)
    cluster.remove_node(busy[0], allow_graceful=False)
    wait_for(lambda: any("was lost" in text for text in notices(here)), running, log)
    wait_for(lambda: store.artifacts("train"), running, log)
    assert_untouched(finished, committed(store))
    wait_for(lambda: training(store, cluster.list_all_nodes()), running, log)
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    running.kill()
    running.wait()
    finished = committed(store)
    assert 0 < len(store.artifacts("train")) < 4, "the head was lost while nothing ran any more"

    with ray_cluster(1, num_cpus=1) as another:
        again = run(here, "run", "study.yaml", "--executor", "ray", "--address", another.address, "--json")
    assert again.returncode == 0, again.stderr[-3000:]
    assert not set(json.loads(again.stdout)["computed"]) & set(finished)
    assert_untouched(finished, committed(store))
    pd.testing.assert_frame_equal(
        what_was_measured(here / "results" / "small"), what_was_measured(tmp_path / "local" / "results" / "small")
    )
