"""lorascope's drift measures against public CKA packages and against the plain way, both sides in one run.

    python benchmarks/drift/compare.py --bench similarity [--sizes 17x512x2048 31x750x576] [--threads 2] [--repeats 5]
    python benchmarks/drift/compare.py --bench bootstrap [--device cuda]
    python benchmarks/drift/compare.py --table

README.md beside this says what is compared and how to read it. Results: results/<bench>-<machine>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bootstrap
import clock
import similarity
import torch

BENCHES: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "similarity": similarity.rows,
    "bootstrap": bootstrap.rows,
}


def machine(device: str, threads: int) -> str:
    chip = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"threads: {threads}"
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; {chip}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Drift measures against their peers.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bench", choices=[*BENCHES])
    what.add_argument("--table", action="store_true", help="print README.md's table of the results at hand")
    parser.add_argument(
        "--sizes", nargs="+", default=["17x512x2048", "31x750x576"], help="layers x examples x features"
    )
    parser.add_argument("--models", type=int, default=1, help="bootstrap: models compared with the base")
    parser.add_argument("--layers", type=int, default=4, help="bootstrap: layers a model")
    parser.add_argument("--examples", type=int, default=750, help="bootstrap: examples")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap: resamples")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="bootstrap: where")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    if given.table:
        print(clock.table(Path(__file__).parent / "results"))
        return
    torch.set_num_threads(given.threads)

    about = {
        "machine": machine(given.device, given.threads),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **similarity.peer_versions()},
        "command": shlex.join(["python", "benchmarks/drift/compare.py", *sys.argv[1:]]),
    }
    started = time.perf_counter()
    rows = [{**row, **about} for row in BENCHES[given.bench](given)]
    kind = "cuda" if given.device.startswith("cuda") else f"{given.threads}threads"
    name = f"{given.bench}-{platform.machine()}-{kind}-{datetime.date.today().isoformat()}.json"
    output = given.output or Path(__file__).parent / "results" / name
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['work']}: {row['ours']:.3g} v. {row['peer']:.3g} {row['unit']} ({row['peer_name']}), "
            f"{row['ratio']:.1f}x [{row['ratio_low']:.1f}, {row['ratio_high']:.1f}]"
        )
    print(f"{time.perf_counter() - started:.0f} s; {statistics.mean(row['repeats'] for row in rows):.0f} repeats")


if __name__ == "__main__":
    main()
