"""Is training as fast after a refactor as before, and does it need no more memory? Both sides in turns, in one run.

    python benchmarks/numerics/speed.py BEFORE_TREE AFTER_TREE [--repeats 3] [--busy] [--only speed-tiny] [--output FILE]

A tree is a checkout; its `src` is what is run. Data, tokens and sanity gates are made once a tree; each repeat trains the
runs of a study again with either tree, who is first alternating. Updates a second and peak memory are those of the records
of the train steps; `CPU s` is what the whole command used, which other work on the machine hardly changes. A ratio is the
median over repeats, above 1 where AFTER is better, with the lowest and the highest; status 1 if one is below --least.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capture import HERE, environment, machine, processor_seconds, records
from inputs import write_inputs

STUDIES = ("speed-tiny", "speed-quickstart")
SIDES = ("before", "after")
Sample = dict[tuple[str, str], float]
"""(method or "command", unit) -> value."""


def measure(study: str, trees: Mapping[str, Path], folder: Path, *, repeats: int) -> dict[str, list[Sample]]:
    """Side -> its repeats."""
    write_inputs(folder)
    for path in (HERE / "studies").glob("*.yaml"):
        shutil.copy(path, folder)
    for side, tree in trees.items():
        run(study, tree, folder, store=folder / side, only="sanity-*")
    samples: dict[str, list[Sample]] = {side: [] for side in SIDES}
    for repeat in range(repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            store = folder / f"{side}-{repeat}"
            shutil.copytree(folder / side, store)
            cpu_s = run(study, trees[side], folder, store=store, only="train-*")
            samples[side].append({("command", "CPU s"): cpu_s, **from_records(store)})
            shutil.rmtree(store)
    return samples


def run(study: str, tree: Path, folder: Path, *, store: Path, only: str) -> float:
    """Runs the steps that match and returns the processor time of the command, in seconds."""
    command = [sys.executable, "-m", "lorascope", "run", f"{study}.yaml", "--store", str(store), "--only", only]
    command += ["--executor", "inline", "--device", "cpu", "--results", str(store / "results"), "--json"]
    before = processor_seconds()
    paths = {**environment(), "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: status {done.returncode}\n{done.stderr[-3000:]}")
    return processor_seconds() - before


def from_records(store: Path) -> Sample:
    """Updates a second of all runs of a method, and the most memory that one of its gangs needed."""
    results: dict[str, list[dict[str, Any]]] = {}
    for _, record in records(store):
        if record["step"]["kind"] == "train":
            results.setdefault(record["step"]["params"]["method"]["kind"], []).append(record["result"])
    sample = {}
    for method, found in results.items():
        seconds = sum(result["training_seconds"] for result in found)
        sample[method, "updates/s"] = sum(result["updates"] for result in found) / seconds
        sample[method, "byte"] = max(float(result["peak_memory_bytes"]) for result in found)
    return sample


def compared(study: str, samples: Mapping[str, list[Sample]], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a comparison, in the format of all benchmarks: ours is AFTER, the peer is BEFORE."""
    rows = []
    for what, unit in samples["before"][0]:
        before, after = ([sample[what, unit] for sample in samples[side]] for side in SIDES)
        is_rate = unit == "updates/s"
        ratios = [a / b if is_rate else b / a for b, a in zip(before, after, strict=True)]
        rows.append(
            {
                "work": f"{study}: {what}", "ours": statistics.median(after), "peer": statistics.median(before),
                "peer_name": about["before"], "unit": unit, "ratio": statistics.median(ratios),
                "ratio_low": min(ratios), "ratio_high": max(ratios), "repeats": len(ratios),
                "machine": about["machine"], "versions": about["versions"], "command": about["command"],
                "raw": {"ours": after, "peer": before},
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=STUDIES, action="append", help="this study (repeatable); default: both")
    parser.add_argument("--least", type=float, default=0.97, help="status 1 if a ratio is below it")
    parser.add_argument("--busy", action="store_true", help="other work runs here: updates/s are shown, not judged")
    parser.add_argument("--output", type=Path, help="where the rows go, as JSON")
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": given.after.resolve()}
    os.environ["PYTHONPATH"] = str(trees["after"] / "src")
    command = ["python", "benchmarks/numerics/speed.py", "BEFORE", "AFTER", *sys.argv[3:]]
    about = {**machine(), "before": commit(trees["before"]), "command": shlex.join(command)}
    about["machine"] = {key: about[key] for key in ("processor", "capability")}
    rows = []
    print(f"{'work':28} {'unit':10} {'before':>14} {'after':>14} {'ratio':>7}  lowest to highest")
    for study in given.only or STUDIES:
        with tempfile.TemporaryDirectory() as folder:
            samples = measure(study, trees, Path(folder), repeats=given.repeats)
        for row in compared(study, samples, about):
            rows.append(row)
            numbers = f"{row['peer']:14,.1f} {row['ours']:14,.1f} {row['ratio']:7.3f}"
            print(
                f"{row['work']:28} {row['unit']:10} {numbers}  {row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                flush=True,
            )
    if given.output:
        given.output.write_text(json.dumps(rows, indent=1) + "\n")
    judged = [row["ratio"] for row in rows if not (given.busy and row["unit"] == "updates/s")]
    sys.exit(1 if min(judged) < given.least else 0)


def commit(tree: Path) -> str:
    told = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip() or tree.name


if __name__ == "__main__":
    main()
