"""The gate of a refactor: what was computed before is computed after, to the last bit.

    python benchmarks/numerics/compare.py BEFORE AFTER [--only tiny] [--report]

BEFORE and AFTER are folders of capture.py. Rows of the measurements, curves, verdicts and the rest of analysis.json, facts,
step ids, results of steps and the checksums of what they wrote (weights, predictions, features) must be equal. What AFTER
has in addition is listed. What a clock decides is left out by name (CLOCKED_*), never by a tolerance; where AFTER is a replay
(capture.py --replay), the times are the same and nothing is left out. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import difflib
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RENAMED: Mapping[str, str] = {}
"""A key before -> what it is called now, wherever it stands; or `DOCUMENT: path` -> its path now, with all below it, such as
`facts: serving.engines[].load_s` -> `serving.engines[].load_seconds`. Documents: analysis, facts, steps."""
REWORDED: Mapping[str, str] = {r"of logits on (\d+) examples": r"of outputs on \1 rows"}
"""Pattern of words in a sentence before -> the words now (`re.sub`), for the texts in these documents."""
RENAMED_FILES: Mapping[str, str] = {}
"""KIND/FILE of an artifact before -> FILE, as it is called now."""

CLOCKED_METRICS = ("training_seconds", "tokens_per_second", "mfu", "energy_joules", "peak_memory_bytes")
"""Metrics of measurements.parquet. `export_bytes` is not among them: the size of a file is no clock's."""
_RUN = (
    *CLOCKED_METRICS, "evaluation_seconds", "gang_peak_memory_bytes", "padded_tokens_per_second", "preparation_seconds",
    "step_ms_median", "total_seconds",
)  # fmt: skip
_TRIAL = ("training_seconds", "evaluation_seconds", "gang_peak_memory_bytes")
_ENGINE = ("load_s", "memory.process_bytes", "memory.peak_process_bytes")
_CLAIM = ("average", "parts[].estimate", "parts[].p_value", "parts[].p_holm", "parts[].p_bonferroni")
_CLAIM += ("p_value", "p_holm", "p_bonferroni", "would_decide")
CLOCKED: Mapping[str, Sequence[str]] = {
    "analysis": (
        *(f"hypotheses[T*].{key}" for key in _CLAIM),
        "served: hypotheses[H*].p_holm",
        *(f"serving.cells[].{key}" for key in ("median", "mad", "interval", "repeats")),
        *(f"serving.overheads[].{key}" for key in ("estimate", "interval", "bootstrap", "median", "mad")),
        *(f"serving.regressions[].{key}" for key in ("intercept", "per_adapter", "per_doubling", "r_squared")),
        "serving.regressions[].points[].ratio",
        *(f"serving.one_machine[].{key}" for key in ("adapters", "merged", "gain")),
        "serving.tasks[].tasks",
        *(f"serving.traffic[].{key}" for key in ("adapter_capacity", "merged_capacity", "first", "last", "reason")),
        *(f"serving.switching[].{key}" for key in ("median_ms", "latency_ms", "ratio")),
        "serving.recommendations",
    ),
    "facts": (
        *(f"runs[].{key}" for key in _RUN),
        *(f"search[].trials[].{key}" for key in _TRIAL),
        *(f"serving.engines[].{key}" for key in _ENGINE),
        "provenance.started",
        "provenance.finished",
        "provenance.git",
    ),
    "steps": (
        *(f"*.train.{key}" for key in _RUN),
        *(f"*.trial.{key}" for key in _TRIAL),
        *(f"*.search.trials[].{key}" for key in _TRIAL),
        "*.drift.seconds",
        "*.drift.peak_memory_bytes",
    ),
}
"""Document -> paths that clocks and the system's memory decide, with all below them. `*` stands for any text, a list's places
are left out, `STUDY: ` in front limits a path to one study. Claims called T rest on times."""
CLOCKED_FILES = ("serving/processes.json", "serving/requests.parquet", "serving/serving.parquet")
"""KIND/FILE of artifacts that have a time in them, so that their checksums differ."""

ROW = ("run", "model", "task", "method", "seed", "split", "example_id", "site", "layer", "metric")
SHOWN = 12
ABSENT = "absent"


