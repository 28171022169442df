"""What a study says of drift by every definition of it: the same runs, the same examples, only the definition differs.

    python benchmarks/drift/definitions.py --study studies/classification.yaml --data DATA --device cuda:0 --device cuda:0 \\
        --store STORE --out OUT [--set data.train_examples=5000] [--before benchmarks/results/classification-h100]
    python benchmarks/drift/definitions.py --analysis OUT/results/classification --out OUT

The first line runs the study (one pass over the probe gives every pooling) and may be stopped at any time and called again:
what is in STORE is not computed again. The second only reads finished results. Both print the tables and write
OUT/definitions.json: drift of every arm, ratio to the reference method with interval, and each hypothesis on drift, by every
pooling, with unhealthy layers left out and with every layer. `mean`, every layer, is the definition of lorascope until 0.1.
--before: a folder with measurements of the same study by an older version; its drift stands next to that of the definition
it had, so that what differs between the two training runs can be told from what the definition changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

OLD_POOLING = "mean"
Rows = list[dict[str, Any]]


def run_study(given: argparse.Namespace) -> Path:
    """Runs the study as a user would; returns its folder of results."""
    import lorascope
    from lorascope.api import Workers

    study = lorascope.load(given.study, overrides=given.set)
    workers = Workers("local" if given.device else "inline", given.device or ["cpu"])
    outcome = lorascope.run(
        study, store=given.store, results=given.out / "results", data_dir=given.data, executor=workers
    )
    for step, failure in outcome.failed.items():
        print(f"failed: {step}: {failure.error}", flush=True)
    return given.out / "results" / study.name


def by_definition(directory: Path) -> Rows:
    """One row an arm and definition, from analysis.json; of a study with one pooling and no unhealthy layer, none."""
    analysis = json.loads((directory / "analysis.json").read_text(encoding="utf-8"))
    return list(analysis["drift"]["robustness"])


def hypotheses(directory: Path) -> Rows:
    """Each hypothesis on drift: its verdict by the primary definition, then by each other one."""
    analysis = json.loads((directory / "analysis.json").read_text(encoding="utf-8"))
    found: Rows = []
    for result in analysis["hypotheses"]:
        if result["metric"] != "drift":
            continue
        parts = {f"{part['model']} on {part['task']}": part["verdict"] for part in result["parts"]}
        own = {"name": result["name"], "by": "primary", "verdict": result["verdict"], "average": result["average"]}
        found.append({**own, "parts": parts, "differs": ""})
        for other in result["elsewhere"]:
            by = other["pooling"] + (", every layer" if other["every_layer"] else "")
            row = {"name": result["name"], "by": by, "verdict": other["verdict"], "average": other["average"]}
            found.append({**row, "parts": {}, "differs": other["differs"]})
    return found


def drift_of_runs(measurements: Path, pooling: str) -> pd.Series:
    """(task, method, seed) -> the mean over every layer 1..L of the residual stream. Tables of older versions have one
    pooling and no column for it."""
    table = pd.read_parquet(measurements)
    rows: Any = table[(table["metric"] == "drift") & (table["split"] == "probe") & (table["site"] == "residual")]
    rows = rows[(rows["layer"].fillna(0) > 0) & ~rows["method"].str.contains(":")]
    if "pooling" in table:
        rows = rows[rows["pooling"] == pooling]
    return rows.groupby(["task", "method", "seed"])["value"].mean()


def against_before(directory: Path, before: Path) -> Rows:
    """The old definition in the old measurements and in these, arm by arm: what training once more changed."""
    now = drift_of_runs(directory / "measurements.parquet", OLD_POOLING)
    then = drift_of_runs(before / "measurements.parquet", OLD_POOLING)
    both: Any = pd.DataFrame({"before": then, "now": now}).dropna().reset_index()
    means: Any = both.groupby(["task", "method"])[["before", "now"]].mean().reset_index()
    counts: Any = both.groupby(["task", "method"]).size()
    return [
        {"task": task, "method": method, "before": old, "now": new, "runs": int(counts[task, method])}
        for task, method, old, new in means.itertuples(index=False)
    ]


def health(directory: Path) -> Rows:
    """What the base's layers are like, as the report's table reads it."""
    table = pd.read_parquet(directory / "measurements.parquet")
    rows: Any = table[
        (table["method"] == "reference:base") & (table["site"] == "residual") & (table["split"] == "probe")
    ]
    rows = rows.drop_duplicates(["task", "pooling", "layer", "metric"])
    keys = ["task", "pooling", "layer"]
    wide = rows.assign(pooling=rows["pooling"].fillna("sinks")).pivot_table(
        index=keys, columns="metric", values="value"
    )
    return json.loads(wide.reset_index().to_json(orient="records"))


# ----------------------------------------------------------------------------------------------------------------- text


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Drift and ratios by every definition."""
    lines = ["| task | method | drift by | layers | drift | ratio (95% interval) |", "|---|---|---|---|---:|---:|"]
    for row in rows:
        by = row["pooling"] + (", every layer" if row["every_layer"] else "") + (" *" if row["is_primary"] else "")
        drift = "" if row["drift"] is None else f"{row['drift']['estimate']:.5f}"
        layers = f"{row['num_layers']} of {row['num_all']}" if row["num_all"] else ""
        lines.append(f"| {row['task']} | {row['method']} | {by} | {layers} | {drift} | {ratio_of(row['ratio'])} |")
    return "\n".join(lines)


def ratio_of(ratio: Mapping[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['estimate']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def verdicts_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hypotheses by every definition."""
    lines = ["| hypothesis | drift by | verdict | ratio on average | what differs |", "|---|---|---|---:|---|"]
    for row in rows:
        average = ratio_of(row["average"])
        lines.append(f"| {row['name']} | {row['by']} | {row['verdict']} | {average} | {row['differs']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a study says of drift by every definition of it.")
    parser.add_argument("--study", type=Path, help="a study that measures drift, with its default poolings")
    parser.add_argument("--analysis", type=Path, help="finished results to read instead of running a study")
    parser.add_argument("--data", type=Path, default=None, help="directory with {task}_{split}.parquet")
    parser.add_argument("--device", action="append", help="one worker each; absent: this process, on the CPU")
    parser.add_argument("--store", type=Path, default=Path(".lorascope"))
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as of `lorascope run`")
    parser.add_argument(
        "--before", type=Path, default=None, help="folder with measurements.parquet of an older version"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if (given.study is None) == (given.analysis is None):
        parser.error("give either --study or --analysis")
    directory = given.analysis or run_study(given)
    found = {"definitions": by_definition(directory), "hypotheses": hypotheses(directory), "health": health(directory)}
    if given.before is not None:
        found["before"] = against_before(directory, given.before)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "definitions.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table_of(found["definitions"]), verdicts_of(found["hypotheses"]), sep="\n\n")
    for row in found.get("before", ()):
        print(
            f"{row['task']} {row['method']}: by the definition until 0.1 {row['before']:.5f} then, {row['now']:.5f} now "
            f"({row['runs']} runs)"
        )


if __name__ == "__main__":
    main()
