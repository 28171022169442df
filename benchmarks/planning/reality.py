"""Plan v reality: calibrate a small study, write down what the plan says, run the study, and compare.

    python benchmarks/planning/reality.py --out benchmarks/planning/results [--repeats 2] [--device cpu]
        [--workers N] [--data DIR] [--whole] [--set A.B=C ...] [STUDY]

Every round begins with an empty store, and every command is the command line's own in a process of its own, as a person
would give it. Times of steps are compared kind by kind and as a whole, memory arm by arm. A row a figure goes to
OUT/<machine>-<device>-<date>.json, every round with its steps to OUT/raw.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

REPOSITORY = Path(__file__).parents[2]
PEER, ROUNDS = "what it took", "lowest and highest ratio of a round"
SMALL = (
    "data.train_examples=800",
    "data.validation_examples=128",
    "data.test_examples=256",
    "train.epochs=2",
    "seeds=[42, 1337]",
    "measure.drift.examples=128",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=REPOSITORY / "studies" / "quickstart.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="on that device")
    parser.add_argument("--data", type=Path, default=None, help="directory of {task}_{split}.parquet")
    parser.add_argument("--whole", action="store_true", help="the study as it stands, not made small")
    parser.add_argument("--name", default="", help="added to the name of the result's file")
    parser.add_argument("--set", action="append", dest="overrides", help="in addition to those that make it small")
    given = parser.parse_args()
    overrides = [*(() if given.whole else SMALL), *(given.overrides or [])]
    where = ["--device", given.device] * given.workers + (["--data", str(given.data.resolve())] if given.data else [])
    rounds = []
    for _ in range(given.repeats):
        directory = Path(tempfile.mkdtemp(prefix="reality-"))  # kept with its store if anything fails
        rounds.append(one_round(given.study.resolve(), directory, overrides, where, device=given.device))
        shutil.rmtree(directory)
        print(json.dumps(rounds[-1]["rows"], indent=1), flush=True)
    name = f"{platform.machine()}-{os.cpu_count()}cpu-{given.device.partition(':')[0]}{given.name}-{datetime.date.today()}.json"
    command = ratios.command_line("benchmarks/planning/reality.py")
    content = {"command": command, "study": given.study.name, "overrides": overrides, "rounds": rounds}
    ratios.write_raw(given.out / "raw" / name, content)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; {given.device}"
    rows = rows_of(content, machine=machine, versions=versions(), raw=f"raw/{name}")
    ratios.write_list(given.out / name, rows)


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def rows_of(content: dict[str, Any], *, machine: str, versions: dict[str, str] | None, raw: str) -> list[ratios.Row]:
    """One row a figure, over all rounds: what was estimated (ours), what it took (peer), estimate over reality."""
    figures: dict[str, list[dict[str, Any]]] = {}
    for one in content["rounds"]:
        for figure in one["rows"]:
            if "estimate" in figure:
                figures.setdefault(figure["work"], []).append(figure)
    rows = [_over_rounds(work, found) for work, found in figures.items()]
    return ratios.described(rows, machine=machine, versions=versions, command=content["command"], raw=raw)


def _over_rounds(work: str, rounds: Sequence[dict[str, Any]]) -> ratios.Row:
    """A round has its own calibration and its own reality, so the ratio is taken within rounds."""
    found = [figure["estimate"] / figure["reality"] for figure in rounds]
    several = len(found) > 1
    return {
        "work": work, "ours": statistics.median(figure["estimate"] for figure in rounds),
        "peer": statistics.median(figure["reality"] for figure in rounds), "peer_name": PEER, "unit": rounds[0]["unit"],
        "ratio": statistics.median(found), "ratio_low": min(found) if several else None,
        "ratio_high": max(found) if several else None, "repeats": len(found),
        "interval": ROUNDS if several else None, "aim": 1, "within": rounds[0].get("aim"),
        "samples": {side: [figure[key] for figure in rounds] for side, key in (("ours", "estimate"), ("peer", "reality"))},
    }  # fmt: skip


def one_round(study: Path, directory: Path, overrides: list[str], where: list[str], *, device: str) -> dict[str, Any]:
    """Calibrate, plan, run; what was estimated and what it took."""
    options = [str(study), *where, "--json", *(part for text in overrides for part in ("--set", text))]
    loads = [os.getloadavg()[0]]
    calibrating = _clock()
    plan = lorascope(directory, "plan", *options, "--calibrate")
    calibration_seconds = _clock() - calibrating
    loads.append(os.getloadavg()[0])
    outcome = lorascope(directory, "run", *options)
    loads.append(os.getloadavg()[0])
    rows, steps = compare(plan, outcome, directory / "store", device=device)
    return {
        "rows": rows,
        "steps": steps,
        "calibration_seconds": calibration_seconds,
        "load_average_before_between_after": loads,
        "machine": platform.processor() or platform.machine(),
    }


def compare(
    plan: dict[str, Any], outcome: dict[str, Any], store: Path, *, device: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row a figure: estimate, reality, their ratio, and within which share of reality the estimate is meant to lie. And
    every step by itself, with how many runs trained together."""
    from lorascope.engine.store.directory import Store
    from lorascope.plan.history import read_history

    took = {
        o.step.id: o for o in read_history(Store(store), device=device.partition(":")[0], is_binding=True).observations
    }
    ran = [step for step in plan["steps"] if step["state"] == "missing" and step["id"] in took]
    known = [step for step in ran if step["estimate"]["seconds"] is not None]
    rows = []
    for kind in dict.fromkeys(step["kind"] for step in known):
        steps = [step for step in known if step["kind"] == kind]
        estimate = sum(step["estimate"]["seconds"] for step in steps)
        rows.append(
            _row(f"worker time of {len(steps)} {kind} steps", estimate, sum(took[s["id"]].seconds for s in steps), "s")
        )
    estimate, reality = (
        sum(step["estimate"]["seconds"] for step in known),
        sum(took[step["id"]].seconds for step in known),
    )
    rows.append(_row("worker time of all steps that were estimated", estimate, reality, "s", within=0.25))
    unknown = sum(took[step["id"]].seconds for step in ran if step not in known)
    makespan = plan["known_makespan_seconds"]
    rows.append(
        _row(
            "the command from start to end, report and steps of unknown time included",
            makespan,
            outcome["seconds"],
            "s",
            within=0.25,
        )
    )
    rows.append({"work": "of which steps of unknown time", "reality": unknown, "unit": "s"})
    for step in known:
        memory = took[step["id"]].memory_bytes
        if step["estimate"]["memory_bytes"] is not None and memory is not None:
            what = f"peak memory: {step['kind']} {step['label']}"
            rows.append(_row(what, step["estimate"]["memory_bytes"], memory, "byte", within=0.15))
    steps = [
        {
            "step": f"{step['kind']} {step['label']}",
            "estimated_seconds": step["estimate"]["seconds"],
            "seconds": took[step["id"]].seconds,
            "estimated_gang": step["estimate"]["gang"],
            "gang": took[step["id"]].result.get("gang", 1),
        }
        for step in ran
    ]
    return rows, steps


def _row(work: str, estimate: float, reality: float, unit: str, *, within: float | None = None) -> dict[str, Any]:
    ratio = estimate / reality
    row = {"work": work, "estimate": estimate, "reality": reality, "unit": unit, "ratio": round(ratio, 4)}
    return row if within is None else {**row, "aim": within, "is_within_aim": abs(ratio - 1) <= within}


def lorascope(directory: Path, *arguments: str) -> Any:
    """The JSON a command prints."""
    path = os.pathsep.join([str(REPOSITORY / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lorascope", *arguments]
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=False
    )
    (directory / f"{arguments[0]}.json").write_bytes(done.stdout)
    assert done.returncode in (0, 1), f"{' '.join(command)} ended with {done.returncode}"
    return json.loads(done.stdout)


def _clock() -> float:
    import time

    return time.monotonic()


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "src"))
    main()
