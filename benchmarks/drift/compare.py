"""lorascope's drift measures against public CKA packages and against the plain way, both sides in one run.

    python benchmarks/drift/compare.py --bench similarity [--sizes 17x512x2048 31x750x576] [--threads 2] [--repeats 5]
    python benchmarks/drift/compare.py --bench bootstrap [--device cuda]

README.md next to this says what is compared and how to read it. Results: results/<bench>-<machine>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bootstrap
import ratios
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
    parser.add_argument("--bench", choices=[*BENCHES], required=True)
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
    torch.set_num_threads(given.threads)

    started = time.perf_counter()
    rows = ratios.described(
        BENCHES[given.bench](given),
        machine=machine(given.device, given.threads),
        versions={"python": platform.python_version(), "torch": torch.__version__, **similarity.peer_versions()},
        command=ratios.command_line("benchmarks/drift/compare.py"),
    )
    kind = "cuda" if given.device.startswith("cuda") else f"{given.threads}threads"
    name = f"{given.bench}-{platform.machine()}-{kind}-{datetime.date.today().isoformat()}.json"
    output = given.output or Path(__file__).parent / "results" / name
    ratios.write_list(output, rows)
    for row in rows:
        print(
            f"{row['work']}: {row['ours']:.3g} v. {row['peer']:.3g} {row['unit']} ({row['peer_name']}), "
            f"{ratios.spelled_ratio(row)}"
        )
    print(f"{time.perf_counter() - started:.0f} s; {statistics.mean(row['repeats'] for row in rows):.0f} repeats")


if __name__ == "__main__":
    main()
