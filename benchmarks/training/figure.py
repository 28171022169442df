"""The figure and the table of docs/performance.md, from the raw results alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {
    "ours": "lorascope",
    "ours-alone": "lorascope, one run",
    "peer-a": "A: Trainer, dynamic padding",
    "peer-a-bf16-base": "A, base in bf16",
    "peer-a-compile": "A, torch_compile",
    "peer-b": "B: Trainer, padded to 384",
}
_COLOURS = {"ours": "#1b6ca8", "ours-alone": "#7fb2d9"}
_PEER_COLOUR = "#b0b0b0"
_TITLES = {
    "gang-smollm2": "SmolLM2-135M, LoRA",
    "sweep-smollm2": "SmolLM2-135M, LoRA, whole sweep",
    "full-smollm2": "SmolLM2-135M, full fine-tuning",
    "gang-tinyllama": "TinyLlama-1.1B shape, LoRA",
    "cpu-minilm": "MiniLM on CPU, LoRA",
}


def draw(directory: Path) -> None:
    """Writes DIRECTORY/training.svg and training.md. Raises SystemExit if there are no results."""
    groups = read_groups(directory)
    if not groups:
        raise SystemExit(f"{directory} holds no results: run compare.py --bench NAME --out {directory} first")
    _draw_figure(groups, directory / "training.svg")
    (directory / "training.md").write_text(table(groups))
    print(f"{directory / 'training.svg'}, {directory / 'training.md'}")


def read_groups(directory: Path) -> list[dict[str, Any]]:
    """One entry a (bench, task, precision): its title, its unit and a row a side, medians over repeats."""
    groups = []
    for path in sorted(directory.glob("*.json"), key=lambda path: [*_TITLES, path.stem].index(path.stem)):
        results = json.loads(path.read_text())
        measured = [row for row in results["measurements"] if "error" not in row]
        for task, precision in dict.fromkeys((row["task"], row["precision"]) for row in measured):
            rows = [row for row in measured if (row["task"], row["precision"]) == (task, precision)]
            is_sweep = rows[0].get("step_ms_mean") is None
            about = precision if is_sweep else f"{task.upper()}, {precision}"
            groups.append(
                {
                    "bench": path.stem,
                    "title": f"{_TITLES.get(path.stem, path.stem)}, {about}",
                    "key": "end_to_end_seconds" if is_sweep else "step_ms_mean",
                    "unit": "s" if is_sweep else "ms a run and step",
                    "rows": [_over_repeats(rows, side) for side in NAMES if any(row["side"] == side for row in rows)],
                }
            )
    return groups


def _over_repeats(rows: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    own = [row for row in rows if row["side"] == side]
    numbers = {
        key: statistics.median(row[key] for row in own)
        for key, value in own[0].items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and all(row.get(key) is not None for row in own)
    }
    return {**own[0], **numbers, "repeats": len(own)}


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
                group["title"], NAMES[row["side"]], f"{row['gang']:g}", f"{row['step_ms_mean']:.2f}",
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
                group["title"], NAMES[row["side"]], f"{row['runs']:g}", f"{row['updates']:,g}",
                f"{row['end_to_end_seconds']:,.0f}", part, f"{row['tokens_per_second']:,.0f}", _times(ratio(group, row)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def _draw_figure(groups: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    heights = [len(group["rows"]) + 1 for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(8, 0.32 * sum(heights) + 0.4 * len(groups)), squeeze=False,
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for axis, group in zip(axes[:, 0], groups, strict=True):
        values = [row[group["key"]] for row in group["rows"]]
        labels = [NAMES[row["side"]] + (f", K = {row['gang']:g}" if row["gang"] > 1 else "") for row in group["rows"]]
        colours = [_COLOURS.get(row["side"], _PEER_COLOUR) for row in group["rows"]]
        axis.barh(labels, values, color=colours, height=0.7)
        for position, (value, row) in enumerate(zip(values, group["rows"], strict=True)):
            times = ratio(group, row)
            scaled = ", scaled from a part" if row.get("scaled") else ""
            note = f" ({times:.1f}x{scaled})" if times is not None else ""
            axis.text(value, position, f" {value:,.3g}{note}", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.35 * max(values))
        axis.set_title(f"{group['title']}: {group['unit']}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
