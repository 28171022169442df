"""Which cells of a serving table a question is about: the standard load, and the numbers of adapters measured under it."""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.stats.serving.analysis import ServingCell

ADAPTERS = "adapters-"


def num_adapters(arm: str) -> int | None:
    """How many adapters an arm serves side by side; None for base, full and merged."""
    return int(arm.removeprefix(ADAPTERS)) if arm.startswith(ADAPTERS) else None


def standard_cells(cells: Sequence[ServingCell], *, loop: str = "batch") -> list[ServingCell]:
    """Greedy, default setting, and one choice an arm and load: round robin where it was measured, else its first."""
    found: dict[tuple, ServingCell] = {}
    for cell in cells:
        if cell.loop != loop or cell.sampling != "greedy" or cell.setting != "default":
            continue
        key = (cell.model, cell.arm, cell.workload, cell.level, cell.metric)
        if key not in found or (cell.choice == "round-robin" and found[key].choice != "round-robin"):
            found[key] = cell
    return list(found.values())


def places(cells: Sequence[ServingCell]) -> list[tuple[str, str]]:
    """Every (model, workload), in order."""
    return list(dict.fromkeys((cell.model, cell.workload) for cell in cells))


def pick(
    cells: Sequence[ServingCell], model: str, workload: str, *, metric: str, arm: str | None = None
) -> list[ServingCell]:
    """Cells of one (model, workload) and metric, of one arm if given."""
    return [
        cell
        for cell in cells
        if (cell.model, cell.workload, cell.metric) == (model, workload, metric) and arm in (None, cell.arm)
    ]