@dataclass
class Account:
    """What was compared in one study. excused, added: what -> how many; differences: in words."""

    study: str
    equal: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    added: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def differ(self, text: str) -> None:
        self.differences.append(text)


def compare_study(before: Path, after: Path, *, is_replay: bool) -> Account:
    """Everything that is kept of one study."""
    account = Account(before.name)
    compare_measurements(before, after, account, is_replay=is_replay)
    compare_curves(before, after, account)
    compare_serving(before, after, account, is_replay=is_replay)
    for name in ("analysis", "facts"):
        documents = [read_json(folder / f"{name}.json.gz") for folder in (before, after)]
        compare_documents(name, *documents, account, is_replay=is_replay)
    compare_steps(read_json(before / "steps.json.gz"), read_json(after / "steps.json.gz"), account, is_replay=is_replay)
    if (before / "study.yaml").read_text() != (after / "study.yaml").read_text():
        account.differ("study.yaml: another study was run")
    return account


# -------------------------------------------------------------------------------------------------------------- tables


def compare_measurements(before: Path, after: Path, account: Account, *, is_replay: bool) -> None:
    """Every row of before is in after, with the same unit and the same bits."""
    old, new = (pd.read_parquet(folder / "measurements.parquet") for folder in (before, after))
    if lacking := [name for name in old.columns if name not in new.columns]:
        account.differ(f"measurements: no column {', '.join(lacking)}")
        return
    old, new = keyed(old), keyed(new)
    for where, table in (("before", old), ("after", new)):
        if twice := table.index[table.index.duplicated()].tolist():
            account.differ(f"measurements: {len(twice)} rows are there twice {where}, such as {twice[0]}")
            return
    lost = old.index.difference(new.index, sort=False)
    for row in lost[:SHOWN]:
        account.differ(f"measurements: no row {named(row)} ({len(lost)} such rows)")
    account.added.update(f"row of {row[-1]}" for row in new.index.difference(old.index, sort=False))
    old = old.drop(lost)
    new = new.loc[old.index]
    is_clocked = np.array([row[-1] in CLOCKED_METRICS and not is_replay for row in old.index], dtype=bool)
    is_same = (old["unit"].to_numpy() == new["unit"].to_numpy()) & (is_clocked | same_bits(old["value"], new["value"]))
    account.excused.update(f"value of {row[-1]}" for row in old.index[is_clocked])
    account.equal["rows of measurements"] += int((is_same & ~is_clocked).sum())
    for place in np.flatnonzero(~is_same)[:SHOWN]:
        was, now = (f"{float(table['value'].iloc[place])!r} {table['unit'].iloc[place]}" for table in (old, new))
        account.differ(f"measurements: {named(old.index[place])}: {was} -> {now} ({int((~is_same).sum())} such rows)")


def keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Values and units by what a row measures; what is null is the text `-`."""
    texts = {name: table[name].astype("string").fillna("-") for name in ROW if name != "layer"}
    texts["layer"] = table["layer"].astype("Int64").astype("string").fillna("-")
    index = pd.MultiIndex.from_frame(pd.DataFrame(texts)[list(ROW)])
    return pd.DataFrame(
        {"value": table["value"].to_numpy(np.float64), "unit": table["unit"].astype(str).to_numpy()}, index
    )


def same_bits(one: pd.Series, other: pd.Series) -> np.ndarray:
    return one.to_numpy(np.float64).view(np.int64) == other.to_numpy(np.float64).view(np.int64)


def named(row: Sequence[str]) -> str:
    return " ".join(f"{name}={value}" for name, value in zip(ROW, row, strict=True) if value != "-")


def compare_curves(before: Path, after: Path, account: Account) -> None:
    """Row by row, in order; every column of before."""
    old, new = (pd.read_parquet(folder / "curves.parquet") for folder in (before, after))
    if len(old) != len(new):
        account.differ(f"curves: {len(old)} rows -> {len(new)}")
        return
    for name in old.columns:
        if name not in new.columns:
            account.differ(f"curves: no column {name}")
        elif not _same_column(old[name], new[name]):
            account.differ(f"curves: column {name} differs")
        else:
            account.equal["values of curves"] += len(old)


def _same_column(old: pd.Series, new: pd.Series) -> bool:
    if pd.api.types.is_float_dtype(old) and pd.api.types.is_float_dtype(new):
        return bool(same_bits(old, new).all())
    return old.astype("string").fillna("-").tolist() == new.astype("string").fillna("-").tolist()


def compare_serving(before: Path, after: Path, account: Account, *, is_replay: bool) -> None:
    """What was measured of which engine; the figures themselves are times, and compared in a replay only.

    Where after has no table of its own, the figures are looked for among the values of its measurements.
    """
    if not (before / "serving.parquet").exists():
        return
    old = pd.read_parquet(before / "serving.parquet")
    if not (after / "serving.parquet").exists():
        there = Counter(
            pd.read_parquet(after / "measurements.parquet")["value"].to_numpy(np.float64).view(np.int64).tolist()
        )
        lost = Counter(old["value"].to_numpy(np.float64).view(np.int64).tolist()) - there
        if not is_replay:
            account.excused["table of serving: it is gone, only a replay can look for its figures"] += len(old)
        elif lost:
            account.differ(f"serving: {lost.total()} of {len(old)} figures are not in the measurements")
        else:
            account.equal["figures of serving, now in the measurements"] += len(old)
        return
    new = pd.read_parquet(after / "serving.parquet")
    keys = [name for name in old.columns if name != "value"]
    if sorted(old[keys].astype(str).values.tolist()) != sorted(new.reindex(columns=keys).astype(str).values.tolist()):
        account.differ("serving: other engines, loads or metrics were measured")
    elif is_replay and not same_bits(old["value"], new["value"]).all():
        account.differ("serving: figures differ")
    account.equal["keys of serving's figures"] += len(old)


# ----------------------------------------------------------------------------------------------------------- documents


def compare_documents(name: str, before: Any, after: Any, account: Account, *, is_replay: bool) -> None:
    """Every leaf of before is in after, type and bits."""
    patterns = () if is_replay else [p for p in map(partial(_pattern_in, account.study), CLOCKED[name]) if p]
    old = {renamed(name, path): reworded(value) for path, value in leaves(before)}
    new = dict(leaves(after))
    different: dict[str, list[str]] = {}
    for path in dict.fromkeys([*old, *new]):
        was, now = old.get(path, ABSENT), new.get(path, ABSENT)
        pattern = next((p for p in patterns if is_below(path, p)), None)
        if pattern is not None:
            account.excused[f"{name}: {pattern}"] += 1
        elif path not in old:
            account.added[f"{name}: {placeless(path)}"] += 1
        elif type(was) is type(now) and (was == now or was != was and now != now):
            account.equal[f"values of {name}"] += 1
        else:
            different.setdefault(placeless(path), []).append(f"{path}: {shortened(was)} -> {shortened(now)}")
    for found in different.values():
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        account.differ(f"{name}: {found[0]}{more}")


def _pattern_in(study: str, pattern: str) -> str | None:
    """The path that is meant in this study, None if it is another study's."""
    *limit, path = pattern.split(": ")
    return path if limit in ([], [study]) else None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path -> literal; items of a list by their place, or by their `name` where they are the hypotheses."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            label = item["name"] if path == "hypotheses" and isinstance(item, dict) else place
            yield from leaves(item, f"{path}[{label}]")
    else:
        yield path, value


def renamed(document: str, path: str) -> str:
    """Where a value of before stands now."""
    for was, now in RENAMED.items():
        limit, _, prefix = was.rpartition(": ")
        if not limit:
            path = re.sub(rf"(^|(?<=\.)){re.escape(was)}(?=[.\[]|$)", now, path)
        elif limit == document:
            places = re.escape(prefix).replace(r"\[\]", r"(\[[^]]*\])")
            if found := re.match(rf"{places}(?=[.\[]|$)", path):
                kept = iter(found.groups())
                path = re.sub(r"\[\]", lambda _, kept=kept: next(kept), now) + path[found.end() :]
    return path


def reworded(value: Any) -> Any:
    if isinstance(value, str):
        for was, now in REWORDED.items():
            value = re.sub(was, now, value)
    return value


def is_below(path: str, pattern: str) -> bool:
    wanted = re.escape(pattern).replace(r"\*", ".*")
    return re.fullmatch(rf"{wanted}([.\[].*)?", placeless(path), flags=re.DOTALL) is not None


