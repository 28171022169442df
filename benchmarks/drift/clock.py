"""Timing sides in turn, and the row of results that compares two of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def seconds_in_turn(
    sides: Mapping[str, Callable[[], Any]], *, repeats: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each side in each repeat, after one run of each that does not count (warm_up). In turn, so that what else the
    machine does falls on all sides alike."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + warm_up):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compared(work: str, ours: list[float], peer: list[float], *, peer_name: str, unit: str = "s") -> dict[str, Any]:
    """Medians, their ratio (above 1: ours is faster), and the extremes of the ratio over all pairs of repeats."""
    return {
        "work": work,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_name": peer_name,
        "unit": unit,
        "ratio": statistics.median(peer) / statistics.median(ours),
        "ratio_low": min(peer) / max(ours),
        "ratio_high": max(peer) / min(ours),
        "repeats": len(ours),
        "samples": {"ours": ours, "peer": peer},
    }


def table(directory: Path) -> str:
    """The comparisons in a folder of results, as README.md shows them."""
    lines = ["| work | machine | ours | peer | | ratio (extremes) |", "|---|---|---|---|---|---|"]
    for path in sorted(directory.glob("*.json")):
        for row in json.loads(path.read_text()):
            if "ratio" in row:
                unit = row["unit"]
                ratio = "–"
                if row["ratio"] is not None:
                    ratio = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f})"
                cells = (
                    row["work"],
                    _machine(row["machine"]),
                    f"{row['ours']:.3g} {unit}",
                    f"{row['peer']:.3g} {unit}",
                )
                lines.append(f"| {' | '.join(cells)} | {row['peer_name']} | {ratio} |")
    return "\n".join(lines)


def _machine(machine: str | dict[str, Any]) -> str:
    if isinstance(machine, str):
        return machine
    return f"{machine['device_name']}, {machine['num_cpus']} CPUs, torch {machine['versions']['torch']}"
