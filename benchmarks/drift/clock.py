"""Timing sides in turn, and the row of results that compares two of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # ratios.py, for every script of this area

from ratios import compared, table

__all__ = ["compared", "seconds_in_turn", "table"]


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
