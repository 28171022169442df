"""The numerics gate of benchmarks/numerics: it passes what is equal, and one bit is enough to make it fail."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lorascope

Compare = Callable[[Path, Path], tuple[int, str]]
GATE = Path(__file__).parents[2] / "benchmarks" / "numerics"
COLUMNS = ("run", "model", "task", "method", "seed", "split", "example_id", "site", "layer", "metric", "value", "unit")
ROWS = (
    ("train-1", "m", "t", "full", "1", "test", "a", None, None, "correct", 1.0, "1"),
    ("train-1", "m", "t", "full", "1", "test", None, None, None, "accuracy", 0.1, "1"),
    ("train-1", "m", "t", "full", "1", "test", None, "residual", 2, "drift", 0.3, "1"),
    ("train-1", "m", "t", "full", "1", None, None, None, None, "training_seconds", 7.0, "s"),
)
STEP = {
    "id": "train-1", "kind": "train", "version": 1, "params": {"rank": 4}, "deps": {},
    "result": {"updates": 5, "training_seconds": 7.0}, "sha256": {"export/model.safetensors": "ab"},
}  # fmt: skip
ANALYSIS = {"hypotheses": [{"name": "H1", "verdict": "supported", "p_value": 0.01}]}


def write(path: Path, value: Any) -> None:
    path.write_bytes(gzip.compress(json.dumps(value).encode()))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    folder = tmp_path / "before" / "tiny"
    folder.mkdir(parents=True)
    measured = pd.DataFrame(ROWS, columns=list(COLUMNS)).astype({"layer": "Int64"})
    measured.to_parquet(folder / "measurements.parquet", index=False)
    pd.DataFrame({"update": [1, 2], "value": [0.7, 0.6]}).to_parquet(folder / "curves.parquet", index=False)
    write(folder / "analysis.json.gz", ANALYSIS)
    write(folder / "facts.json.gz", {"runs": [{"run": "train-1", "training_seconds": 7.0}], "failures": []})
    write(folder / "steps.json.gz", [STEP])
    (folder / "study.yaml").write_text("name: tiny\n")
    about = dict.fromkeys(("processor", "capability", "python", "versions"))
    (folder.parent / "machine.json").write_text(json.dumps({**about, "is_replay": False, "studies": {"tiny": {}}}))
    return folder.parent


@pytest.fixture
def after(before: Path) -> Path:
    return Path(shutil.copytree(before, before.parent / "after"))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """compare.py, under a name that no other benchmark's script has."""
    spec = importlib.util.spec_from_file_location("numerics_compare", GATE / "compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compare(module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    """Runs compare.py: its status and what it prints."""

    def run(before: Path, after: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", str(before), str(after)])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return int(str(ended.value.code)), capsys.readouterr().out

    return run


def change_value(after: Path, metric: str, change: Callable[[float], float]) -> None:
    path = after / "tiny" / "measurements.parquet"
    table = pd.read_parquet(path)
    chosen = table["metric"] == metric
    table.loc[chosen, "value"] = [change(value) for value in table.loc[chosen, "value"]]
    table.to_parquet(path, index=False)


def test_equal_captures_pass_in_any_order_of_rows(compare: Compare, before: Path, after: Path) -> None:
    path = after / "tiny" / "measurements.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path, index=False)
    status, told = compare(before, after)
    assert status == 0, told
    assert "tiny: equal" in told


@pytest.mark.parametrize("metric", ["accuracy", "drift"])
def test_one_bit_of_a_measurement_fails(compare: Compare, before: Path, after: Path, metric: str) -> None:
    change_value(after, metric, lambda value: float(np.nextafter(value, 1)))
    status, told = compare(before, after)
    assert status == 1
    assert f"metric={metric}" in told


def test_a_time_may_differ_but_not_in_a_replay(compare: Compare, before: Path, after: Path) -> None:
    change_value(after, "training_seconds", lambda value: value + 1)
    assert compare(before, after)[0] == 0
    about = json.loads((after / "machine.json").read_text())
    (after / "machine.json").write_text(json.dumps({**about, "is_replay": True}))
    assert compare(before, after)[0] == 1


def test_a_lost_row_fails_and_a_new_one_is_listed(compare: Compare, before: Path, after: Path) -> None:
    path = before / "tiny" / "measurements.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path, index=False)
    status, told = compare(before, after)
    assert status == 0
    assert "row of correct" in told
    status, told = compare(after, before)
    assert status == 1
    assert "no row" in told


@pytest.mark.parametrize(
    ("document", "changed"),
    [
        ("analysis", {"hypotheses": [{**ANALYSIS["hypotheses"][0], "verdict": "refuted"}]}),
        ("analysis", {"hypotheses": [{"name": "H1", "verdict": "supported"}]}),
        ("facts", {"runs": [], "failures": []}),
        ("steps", [{**STEP, "id": "train-2", "params": {"rank": 8}}]),
        ("steps", [{**STEP, "result": {"updates": 6, "training_seconds": 7.0}}]),
        ("steps", [{**STEP, "sha256": {"export/model.safetensors": "cd"}}]),
    ],
)
def test_another_verdict_fact_step_or_weight_fails(
    compare: Compare, before: Path, after: Path, document: str, changed: Any
) -> None:
    write(after / "tiny" / f"{document}.json.gz", changed)
    status, told = compare(before, after)
    assert status == 1
    assert f"DIFFERS  {document}" in told


def test_what_the_tables_rename_is_found_under_its_new_name(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames = {"p_value": "p", "facts: serving.engines[].load_s": "engines[].load_seconds"}
    monkeypatch.setattr(module, "RENAMED", renames)
    monkeypatch.setattr(module, "REWORDED", {"is no (.*)": r"is not a \1"})
    assert module.renamed("analysis", "hypotheses[H1].p_value") == "hypotheses[H1].p"
    assert module.renamed("analysis", "serving.engines[3].load_s") == "serving.engines[3].load_s"
    assert module.renamed("facts", "serving.engines[3].load_s") == "engines[3].load_seconds"
    assert module.reworded("f2 is no metric") == "f2 is not a metric"


def test_the_studies_of_the_gate_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GATE))
    importlib.import_module("inputs").write_inputs(tmp_path)
    for path in (GATE / "studies").glob("*.yaml"):
        shutil.copy(path, tmp_path)
    studies = [path for path in tmp_path.glob("*.yaml") if path.name != "found.yaml"]
    assert {lorascope.load(path).name for path in studies} == {path.stem for path in studies}
