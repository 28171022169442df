"""What a step costs beyond its own work: 500 trivial steps through each way of running them.

    python benchmarks/engine/overhead.py [--steps 500] [--repeats 3] [--output FILE]

Ours is `execute` with the local executor (worker process, lock, provenance, checksums, flush to disk, atomic commit).
Peers on the same work: a bare `concurrent.futures.ProcessPoolExecutor` that writes one JSON file a step (no lock, no
flush, nothing to resume), and a fresh interpreter a step (what a shell loop over scripts does). The share of the ideal
makespan uses steps that sleep: ideal is steps x sleep / workers. Starting the workers is part of every time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

from lorascope.engine.context import StepContext
from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.workers.local import LocalExecutor

SLEEP_S = 0.1
NUM_FRESH = 20  # a fresh interpreter costs the same every time; a few tell


def trivial(context: StepContext) -> dict[str, Any]:
    """The work of one step: sleep as told, write a small file, return a number."""
    time.sleep(context.step.params["sleep_s"])
    (context.out / "value.txt").write_text(str(context.step.params["number"]))
    return {"value": context.step.params["number"]}


def trivial_in_a_pool(directory: str, number: int, sleep_s: float) -> None:
    time.sleep(sleep_s)
    Path(directory, f"{number}.txt").write_text(str(number))
    Path(directory, f"{number}.json").write_text(json.dumps({"value": number}))


def ours(num_steps: int, *, sleep_s: float, num_workers: int) -> tuple[float, float]:
    """Seconds to compute the steps, and seconds to find them all cached."""
    steps = [
        Step(kind="benchmark_trivial", version=1, params={"number": number, "sleep_s": sleep_s})
        for number in range(num_steps)
    ]
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "store")
        started = time.perf_counter()
        executor = LocalExecutor(store, devices=["cpu"] * num_workers)
        outcome = execute(steps, store=store, executor=executor, emit=lambda event: None)
        seconds = time.perf_counter() - started
        assert len(outcome.done) == num_steps
        executor.close()
        started = time.perf_counter()
        outcome = execute(steps, store=store, executor=executor, emit=lambda event: None)
        cached_s = time.perf_counter() - started
        assert len(outcome.cached) == num_steps
    return seconds, cached_s


def process_pool(num_steps: int, *, sleep_s: float, num_workers: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        with concurrent.futures.ProcessPoolExecutor(num_workers) as pool:
            for done in [pool.submit(trivial_in_a_pool, directory, number, sleep_s) for number in range(num_steps)]:
                done.result()
        return time.perf_counter() - started


def fresh_interpreters(num_steps: int) -> float:
    """Seconds for `num_steps`, one process each, extrapolated from NUM_FRESH."""
    with tempfile.TemporaryDirectory() as directory:
        code = "import sys, overhead; overhead.trivial_in_a_pool(sys.argv[1], int(sys.argv[2]), 0.0)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        started = time.perf_counter()
        for number in range(NUM_FRESH):
            subprocess.run([sys.executable, "-c", code, directory, str(number)], check=True, env=environment)
        return (time.perf_counter() - started) * num_steps / NUM_FRESH


def repeated(measure: Callable[[], float], repeats: int) -> list[float]:
    return [measure() for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of a step.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="default: results/<machine>-<date>.json")
    given = parser.parse_args()
    num_steps, repeats = given.steps, given.repeats
    sys.path.insert(0, str(Path(__file__).parent))  # workers find "benchmark_trivial"

    both = [ours(num_steps, sleep_s=0.0, num_workers=1) for _ in range(repeats)]
    ours_ms = [seconds / num_steps * 1e3 for seconds, _ in both]
    cached_ms = [seconds / num_steps * 1e3 for _, seconds in both]
    pool_ms = [
        seconds / num_steps * 1e3
        for seconds in repeated(lambda: process_pool(num_steps, sleep_s=0.0, num_workers=1), repeats)
    ]
    fresh_ms = [seconds / num_steps * 1e3 for seconds in repeated(lambda: fresh_interpreters(num_steps), repeats)]
    num_slow = max(2, num_steps // 5)
    ideal_s = num_slow * SLEEP_S / 2
    share = [ideal_s / ours(num_slow, sleep_s=SLEEP_S, num_workers=2)[0] for _ in range(repeats)]
    pool_share = [
        ideal_s / seconds
        for seconds in repeated(lambda: process_pool(num_slow, sleep_s=SLEEP_S, num_workers=2), repeats)
    ]
    makespan = f"share of the ideal makespan, {num_slow} steps of {SLEEP_S:g} s on 2 workers"
    work, pool, unit = f"{num_steps} trivial steps, one worker", "process pool, no store", "ms/step"
    rows = ratios.described(
        [
            ratios.compared(work, ours_ms, pool_ms, peer_name=pool, unit=unit),
            ratios.compared(work, ours_ms, fresh_ms, peer_name="an interpreter a step", unit=unit),
            ratios.compared(
                f"the same {num_steps} steps again", cached_ms, ours_ms, peer_name="computing them", unit=unit
            ),
            ratios.compared(makespan, share, pool_share, peer_name=pool, unit="fraction", higher_is_better=True),
        ],
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        versions={"python": platform.python_version()},
        command=ratios.command_line("benchmarks/engine/overhead.py"),
    )
    date = datetime.date.today().isoformat()
    default = Path(__file__).parent / "results" / f"{platform.machine()}-{os.cpu_count()}cpu-{date}.json"
    output = given.output or default
    ratios.write_list(output, rows)
    for row in rows:
        print(f"{row['work']}: {row['ours']:.3g} v. {row['peer']:.3g} {row['unit']} ({row['peer_name']})")


if __name__ == "__main__":
    main()
