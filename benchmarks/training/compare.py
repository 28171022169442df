"""lorascope's training against `transformers.Trainer`, both sides in one run.

    python benchmarks/training/compare.py --bench gang-smollm2 --data DIR --out benchmarks/training/results
    python benchmarks/training/compare.py --figure docs/performance.md --out benchmarks/training/results

Every side runs in a process of its own, so that no side's memory, kernels or flags reach the other. After each of them the
raw figures go to OUT/raw/<bench>-<machine>-<date>.json, and the comparisons to OUT/ under the same name. README.md next to
this says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comparisons import write_lists
from workload import TINYLLAMA_SHAPE, Setting, open_workload, prepare, study_document

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

ORDER_OF_SIDES = ("ours", "ours-alone", "peer-a", "peer-a-bf16-base", "peer-a-compile", "peer-b")


@dataclass(frozen=True)
class Bench:
    """One comparison with its sizes; every one of them is an argument too. sweep: a whole study end to end instead of
    `steps` updates of one run (or gang) a task."""

    model: str
    tasks: tuple[str, ...]
    method: str
    precisions: tuple[str, ...]
    gang: int
    steps: int
    sides: tuple[str, ...]
    batch_size: int = 16
    sweep: bool = False


BENCHES = {
    "gang-smollm2": Bench(
        "smollm2-135m", ("sst2", "mrpc", "rte"), "lora", ("bf16",), 16, 150, ("ours", "ours-alone", "peer-a")
    ),
    "sweep-smollm2": Bench(
        "smollm2-135m", ("mrpc", "sst2", "rte"), "lora", ("bf16",), 0, 0, ("ours", "peer-a", "peer-b"), sweep=True
    ),
    "full-smollm2": Bench("smollm2-135m", ("sst2", "mrpc", "rte"), "full", ("bf16",), 1, 150, ("ours", "peer-a")),
    "gang-tinyllama": Bench(
        TINYLLAMA_SHAPE, ("mrpc",), "lora", ("bf16",), 8, 150, ("ours", "ours-alone", "peer-a")
    ),
    "cpu-minilm": Bench(
        "minilm-l6", ("mrpc",), "lora", ("fp32", "bf16"), 4, 40, ("ours", "ours-alone", "peer-a", "peer-b")
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------- what a process of its own runs


def describe_machine(device: str, precisions: Sequence[str], threads: int | None) -> dict[str, Any]:
    """Versions, source, device and what its arithmetic can reach; without the host's digest."""
    import torch

    from lorascope.engine import provenance
    from lorascope.engine.warm import Warm
    from lorascope.training.hardware import peak_flops

    _use_threads(threads)
    peaks = {precision: peak_flops(device, precision=precision, warm=Warm()) for precision in precisions}
    about = provenance.describe(device=device)
    return {
        **{key: value for key, value in about.items() if key != "host"},
        "threads": torch.get_num_threads(),
        "peak_flops": {precision: {"rate": rate, "basis": basis} for precision, (rate, basis) in peaks.items()},
    }


def measure_steps(setting: Setting, document: dict[str, Any], side: str, gang: int) -> dict[str, Any]:
    """One side of a comparison of step times."""
    _use_threads(setting.threads)
    workload = open_workload(setting, document)
    if side.startswith("ours"):
        import ours

        return ours.train(workload, runs=gang)
    import peers

    return peers.train(workload, peers.RECIPES[side], steps=2 * setting.steps, warm_up=setting.steps, seed=1)


