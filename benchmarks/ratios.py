"""The format of benchmark results, and every ratio that the results hold.

    python benchmarks/ratios.py [AREA ...]      # print the tables
    python benchmarks/ratios.py --write         # write each area's table into its README.md, between the markers

A benchmark writes a list of comparisons to `benchmarks/AREA/results/NAME-MACHINE-DATE.json`. A comparison is a dict with
`FIELDS`; README.md next to this says what they mean. The one idea: everything that compares writes this one format, so
one script reads all of it, and a document quotes what the script prints. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

FIELDS = (
    "work", "ours", "peer", "peer_name", "unit", "ratio", "ratio_low", "ratio_high", "repeats", "machine", "versions",
    "command",
)  # fmt: skip
EXTREMES = "extremes over all pairs of repeats"
ROOT = Path(__file__).parent
SIMULATED = "coverage.json"
"""Rates of error of the statistics: no comparison, so not in this format."""
BEGIN, END = "<!-- ratios: begin -->", "<!-- ratios: end -->"

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- writing


def compared(
    work: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    peer_name: str,
    unit: str = "s",
    higher_is_better: bool = False,
) -> Row:
    """Medians, their ratio (above 1: ours is better), and the extremes of the ratio over all pairs of repeats.

    A side without samples failed or was not measured: it is null, and so is the ratio. One repeat has no extremes. The
    fields about the machine are left to `described`.
    """
    repeats = min(len(ours), len(peer))
    row: Row = {
        "work": work,
        "ours": statistics.median(ours) if ours else None,
        "peer": statistics.median(peer) if peer else None,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": None,
        "ratio_low": None,
        "ratio_high": None,
        "repeats": repeats,
        "interval": None,
        "samples": {"ours": list(ours), "peer": list(peer)},
    }
    above, below = (ours, peer) if higher_is_better else (peer, ours)
    if repeats and min(below) > 0:
        row["ratio"] = statistics.median(above) / statistics.median(below)
        if repeats > 1:
            row |= {"ratio_low": min(above) / max(below), "ratio_high": max(above) / min(below), "interval": EXTREMES}
    return row


def measured_alone(work: str, value: float | None, *, unit: str) -> Row:
    """A figure without a peer's next to it. None: lorascope failed."""
    return {
        "work": work, "ours": value, "peer": None, "peer_name": None, "unit": unit, "ratio": None, "ratio_low": None,
        "ratio_high": None, "repeats": int(value is not None), "interval": None,
    }  # fmt: skip


def described(
    rows: Iterable[Row], *, machine: str | None, versions: Mapping[str, str] | None, command: str | None, **more: Any
) -> list[Row]:
    """The rows with what is the same for all of them: FIELDS first and in their order."""
    shared = {"machine": machine, "versions": versions and dict(versions), "command": command, **more}
    filled = [{**row, **shared} for row in rows]
    return [{field: row[field] for field in FIELDS} | row for row in filled]


def machine_of(about: Mapping[str, Any]) -> str:
    """What `lorascope.engine.provenance.describe` says of a machine, in one line."""
    system, *_, processor = about["system"].split()
    threads = f"; threads: {about['threads']}" if about["device"] == "cpu" and "threads" in about else ""
    return f"{processor}, {about['num_cpus']} CPUs, {system}; {about['device_name']}{threads}"


def versions_of(about: Mapping[str, Any]) -> dict[str, str]:
    return {"python": about["python"], **about["versions"]}


def short_machine(about: Mapping[str, Any]) -> str:
    """The machine as the name of a file has it: `h100`, `x86_64-2cpu`."""
    if about["device"] == "cpu":
        return f"{about['system'].split()[-1]}-{about['num_cpus']}cpu"
    words = re.findall(r"[a-z0-9.]+", about["device_name"].lower())
    return next((word for word in words if word != "nvidia"), "gpu")


def command_line(script: str) -> str:
    """What was typed, without the paths of this machine."""
    return without_paths(shlex.join(["python", script, *sys.argv[1:]]))


def without_paths(command: str) -> str:
    """An absolute path becomes the option it was given to, in capital letters: `--data DATA`."""
    words, option = [], "PATH"
    for word in shlex.split(command):
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if name:
            option = name.removeprefix("--").replace("-", "_").upper()
        words.append(f"{name}{sign}{option if os.path.isabs(value) else value}")
    return shlex.join(words)


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """Raises ValueError for rows that are not in the format, before anything is written."""
    if wrong := problems(rows):
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n")


