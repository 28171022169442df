"""How often the statistics of serving err: coverage of intervals over repeats, and verdicts at the threshold.

    python benchmarks/serving/simulate_coverage.py [--studies 2000] [--output FILE] [--write docs/statistics.md]

Draws comparisons as `lorascope.stats.simulate.serving` describes, for every machine it knows and 3, 5, 8 and 10 repeats, and
runs the analysis's own functions on them. Writes the rates of every cell; `--write` puts the table between the markers of a
document, from the file of results.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from lorascope.stats.simulate.serving import MACHINES, NUM_REPEATS, latency_trial, serving_trial

BEGIN, END = "<!-- serving simulated: begin -->", "<!-- serving simulated: end -->"


def simulate(machine: str, *, num_repeats: int, studies: int) -> list[dict[str, Any]]:
    """The rate of every outcome over `studies` comparisons on one machine."""
    generator = np.random.default_rng([num_repeats, list(MACHINES).index(machine)])
    outcomes: dict[str, list[bool]] = {}
    for _ in range(studies):
        for trial in (serving_trial, latency_trial):
            for name, outcome in trial(MACHINES[machine], num_repeats, generator).items():
                outcomes.setdefault(name, []).append(bool(outcome))
    return [
        {"test": name.split("|")[0], "quantity": name.split("|")[1], "machine": machine, "repeats": num_repeats,
         "rate": float(np.mean(found)), "studies": studies}
        for name, found in outcomes.items()
    ]  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One row a test; each cell the mean over machines, and the lowest and highest of them."""
    heads = " | ".join(f"{count} repeats" for count in NUM_REPEATS)
    lines = [f"| test | | {heads} |", "|---|---|" + "---|" * len(NUM_REPEATS)]
    names = {"error": "type I error", "coverage": "coverage"}
    for test, quantity in dict.fromkeys((row["test"], row["quantity"]) for row in rows):
        cells = []
        for count in NUM_REPEATS:
            rates = [row["rate"] for row in rows if (row["test"], row["repeats"]) == (test, count)]
            cells.append(f"{np.mean(rates):.1%} ({min(rates):.1%} to {max(rates):.1%})")
        lines.append(f"| {test} | {names[quantity]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(document: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces what stands between the markers, and says how sure the rates are."""
    studies = rows[0]["studies"]
    error = 100 * 1.96 * math.sqrt(0.05 * 0.95 / studies)
    note = f"{studies} comparisons a machine and number of repeats: +-{error:.1f} points on a single machine near 5%."
    text = document.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    document.write_text(f"{text[:before]}\n{table(rows)}\n\n{note}\n{text[after:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage and type I error of the statistics of serving.")
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    parser.add_argument("--write", type=Path, default=None)
    given = parser.parse_args()
    rows = [
        row
        for count in NUM_REPEATS
        for machine in MACHINES
        for row in simulate(machine, num_repeats=count, studies=given.studies)
    ]
    about = {
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "command": shlex.join(["python", "benchmarks/serving/simulate_coverage.py", *sys.argv[1:]]),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(table(rows))
    if given.write:
        write_table(given.write, rows)


if __name__ == "__main__":
    main()