def measure_peer_sweep(
    setting: Setting,
    document: dict[str, Any],
    side: str,
    tasks: Sequence[str],
    seeds: int,
    measured_seeds: int,
    measured_updates: int | None,
) -> dict[str, Any]:
    """A peer's part of a sweep, run after run: the first `measured_seeds` seeds of every task, each whole (validated at
    the end of every epoch) or cut after `measured_updates` updates; scaled to the whole, which `scaled` says. A cut run's
    first tenth warms up: its seconds count once, and the updates that were not made take as long as those after it."""
    import peers

    _use_threads(setting.threads)
    runs, seconds, updates_in_all = [], 0.0, 0
    epochs = document["train"]["epochs"]
    for task in tasks:
        workload = open_workload(replace(setting, task=task), document, every_row=True)
        per_epoch = -(-len(workload.train) // setting.batch_size)
        total = round(epochs * per_epoch)
        cut = measured_updates is not None and measured_updates < total
        of_task = []
        for seed in range(measured_seeds):
            recipe = peers.RECIPES[side]
            if cut:
                warm_up = -(-measured_updates // 10)
                run = peers.train(
                    workload, recipe, steps=measured_updates, seed=seed, warm_up=warm_up, validate_once=True
                )
            else:
                run = peers.train(workload, recipe, steps=total, seed=seed, epochs_to_validate=epochs)
            of_task.append({"task": task, "seed": seed, **run})
        runs += of_task
        seconds += seeds * statistics.mean(
            run["startup_seconds"]
            + run["training_seconds"]
            + (total - run["updates"]) * run["step_ms_mean"] / 1000
            + run["evaluation_seconds"] * epochs / run["evaluations"]
            for run in of_task
        )
        updates_in_all += total * seeds
    made = sum(run["updates"] for run in runs)
    real = sum(run["real_tokens"] for run in runs) * updates_in_all / made
    accuracy = None if made < updates_in_all else statistics.mean(run["validation_accuracy"] for run in runs)
    return {
        "end_to_end_seconds": seconds,
        "scaled": made < updates_in_all,
        "measured_updates": made,
        "updates": updates_in_all,
        "runs": seeds * len(tasks),
        "runs_measured": len(runs),
        "real_tokens": round(real),
        "tokens_per_second": real / seconds,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "validation_accuracy": accuracy,
        "measured_runs": [{key: value for key, value in run.items() if key != "step_ms"} for run in runs],
    }  # fmt: skip


def _use_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """(what the function returns in a fresh process, wall-clock seconds with the process's start and imports)."""
    started = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        value = pool.submit(function, *arguments).result()
    return value, time.perf_counter() - started


# ----------------------------------------------------------------------------------------------------------- benches


def run_bench(name: str, bench: Bench, given: argparse.Namespace, store: Path) -> int:
    """Measures every side of a bench; returns how many failed. Results are written after each."""
    document = study_document(
        model=bench.model,
        tasks=bench.tasks,
        method=bench.method,
        seeds=range(given.seeds) if bench.sweep else [1],
        precision=bench.precisions[0],
        batch_size=bench.batch_size,
        epochs=given.epochs if bench.sweep else 1,
        train_examples=given.train_examples,
    )
    in_a_process(prepare, document, given.data, store)
    about, _ = in_a_process(describe_machine, given.device, bench.precisions, given.threads)
    results = {
        "bench": name,
        "command": ratios.command_line("benchmarks/training/compare.py"),
        "date": datetime.date.today().isoformat(),
        "machine": about,
        "sizes": {
            "model": bench.model, "method": bench.method, "batch_size": bench.batch_size, "gang": bench.gang,
            "steps": bench.steps, "train_examples": given.train_examples, "seeds": given.seeds if bench.sweep else None,
            "epochs": given.epochs if bench.sweep else None,
        },
        "measurements": [],
    }  # fmt: skip
    stem = f"{name}-{ratios.short_machine(about)}-{results['date']}{given.name}"
    path, failures = given.out / "raw" / f"{stem}.json", 0
    for cell in _cells(bench, given):
        try:
            measured = _measure(bench, cell, document, given, store, about)
        except Exception as error:
            measured, failures = {"error": f"{type(error).__name__}: {error}"[:2000]}, failures + 1
        results["measurements"].append({**cell, **measured})
        ratios.write_raw(path, results)
        write_lists(given.out, only=path.name)
        print(_line({**cell, **measured}), flush=True)
    print(f"raw figures: {path}")
    return failures


def _cells(bench: Bench, given: argparse.Namespace) -> list[dict[str, Any]]:
    tasks = ("all",) if bench.sweep else bench.tasks
    return [
        {"repeat": repeat, "task": task, "precision": precision, "side": side,
         "gang": bench.gang if side == "ours" else 1}
        for repeat in range(given.repeats) for precision in bench.precisions for task in tasks for side in bench.sides
    ]  # fmt: skip


def _measure(
    bench: Bench,
    cell: dict[str, Any],
    document: dict[str, Any],
    given: argparse.Namespace,
    store: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    side = cell["side"]
    setting = Setting(
        model=bench.model, task=cell["task"], method=bench.method, precision=cell["precision"], device=given.device,
        steps=bench.steps, batch_size=bench.batch_size, data_dir=given.data, store=store, threads=given.threads,
        compiled={"auto": None, "yes": True, "no": False}[given.compiled],
        peak_flops=about["peak_flops"][cell["precision"]]["rate"],
    )  # fmt: skip
    if bench.sweep and side == "ours":
        measured, seconds = in_a_process(measure_our_sweep, document, given.data, [given.device] * given.workers)
    elif bench.sweep:
        cut = given.peer_a_updates if side == "peer-a" else given.peer_b_updates
        measured_seeds = given.seeds if side == "peer-a" and cut is None else 1
        measured_seeds = min(given.peer_seeds or measured_seeds, measured_seeds)
        measured, seconds = in_a_process(
            measure_peer_sweep, setting, document, side, bench.tasks, given.seeds, measured_seeds, cut
        )
    else:
        steps = bench.steps
        if side == "peer-b" and given.peer_b_updates:
            steps = min(steps, given.peer_b_updates)
        measured, seconds = in_a_process(
            measure_steps, replace(setting, steps=steps), document, side, cell["gang"]
        )  # fmt: skip
    return {**measured, "process_seconds": seconds}


def measure_our_sweep(document: dict[str, Any], data_dir: Path, devices: list[str]) -> dict[str, Any]:
    import ours

    return ours.sweep(document, data_dir=data_dir, devices=devices)


def _line(row: dict[str, Any]) -> str:
    where = f"{row['task']:>5} {row['precision']} {row['side']:<16} K={row['gang'] or 'auto'}"
    if "error" in row:
        return f"{where}  FAILED {row['error'].splitlines()[0][:200]}"
    if row.get("step_ms_mean") is None:
        part = f" (scaled from {row['measured_updates']} of {row['updates']} updates)" if row.get("scaled") else ""
        return f"{where}  {row['end_to_end_seconds']:.1f} s end to end{part}"
    return (
        f"{where}  {row['step_ms_mean']:.2f} ms a run and step, {row['tokens_per_second']:,.0f} real tokens/s, MFU "
        f"{row['mfu']:.2%}, {row['peak_memory_bytes'] / 2**30:.2f} GiB, start-up {row['startup_seconds']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed: lorascope against transformers.Trainer.")
    parser.add_argument("--bench", choices=BENCHES)
    parser.add_argument(
        "--figure", type=Path, metavar="DOCUMENT", help="write its table and figure from OUT/raw/*.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--name", default="", help="added to the name of the result's file")
    parser.add_argument("--data", type=Path, help="directory with {task}_{split}.parquet")
    parser.add_argument("--work", type=Path, help="keeps the prepared data between runs (default: temporary)")
    parser.add_argument("--device", help="cuda:0, cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (default: torch's)")
    parser.add_argument("--steps", type=int, help="timed updates of a run (as many go before to warm up)")
    parser.add_argument("--gang", type=int, help="K, the runs that lorascope trains together")
    parser.add_argument("--compiled", choices=("auto", "yes", "no"), default="auto", help="fuse our kernels")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--model", help="a name of lorascope's catalog, or " + TINYLLAMA_SHAPE)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--sides", nargs="+", choices=ORDER_OF_SIDES)
    parser.add_argument("--train-examples", type=int, help="cap on a task's training rows")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="sweep: runs a task")
    parser.add_argument("--epochs", type=int, default=3, help="sweep: epochs a run")
    parser.add_argument("--workers", type=int, default=1, help="sweep: lorascope's workers on the device")
    parser.add_argument("--peer-seeds", type=int, help="sweep: seeds peer A is measured on, then scaled (default: all)")
    parser.add_argument("--peer-a-updates", type=int, help="sweep: updates a run of peer A is measured on, then scaled")
    parser.add_argument("--peer-b-updates", type=int, help="updates a run of peer B is measured on, then scaled")
    given = parser.parse_args()
    if given.figure:
        from figure import publish

        publish(given.out, given.figure)
        return
    if given.bench is None or given.data is None:
        parser.error("give --bench and --data, or --figure")
    bench = BENCHES[given.bench]
    named = {"steps": given.steps, "gang": given.gang, "batch_size": given.batch_size, "tasks": given.tasks}
    named |= {"model": given.model, "precisions": given.precisions, "sides": given.sides}
    bench = replace(bench, **{key: value for key, value in named.items() if value is not None})
    if given.device is None:
        import torch

        given.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    given.data = given.data.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        store = (given.work or Path(temporary)).resolve()
        sys.exit(1 if run_bench(given.bench, bench, given, store) else 0)


if __name__ == "__main__":
    main()