def write_raw(path: Path, content: Any) -> None:
    """What was measured, as it was measured: `raw/NAME.json` next to the list `NAME.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------- reading


def lists(area: Path) -> dict[Path, list[Row]]:
    """Every list of comparisons of an area, by its file."""
    paths = sorted(path for path in (area / "results").glob("*.json") if path.name != SIMULATED)
    return {path: json.loads(path.read_text()) for path in paths}


def areas() -> list[Path]:
    return sorted(path.parent for path in ROOT.glob("*/results") if any(path.glob("*.json")))


def problems(rows: Any, directory: Path | None = None) -> list[str]:
    """What is wrong with a list. directory: where it lies, to look for the raw samples it names."""
    if not isinstance(rows, list) or not rows:
        return ["not a list of comparisons"]
    return [f"row {number}: {wrong}" for number, row in enumerate(rows) for wrong in _problems_of(row, directory)]


def _problems_of(row: Row, directory: Path | None) -> list[str]:
    if missing := [field for field in FIELDS if field not in row]:
        return [f"lacks {', '.join(missing)}"]
    found = [
        f"{field} is {row[field]!r}"
        for field in ("work", "unit")
        if not isinstance(row[field], str) or not row[field].strip()
    ]
    found += [
        f"{field} is {row[field]!r}"
        for field in ("peer_name", "machine", "command")
        if row[field] is not None and not isinstance(row[field], str)
    ]
    numbers = ("ours", "peer", "ratio", "ratio_low", "ratio_high")
    found += [
        f"{field} is {row[field]!r}"
        for field in numbers
        if row[field] is not None and (isinstance(row[field], bool) or not isinstance(row[field], (int, float)))
    ]
    if found:
        return found
    if row["versions"] is not None and not isinstance(row["versions"], dict):
        found.append("versions are no mapping")
    if not isinstance(row["repeats"], int):
        found.append(f"repeats is {row['repeats']!r}")
    if row["ratio"] is not None and None in (row["ours"], row["peer"], row["peer_name"]):
        found.append("a ratio without both sides")
    low, ratio, high = row["ratio_low"], row["ratio"], row["ratio_high"]
    if (low is None) != (high is None) or (low is not None and not low <= ratio <= high):
        found.append(f"the ratio {ratio} and its interval {low} to {high}")
    if (low is None) != (row.get("interval") is None):
        found.append("an interval is named where there is one, and only there")
    if low is not None and row["repeats"] < 2:
        found.append("an interval from one repeat")
    if "samples" not in row and "raw" not in row:
        found.append("neither samples nor the name of the file with them")
    if directory is not None and "raw" in row and not (directory / row["raw"]).exists():
        found.append(f"{row['raw']} does not exist")
    return found


# -------------------------------------------------------------------------------------------------------------- tables


def table(results: Path) -> str:
    """Every comparison in a folder of results, a table a file."""
    return "\n\n".join(_table_of(path.name, rows) for path, rows in lists(results.parent).items())


def _table_of(name: str, rows: Sequence[Row]) -> str:
    peers = list(dict.fromkeys(row["peer_name"] for row in rows))
    notes = list(dict.fromkeys(row["note"] for row in rows if row.get("note")))
    lines = [_filled(_caption(name, rows, peers)), "", "| | ours | peer | ratio |", "|---|---:|---:|---:|"]
    for work in dict.fromkeys(row["work"] for row in rows):
        if len(peers) > 1:
            lines.append(f"| **{_cell(work)}** | | | |")
        for row in (row for row in rows if row["work"] == work):
            name_of_peer = f"v {row['peer_name']}" if row["peer_name"] else "alone"
            mark = f" [{notes.index(row['note']) + 1}]" if row.get("note") else ""
            sides = " | ".join(spelled(row[side], row["unit"]) for side in ("ours", "peer"))
            first = name_of_peer if len(peers) > 1 else work
            lines.append(f"| {_cell(first)} | {sides} | {spelled_ratio(row)}{mark} |")
    if notes:
        lines += ["", *(_filled(f"[{number}] {note}") + "\\" for number, note in enumerate(notes, start=1))]
        lines[-1] = lines[-1].removesuffix("\\")
    return "\n".join(lines)


def _caption(name: str, rows: Sequence[Row], peers: Sequence[str | None]) -> str:
    machines = dict.fromkeys(row["machine"] or "machine not recorded" for row in rows)
    repeats = sorted({row["repeats"] for row in rows if row["ratio"] is not None})
    sentences = [f"[{name.removesuffix('.json')}](results/{name}): {' and '.join(machines)}"]
    if len(peers) == 1 and peers[0] is not None:
        sentences.append(f"Peer: {peers[0]}")
    if repeats:
        sentences.append(f"{' or '.join(map(str, repeats))} repeat{'s' * (repeats != [1])}")
    sentences += [f"In brackets: {kind}" for kind in dict.fromkeys(row.get("interval") for row in rows) if kind]
    if any("aim" in row for row in rows):
        sentences.append("The ratio is ours divided by the peer's, and the aim is 1")
    return f"{'. '.join(sentences)}."


def _filled(text: str) -> str:
    return textwrap.fill(text, width=140, break_long_words=False, break_on_hyphens=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def spelled(value: float | None, unit: str) -> str:
    """A number with its unit, to three digits."""
    if value is None:
        return "–"
    if unit in ("byte", "bytes"):
        if value < 1 << 20:
            return f"{value:.0f} byte"
        return f"{value / 2**30:.2f} GiB" if value >= 1 << 30 else f"{value / 2**20:.0f} MiB"
    if unit == "fraction":
        return f"{value:.3f}"
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def spelled_ratio(row: Row) -> str:
    if row["ratio"] is None:
        return "–"
    ratio, low, high = (None if row[key] is None else _short(row[key]) for key in ("ratio", "ratio_low", "ratio_high"))
    return f"{ratio}" if low is None else f"{ratio} ({low} to {high})"


def _short(ratio: float) -> str:
    if ratio >= 10:
        return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.1f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def write_table(area: Path) -> None:
    """Replaces what stands between the markers of the area's README.md."""
    document = area / "README.md"
    text = document.read_text()
    if not all(text.count(mark) == 1 for mark in (BEGIN, END)):
        raise SystemExit(f"{document} needs one line {BEGIN} and one line {END}")
    before, rest = text.split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{table(area / 'results')}\n{END}{rest.split(END)[1]}")
    print(document)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every ratio of every list of benchmark results.")
    known = {area.name: area for area in areas()}
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--write", action="store_true", help="write the tables into each area's README.md")
    given = parser.parse_args()
    if unknown := [name for name in given.areas if name not in known]:
        parser.error(f"no results of {', '.join(unknown)}; there are {', '.join(known)}")
    for area in [known[name] for name in given.areas] or list(known.values()):
        if given.write:
            write_table(area)
        else:
            print(f"## {area.name}\n\n{table(area / 'results')}\n")


if __name__ == "__main__":
    main()