def placeless(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


# --------------------------------------------------------------------------------------------------------------- steps


def compare_steps(before: Sequence[Any], after: Sequence[Any], account: Account, *, is_replay: bool) -> None:
    """The same ids, the same results, the same files."""
    old, new = ({step["id"]: step for step in steps} for steps in (before, after))
    for step in old:
        if step not in new:
            account.differ(f"steps: {step} is not there: {_nearest(old[step], new, old)}")
    account.added.update(f"step of kind {new[step]['kind']}" for step in new if step not in old)
    both = [step for step in old if step in new]
    account.equal["step ids"] += len(both)
    results = [{step: {steps[step]["kind"]: steps[step]["result"]} for step in both} for steps in (old, new)]
    compare_documents("steps", *results, account, is_replay=is_replay)
    for step in both:
        kind, found, known = new[step]["kind"], new[step]["sha256"], set()
        for file, checksum in old[step]["sha256"].items():
            place = f"{kind}/{file}"
            known.add(now := RENAMED_FILES.get(place, file))
            if kind == "analysis":  # its files are compared value by value
                continue
            if found.get(now) == checksum:
                account.equal["checksums of files"] += 1
            elif place in CLOCKED_FILES and not is_replay:
                account.excused[f"checksum of {place}"] += 1
            else:
                account.differ(f"steps: {step}: {now} {'differs' if now in found else 'is not there'}")
        account.added.update(f"file {kind}/{file}" for file in found if file not in known)


def _nearest(step: Mapping[str, Any], new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Which literals differ from the most similar new step of its kind."""
    wanted, best = _literals(step), None
    for other in new.values():
        if other["kind"] == step["kind"] and other["id"] not in old:
            found = _literals(other)
            paths = dict.fromkeys([*wanted, *found])
            different = [path for path in paths if wanted.get(path, ABSENT) != found.get(path, ABSENT)]
            if best is None or len(different) < len(best):
                best = different
    return f"its nearest differs in {', '.join(best[:4])}" if best else "no step of its kind is new"


def _literals(step: Mapping[str, Any]) -> dict[str, Any]:
    return dict(leaves({key: step[key] for key in ("version", "params", "deps")}))


# -------------------------------------------------------------------------------------------------------------- summary


def read_json(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def print_account(name: str, account: Account) -> None:
    print(f"{name}: {'DIFFERENT' if account.differences else 'equal'}")
    for title, counts in (("equal", account.equal), ("left out", account.excused), ("new", account.added)):
        for what, count in sorted(counts.items()):
            print(f"  {title:9}{count:7}  {what}")
    for text in account.differences[: 4 * SHOWN]:
        print(f"  DIFFERS  {text}")
    if (more := len(account.differences) - 4 * SHOWN) > 0:
        print(f"  DIFFERS  and {more} more")


def print_report_difference(before: Path, after: Path) -> None:
    """The reports' lines that differ: nothing is decided by them, since wording may change."""
    paths = [folder / "ANALYSIS_REPORT.md.gz" for folder in (before, after)]
    texts = [gzip.decompress(path.read_bytes()).decode().splitlines() for path in paths]
    print("\n".join(difflib.unified_diff(*texts, "before", "after", lineterm="", n=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", action="append", help="this study (repeatable); default: all of BEFORE")
    parser.add_argument("--report", action="store_true", help="print which lines of the reports differ")
    given = parser.parse_args()
    about = [json.loads((folder / "machine.json").read_text()) for folder in (given.before, given.after)]
    for key in ("processor", "capability", "python", "versions"):
        if about[0][key] != about[1][key]:
            print(f"warning: another {key}, last bits may differ: {about[0][key]} -> {about[1][key]}")
    is_different = False
    for name in given.only or about[0]["studies"]:
        if not (given.after / name).exists():
            print(f"{name}: DIFFERENT\n  DIFFERS  it was not captured")
            is_different = True
            continue
        account = compare_study(given.before / name, given.after / name, is_replay=about[1]["is_replay"])
        print_account(name, account)
        is_different |= bool(account.differences)
        if given.report:
            print_report_difference(given.before / name, given.after / name)
    sys.exit(1 if is_different else 0)


if __name__ == "__main__":
    main()
