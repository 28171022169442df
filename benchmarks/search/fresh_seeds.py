"""What a pruned search costs in quality: the optima of two searches, each trained with the same fresh seeds.

    python benchmarks/search/fresh_seeds.py WHOLE/measurements.parquet PRUNED/measurements.parquet --out FILE.json

For every task and method the difference of mean scores (pruned less whole) with Welch's 95% interval over seeds, on the
test set, and on the validation set that both searches chose by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    whole, pruned = (scores(path, given.metric) for path in (given.whole, given.pruned))
    if whole.keys() != pruned.keys():
        raise SystemExit(f"not the same arms: {sorted(whole.keys() ^ pruned.keys())}")
    rows = [row(*arm, whole[arm], pruned[arm]) for arm in whole]
    given.out.write_text(json.dumps({"metric": given.metric, "rows": rows}, indent=1) + "\n")
    for found in rows:
        low, high = found["interval_95"]
        print(
            f"{found['split']:10} {found['task']:5} {found['method']:5} {100 * found['difference']:+5.1f} points"
            f" ({100 * low:+.1f} to {100 * high:+.1f})"
        )


def scores(path: Path, metric: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """(split, task, method) -> seed -> score, of trained runs alone."""
    rows = pd.read_parquet(path)
    rows = rows[(rows.metric == metric) & rows.run.str.startswith("train-") & rows.split.isin(("test", "validation"))]
    return {
        tuple(map(str, arm)): dict(sorted(zip(of_arm.seed, of_arm.value, strict=True)))
        for arm, of_arm in rows.groupby(["split", "task", "method"], sort=True)
    }


def row(split: str, task: str, method: str, whole: dict[str, float], pruned: dict[str, float]) -> dict[str, Any]:
    if whole.keys() != pruned.keys():
        raise SystemExit(f"{split} {task} {method}: not the same seeds")
    found = stats.ttest_ind(list(pruned.values()), list(whole.values()), equal_var=False)
    interval = found.confidence_interval(0.95)
    return {
        "split": split,
        "task": task,
        "method": method,
        "difference": pd.Series(pruned).mean() - pd.Series(whole).mean(),
        "interval_95": [interval.low, interval.high],
        "whole": whole,
        "pruned": pruned,
    }


if __name__ == "__main__":
    main()
