"""The figure and the table of docs/performance.md, from the raw results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "ours": "lorascope",
    "ours-alone": "lorascope, one run",
    "peer-a": "A: Trainer, dynamic padding",
    "peer-a-bf16-base": "A, base in bf16",
    "peer-a-compile": "A, torch_compile",
    "peer-b": "B: Trainer, padded to 384",
}
_APART = "Measured in another run of the benchmark than lorascope's figure"
_MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")
_COLOURS = {"ours": "#1b6ca8", "ours-alone": "#7fb2d9"}
_PEER_COLOUR = "#b0b0b0"
TITLES = {
    "gang-smollm2": "SmolLM2-135M, LoRA",
    "sweep-smollm2": "SmolLM2-135M, LoRA, whole sweep",
    "full-smollm2": "SmolLM2-135M, full fine-tuning",
    "gang-tinyllama": "TinyLlama-1.1B shape, LoRA",
    "cpu-minilm": "MiniLM on CPU, LoRA",
}


def publish(directory: Path, document: Path) -> None:
    """Writes the table between DOCUMENT's marks, and figures/training.svg next to it, from DIRECTORY/raw/*.json.

    Raises SystemExit if there are no results, or no marks.
    """
    groups = read_groups(directory)
    if not groups:
        raise SystemExit(f"{directory} holds no results: run compare.py --bench NAME --out {directory} first")
    text = document.read_text()
    if not all(text.count(mark) == 1 for mark in _MARKS):
        raise SystemExit(f"{document} needs one line {_MARKS[0]} and one line {_MARKS[1]} for the table")
    before, rest = text.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    document.write_text(f"{before}{_MARKS[0]}\n{table(groups)}{_MARKS[1]}{after}")
    figure = document.parent / "figures" / "training.svg"
    _draw_figure([group for group in groups if _is_comparison(group)], figure)
    print(f"{document}, {figure}")


def read_groups(directory: Path) -> list[dict[str, Any]]:
    """One entry a (bench, task, precision): its title, its unit and a row a side, medians over repeats.

    A file is one run of compare.py. Several files of one bench are put together: the one that holds most sides of a
    comparison gives them all, the others what it lacks, and `is_apart` marks a row from another run than lorascope's.
    """
    files = [json.loads(path.read_text()) for path in sorted((directory / "raw").glob("*.json"))]
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for file in sorted(files, key=lambda file: ([*TITLES, file["bench"]].index(file["bench"]), file["date"])):
        measured = [row for row in file["measurements"] if "error" not in row]
        for task, precision in dict.fromkeys((row["task"], row["precision"]) for row in measured):
            rows = [row for row in measured if (row["task"], row["precision"]) == (task, precision)]
            cells.setdefault((file["bench"], task, precision), []).append({"rows": rows, **file})
    return [_group(*cell, runs) for cell, runs in cells.items()]


def _group(bench: str, task: str, precision: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    source: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: -len({row["side"] for row in run["rows"]})):
        for row in run["rows"]:
            source.setdefault(row["side"], run)
    is_sweep = runs[0]["rows"][0].get("step_ms_mean") is None
    rows = [
        {**_over_repeats(source[side]["rows"], side), "is_apart": source[side] is not source.get("ours", source[side])}
        for side in NAMES
        if side in source
    ]
    return {
        "bench": bench,
        "title": f"{TITLES.get(bench, bench)}, {precision if is_sweep else f'{task.upper()}, {precision}'}",
        "about": _about(next(iter(source.values()))),
        "key": "end_to_end_seconds" if is_sweep else "step_ms_mean",
        "unit": "seconds, end to end" if is_sweep else "ms a run and step",
        "rows": rows,
    }


def _about(run: dict[str, Any]) -> str:
    machine = run["machine"]
    name = machine["device_name"] if machine["device"] != "cpu" else f"CPU, {machine['threads']} threads"
    return f"batch {run['sizes']['batch_size']}, {name}, torch {machine['versions']['torch']}, {run['date']}"


def _is_comparison(group: dict[str, Any]) -> bool:
    """Whether there is something to draw: lorascope and somebody else."""
    return len(group["rows"]) > 1 and group["rows"][0]["side"] == "ours"


def _over_repeats(rows: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    own = [row for row in rows if row["side"] == side]
    numbers = {
        key: statistics.median(row[key] for row in own)
        for key, value in own[0].items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and all(row.get(key) is not None for row in own)
    }
    return {**own[0], **numbers, "repeats": len(own), "single_steps": [ms for row in own for ms in _timed_steps(row)]}


def _timed_steps(row: dict[str, Any]) -> list[float]:
    """Each update after the warm-up, ms a run."""
    return [ms / row["runs"] for ms in row.get("step_ms", [])[row.get("warm_up_updates", 0) :]]


def ratio(group: dict[str, Any], row: dict[str, Any]) -> float | None:
    """How many times longer this side takes than lorascope; None for lorascope itself, or without it."""
    ours = next((other for other in group["rows"] if other["side"] == "ours"), None)
    return row[group["key"]] / ours[group["key"]] if ours is not None and row is not ours else None


def table(groups: Sequence[dict[str, Any]]) -> str:
    """Markdown, a table a kind of comparison: step times, then sweeps."""
    steps = [group for group in groups if group["key"] == "step_ms_mean"]
    sweeps = [group for group in groups if group["key"] != "step_ms_mean"]
    lines = []
    if steps:
        lines += [
            "| what | side | K | ms a run and step | with warm-up and capture | real tokens/s | MFU | padding | peak "
            "memory, GiB | start-up, s | slower than lorascope |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
    for group in steps:
        for row in group["rows"]:
            cells = [
                group["title"], _side(row), f"{row['gang']:g}", f"{row['step_ms_mean']:.2f}",
                f"{row['step_ms_whole']:.2f}", f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.2%}",
                f"{1 - row['real_tokens'] / row['padded_tokens']:.0%}", f"{row['peak_memory_bytes'] / 2**30:.2f}",
                f"{row['startup_seconds']:.1f}", _times(ratio(group, row)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if sweeps:
        lines += [
            *([""] if lines else []),
            "| what | side | runs | updates | end to end, s | measured | real tokens/s | slower than lorascope |",
            "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
        ]
    for group in sweeps:
        for row in group["rows"]:
            part = f"{row['measured_updates']:g} updates, scaled" if row.get("scaled") else "whole"
            cells = [
                group["title"], _side(row), f"{row['runs']:g}", f"{row['updates']:,g}",
                f"{row['end_to_end_seconds']:,.0f}", part, f"{row['tokens_per_second']:,.0f}", _times(ratio(group, row)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    if any(row["is_apart"] for group in groups for row in group["rows"]):
        lines += ["", f"\\* {_APART}."]
    return "\n".join(lines) + "\n"


def _side(row: dict[str, Any]) -> str:
    return NAMES[row["side"]] + (" \\*" if row["is_apart"] else "")


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def _draw_figure(groups: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "lorascope", "hatch.linewidth": 0.6})
    heights = [len(group["rows"]) + 1.4 for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8.5, 0.3 * sum(heights) + 1.3), squeeze=False,
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    figure.suptitle(
        "What a training step of one run takes: lorascope's gangs of K runs v transformers.Trainer", fontsize=11
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _draw_group(axis, group)
    notes = ["Bars: mean of the n timed updates of one run, after warm-up, capture and compilation; padding, data and"]
    notes += [
        "optimiser included. Lines: 5th to 95th percentile of single updates. In brackets: times slower than lorascope."
    ]
    if any(row["is_apart"] for group in groups for row in group["rows"]):
        notes.append(f"Hatched: {_APART[0].lower()}{_APART[1:]}.")
    figure.supxlabel("\n".join(notes), fontsize=8, x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_group(axis: Any, group: dict[str, Any]) -> None:
    values = [row[group["key"]] for row in group["rows"]]
    for position, (value, row) in enumerate(zip(values, group["rows"], strict=True)):
        colour = _COLOURS.get(row["side"], _PEER_COLOUR)
        hatch = "////" if row["is_apart"] else None
        axis.barh(position, value, color=colour, edgecolor="white", linewidth=0, hatch=hatch, height=0.7)
        reached = value
        if steps := row["single_steps"]:
            low, high = np.percentile(steps, [5, 95])
            axis.plot([low, high], [position, position], color="#404040", linewidth=1)
            reached = max(value, high)
        axis.text(reached, position, f"  {_label(group, row)}", va="center", fontsize=8)
    names = [NAMES[row["side"]] + (f", K = {row['gang']:g}" if row["gang"] > 1 else "") for row in group["rows"]]
    axis.set_yticks(range(len(values)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.6 * max(values))
    axis.set_title(f"{group['title']}: {group['unit']} ({group['about']})", fontsize=8.5, loc="left")
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _label(group: dict[str, Any], row: dict[str, Any]) -> str:
    times, count = ratio(group, row), len(row["single_steps"])
    value = row[group["key"]]
    parts = [(f"{value:.3g}" if value < 1000 else f"{value:,.0f}") + (f" ({times:.1f}x)" if times is not None else "")]
    parts += [f"n = {count}"] if count else []
    parts += ["scaled from a part"] if row.get("scaled") else []
    return ", ".join(parts)
