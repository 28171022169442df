"""What a step costs on a Ray cluster beyond its own work, and how much of the cluster is put to use.

    python benchmarks/engine/ray_overhead.py [--steps 500] [--machines 3] [--repeats 3] [--output FILE]

Ours is `execute` with the Ray executor on a cluster of several nodes in this machine. Peers on the same work: our local
executor, and bare Ray tasks that write one JSON file a step (no lock, no checksum, no flush, nothing to resume). The share
of the ideal makespan uses steps that sleep: ideal is steps x sleep / machines. Starting the workers is part of every
time; starting the cluster and joining it, which a study does once, is a row of its own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from overhead import ours, trivial_in_a_pool
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

from lorascope.engine.ray.executor import RayExecutor
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store

SLEEP_S = 0.25


def on_ray(num_steps: int, *, sleep_s: float, num_workers: int) -> tuple[float, float]:
    """Seconds to join the cluster and check its machines, and seconds to compute the steps."""
    steps = [
        Step(kind="benchmark_trivial", version=1, params={"number": number, "sleep_s": sleep_s})
        for number in range(num_steps)
    ]
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "store")
        started = time.perf_counter()
        executor = RayExecutor(store, devices=["cpu"] * num_workers)
        executor.prepare()
        joined_s = time.perf_counter() - started
        started = time.perf_counter()
        outcome = execute(steps, store=store, executor=executor, emit=lambda event: None)
        seconds = time.perf_counter() - started
        executor.close()
        assert len(outcome.done) == num_steps
    return joined_s, seconds


def bare_tasks(num_steps: int, *, sleep_s: float, num_workers: int) -> tuple[float, float]:
    """Seconds to join, and seconds for as many tasks at once as there are workers."""
    started = time.perf_counter()
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    joined_s = time.perf_counter() - started
    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(trivial_in_a_pool)
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        running: list[Any] = []
        for number in range(num_steps):
            if len(running) == num_workers:
                _, running = ray.wait(running)
            running.append(task.remote(directory, number, sleep_s))
        ray.get(running)
        seconds = time.perf_counter() - started
    ray.shutdown()
    return joined_s, seconds


def measure(num_steps: int, num_machines: int, repeats: int) -> list[dict[str, Any]]:
    per_step = 1e3 / num_steps
    ray_ms, bare_ms, local_ms, joins, bare_joins, shares, bare_shares = ([] for _ in range(7))
    ideal_s = num_steps * SLEEP_S / num_machines
    for _ in range(repeats):  # in turns, so that what else the machine does falls on all sides alike
        joined_s, seconds = on_ray(num_steps, sleep_s=0.0, num_workers=1)
        ray_ms.append(seconds * per_step)
        joins.append(joined_s)
        joined_s, seconds = bare_tasks(num_steps, sleep_s=0.0, num_workers=1)
        bare_ms.append(seconds * per_step)
        bare_joins.append(joined_s)
        local_ms.append(ours(num_steps, sleep_s=0.0, num_workers=1)[0] * per_step)
        shares.append(ideal_s / on_ray(num_steps, sleep_s=SLEEP_S, num_workers=num_machines)[1])
        bare_shares.append(ideal_s / bare_tasks(num_steps, sleep_s=SLEEP_S, num_workers=num_machines)[1])
    work = f"{num_steps} trivial steps on Ray, one worker"
    makespan = f"share of the ideal makespan, {num_steps} steps of {SLEEP_S:g} s on {num_machines} nodes of Ray"
    joining, bare = "join the cluster and check its machines", "bare Ray tasks, no store"
    return [
        ratios.compared(work, ray_ms, local_ms, peer_name="the local executor", unit="ms/step"),
        ratios.compared(work, ray_ms, bare_ms, peer_name=bare, unit="ms/step"),
        ratios.compared(makespan, shares, bare_shares, peer_name=bare, unit="fraction", higher_is_better=True),
        ratios.compared(joining, joins, bare_joins, peer_name="ray.init alone"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of a step on Ray.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="default: results/ray-<machine>-<date>.json")
    given = parser.parse_args()
    here = str(Path(__file__).parent)
    # The nodes' processes find "benchmark_trivial" and this lorascope.
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *(path for path in sys.path if path)])
    sys.path.insert(0, here)
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(given.machines - 1):
            cluster.add_node(wait=False, **node)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        load_before = os.getloadavg()[0]
        rows = measure(given.steps, given.machines, given.repeats)
    finally:
        cluster.shutdown()
    rows = ratios.described(
        rows,
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        versions={"python": platform.python_version(), "ray": ray.__version__},
        command=ratios.command_line("benchmarks/engine/ray_overhead.py"),
        load_average_before=round(load_before, 2),
    )
    name = f"ray-{platform.machine()}-{os.cpu_count()}cpu-{datetime.date.today().isoformat()}.json"
    output = given.output or Path(here) / "results" / name
    ratios.write_list(output, rows)
    for row in rows:
        print(f"{row['work']}: {row['ours']:.3g} v. {row['peer']:.3g} {row['unit']} ({row['peer_name']})")


if __name__ == "__main__":
    main()
