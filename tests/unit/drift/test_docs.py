"""docs/drift.md shows what its code prints, and the figures of the results it quotes."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "drift.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", DOCUMENT, flags=re.DOTALL)


def numbers_and_words(text: str) -> tuple[list[float], list[str]]:
    number = r"-?\d+\.\d+"
    return [float(n) for n in re.findall(number, text)], re.sub(number, "", text).split()


def test_shown_code_prints_what_is_shown():
    namespace: dict[str, Any] = {}
    assert len(BLOCKS) == DOCUMENT.count("```python") == 3
    for code, shown in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/drift.md", "exec", dont_inherit=True), namespace)
        found, expected = numbers_and_words(printed.getvalue()), numbers_and_words(shown)
        assert found[0] == pytest.approx(expected[0], abs=2e-3 + 1e-9)  # the last digit shown may round either way
        assert found[1] == expected[1]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = ROOT / "benchmarks" / "drift"
    if not directory.exists():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(directory))
    for name in ("bootstrap", "clock", "simulate_coverage"):  # they import each other by these names; leave none behind
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    return directory


def test_coverage_table_shows_the_simulated_results(benchmarks: Path):
    coverage = sys.modules["simulate_coverage"]
    rows = json.loads((benchmarks / "results" / "coverage.json").read_text())
    assert coverage.table(rows) in DOCUMENT
    assert [row["scenario"] for row in rows] == list(coverage.SCENARIOS)


def test_benchmark_table_shows_the_measured_results(benchmarks: Path):
    assert sys.modules["clock"].table(benchmarks / "results") in (benchmarks / "README.md").read_text()
