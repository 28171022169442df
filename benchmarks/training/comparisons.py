"""The comparisons of a raw file of compare.py: a side against lorascope, in the format of every benchmark here.

python benchmarks/training/comparisons.py benchmarks/training/results      # the lists again, from OUT/raw alone
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figure import NAMES, TITLES

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

STEPS = {
    "step_ms_mean": ("a run and step", "ms"),
    "step_ms_whole": ("a run and step, warm-up and capture included", "ms"),
}
SWEEP = {"end_to_end_seconds": ("end to end", "s")}


def write_lists(out: Path, *, only: str | None = None) -> None:
    """OUT/NAME.json for every OUT/raw/NAME.json. only: for the file of this name; the others are still read, for a run
    without lorascope is compared with lorascope's figures of another one."""
    runs = {path.name: json.loads(path.read_text()) for path in sorted((out / "raw").glob("*.json"))}
    for name in runs if only is None else [only]:
        ratios.write_list(out / name, rows_of(name, runs))


def rows_of(name: str, runs: dict[str, dict[str, Any]]) -> list[ratios.Row]:
    """The comparisons of one run of compare.py. runs: every one, by the name of its file."""
    run = runs[name]
    cells = dict.fromkeys((row["task"], row["precision"]) for row in run["measurements"])
    rows = [row for cell in cells for row in _rows_of_cell(name, cell, runs)]
    return ratios.described(
        rows,
        machine=ratios.machine_of(run["machine"]),
        versions=ratios.versions_of(run["machine"]),
        command=ratios.without_paths(run["command"]),
        raw=f"raw/{name}",
    )


def _rows_of_cell(name: str, cell: tuple[str, str], runs: dict[str, dict[str, Any]]) -> Iterator[ratios.Row]:
    run, ours, apart = runs[name], _of(runs[name], cell, "ours"), None
    if not ours and (apart := _with_ours(name, cell, runs)) is not None:
        ours = _of(runs[apart], cell, "ours")
    peers = [side for side in NAMES if side != "ours" and _of(run, cell, side)]
    quantities = STEPS if run["sizes"]["steps"] else SWEEP
    for key in list(quantities)[: 1 if apart else None]:  # a start weighs differently in a run of another length
        what, unit = quantities[key]
        work = f"{_title(run, cell, ours)}: {what}"
        for side in peers:
            peer = _of(run, cell, side)
            row = ratios.compared(work, _values(ours, key), _values(peer, key), peer_name=NAMES[side], unit=unit)
            notes = [*_failures(ours, "lorascope"), *_failures(peer, "the peer"), *_scaled(peer)]
            notes += [f"lorascope's figure is of another run: raw/{apart}"] if apart else []
            yield row | ({"note": "; ".join(notes)} if notes else {})
        if not peers:
            value = next(iter(_values(ours, key)), None)
            note = "; ".join(_failures(ours, "lorascope"))
            yield ratios.measured_alone(work, value, unit=unit) | ({"note": note} if note else {})


def _title(run: dict[str, Any], cell: tuple[str, str], ours: Sequence[dict[str, Any]]) -> str:
    task, precision = cell
    title = TITLES.get(run["bench"], run["bench"])
    if not run["sizes"]["steps"]:
        return f"{title}, {precision}"
    return f"{title}, {task.upper()}, {precision}, K = {ours[0]['gang'] if ours else run['sizes']['gang']}"


def _of(run: dict[str, Any], cell: tuple[str, str], side: str) -> list[dict[str, Any]]:
    """The side's rows of a (task, precision), a row a repeat."""
    return [row for row in run["measurements"] if ((row["task"], row["precision"]), row["side"]) == (cell, side)]


def _with_ours(name: str, cell: tuple[str, str], runs: dict[str, dict[str, Any]]) -> str | None:
    """The newest other run of the bench that holds lorascope's figure of this cell."""
    bench = runs[name]["bench"]
    found = [
        (run["date"], other)
        for other, run in runs.items()
        if other != name and run["bench"] == bench and any("error" not in row for row in _of(run, cell, "ours"))
    ]
    return max(found)[1] if found else None


def _values(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if "error" not in row]


def _failures(rows: Sequence[dict[str, Any]], who: str) -> list[str]:
    return [f"{who} failed: {row['error'].splitlines()[0]}" for row in rows if "error" in row]


def _scaled(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"the peer's time is scaled from {row['measured_updates']:,} of {row['updates']:,} updates"
        for row in rows[:1]
        if row.get("scaled")
    ]


if __name__ == "__main__":
    write_lists(Path(sys.argv[1]))
