"""What the engine processes of a comparison found, read with lorascope's own statistics, whether or not it came to its end.

    python benchmarks/serving/read_processes.py benchmarks/serving/results/smollm2-h100

Every process of a serving step writes down what it found when it ends. A step that ran to its end commits it all as one
table; this reads the files of one that did not, and prints the overheads over merging and the gain of the tuned setting.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lorascope.serving.record import TRIAL, figures_table
from lorascope.stats.serving.analyse import analyse_serving
from lorascope.stats.serving.analysis import ServingAnalysis

METRICS = {"latency_ms_p95": "p95 latency", "tokens_per_second": "time a token"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    processes = [process for process in found if process.get("setting") != TRIAL and "figures" in process]
    analysis = analyse_serving(
        figures_table(processes).assign(model=directory.name),
        gates=[{**gate, "model": directory.name, "arm": p["arm"], "workload": p["workload"], "setting": p["setting"]}
               for p in processes for gate in p["gates"]],
    )  # fmt: skip
    num_gates = sum(len(p["gates"]) for p in processes)
    passed = sum(gate["passed"] for p in processes for gate in p["gates"])
    print(f"{len(processes)} processes, {passed} of {num_gates} gates held\n")
    print_overheads(analysis)
    print_tuning(analysis)
    print_trials([trial for trial in found if "batch_ms" in trial])


def print_overheads(analysis: ServingAnalysis) -> None:
    print(
        "| over merged | setting | metric | batch | overhead | 95% interval | repeats |\n|---|---|---|---:|---:|---|---:|"
    )
    for row in analysis.overheads:
        if row.reference != "merged" or row.metric not in METRICS:
            continue
        shown = (
            "-"
            if row.interval is None
            else f"{100 * (row.interval.low - 1):+.0f}% to {100 * (row.interval.high - 1):+.0f}%"
        )
        print(
            f"| {row.arm} | {row.setting} | {METRICS[row.metric]} | {row.level:g} | {100 * (row.estimate - 1):+.0f}% | "
            f"{shown} | {row.num_repeats} |"
        )


def print_tuning(analysis: ServingAnalysis) -> None:
    print("\n| arm | metric | batch | default / tuned | 95% interval | repeats |\n|---|---|---:|---:|---|---:|")
    for row in analysis.tuning:
        if row.metric in METRICS:
            shown = "-" if row.interval is None else f"{row.interval.low:.2f} to {row.interval.high:.2f}"
            print(
                f"| {row.arm} | {METRICS[row.metric]} | {row.level:g} | {row.estimate:.2f} | {shown} | {row.num_repeats} |"
            )


def print_trials(trials: list[dict]) -> None:
    """The search: one process a setting, so no intervals; what won was measured again beside the default, above."""
    if trials:
        print("\n| setting tried | ms a batch, geometric mean over sizes | remark |\n|---|---:|---|")
    for trial in sorted(trials, key=lambda trial: trial["order"]):
        cost = "-" if trial["cost_ms"] is None else f"{trial['cost_ms']:.0f}"
        print(f"| {' + '.join(trial['levers']) or 'default'} | {cost} | {trial['reason']} |")


if __name__ == "__main__":
    main()
