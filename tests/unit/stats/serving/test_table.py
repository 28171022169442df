"""Serving's figures in the long table: every row is told apart, and comes back as it was."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from served_fixture import served_facts, served_frame, served_gates

from lorascope.stats.measurements import validate_measurements, write_measurements
from lorascope.stats.serving.analyse import COLUMNS, analyse_serving
from lorascope.stats.serving.table import read_served, served_figures, served_rows


@pytest.fixture(scope="module")
def figures() -> pd.DataFrame:
    return served_frame()[list(COLUMNS)].reset_index(drop=True)


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    words = [name for name in COLUMNS if name not in ("repeat", "level", "value")]
    return frame[list(COLUMNS)].astype(dict.fromkeys(words, "object"))


def test_figures_come_back_from_the_long_table_as_they_were(figures: pd.DataFrame) -> None:
    table = validate_measurements(served_rows(figures, run="serving-x"))
    pd.testing.assert_frame_equal(as_text(served_figures(table)), as_text(figures), check_exact=True)
    assert set(table["task"]) == {"*"} and set(table["run"]) == {"serving-x"}


def test_the_analysis_is_the_same_from_either_table(figures: pd.DataFrame) -> None:
    from_table = served_figures(validate_measurements(served_rows(figures, run="serving-x")))
    gates, facts = served_gates(), served_facts()
    assert analyse_serving(from_table, gates=gates, facts=facts) == analyse_serving(figures, gates=gates, facts=facts)


def test_a_figure_that_is_no_number_is_left_out(figures: pd.DataFrame) -> None:
    broken = figures.assign(value=[float("nan"), float("inf"), *figures["value"][2:]])
    assert len(served_rows(broken, run="x")) == len(figures) - 2


def test_rows_of_runs_are_no_figures_of_serving() -> None:
    row = {"run": "r", "model": "m", "task": "t", "method": "lora", "seed": "1", "metric": "loss", "unit": "nat"}
    found = served_figures(validate_measurements(pd.DataFrame([{**row, "value": 0.1}])))
    assert found.empty and set(COLUMNS) == set(found.columns)


def test_results_of_an_older_version_are_read_from_their_own_table(figures: pd.DataFrame, tmp_path: Path) -> None:
    write_measurements(served_rows(figures, run="x"), tmp_path / "measurements.parquet")
    assert len(read_served(tmp_path)) == len(figures)
    figures.head(3).to_parquet(tmp_path / "serving.parquet")
    pd.testing.assert_frame_equal(read_served(tmp_path), pd.read_parquet(tmp_path / "serving.parquet"))


def test_many_figures_take_seconds_not_minutes(figures: pd.DataFrame) -> None:
    times = -(-100_000 // len(figures))
    many = pd.concat([figures.assign(model=f"m{index}") for index in range(times)], ignore_index=True)
    start = time.process_time()
    found = served_figures(served_rows(many, run="x"))
    assert len(found) == len(many) >= 100_000
    assert time.process_time() - start < 20
