"""What a pruned search costs in quality: the optima of two searches, each trained with the same fresh seeds.

    python benchmarks/search/fresh_seeds.py WHOLE/measurements.parquet PRUNED/measurements.parquet --out FILE.json

For every task and method the difference of mean scores (pruned less whole) and the ratio of their geometric means, each with
Welch's 95% interval over seeds, on the test set, and on the validation set that both searches chose by.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

INTERVAL = "95% Welch interval over seeds, of the ratio of geometric means"


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
    rows = [row(*arm, whole[arm], pruned[arm], metric=given.metric) for arm in whole]
    versions = {"numpy": np.__version__, "pandas": pd.__version__, "scipy": scipy.__version__}
    command = ratios.command_line("benchmarks/search/fresh_seeds.py")
    # the scores are read from tables, which do not say on what machine they were made
    rows = ratios.described(rows, machine=None, versions=versions, command=command)
    ratios.write_list(given.out, rows)
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


def row(
    split: str, task: str, method: str, whole: dict[str, float], pruned: dict[str, float], *, metric: str
) -> ratios.Row:
    if whole.keys() != pruned.keys():
        raise SystemExit(f"{split} {task} {method}: not the same seeds")
    ours, peer = np.array(list(pruned.values())), np.array(list(whole.values()))
    interval = stats.ttest_ind(ours, peer, equal_var=False).confidence_interval(0.95)
    logs = stats.ttest_ind(np.log(ours), np.log(peer), equal_var=False).confidence_interval(0.95)
    return {
        "work": f"{metric}, {split}: {task}, {method}, {len(ours)} fresh seeds",
        "ours": float(ours.mean()),
        "peer": float(peer.mean()),
        "peer_name": "the optimum of the whole search",
        "unit": "fraction",
        "ratio": math.exp(np.log(ours).mean() - np.log(peer).mean()),
        "ratio_low": math.exp(logs.low),
        "ratio_high": math.exp(logs.high),
        "repeats": len(ours),
        "interval": INTERVAL,
        "samples": {"ours": ours.tolist(), "peer": peer.tolist()},
        "split": split,
        "task": task,
        "method": method,
        "seeds": list(whole),
        "difference": float(ours.mean() - peer.mean()),
        "interval_95": [interval.low, interval.high],
    }


if __name__ == "__main__":
    main()
