"""The drift step's files and result: what is written is what is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorascope.drift.measure import DRIFT
from lorascope.drift.record import DISTANCE_COLUMNS, Draws, DriftRecord, ProbeRecord, write_tables
from lorascope.measures.measure import MeasuredEvidence
from lorascope.stats.measurements import validate_measurements

LABEL = {"model": "m", "task": "t", "method": "lora", "seed": None}
RECORD = DriftRecord(
    num_examples=4, probes={"probe": ProbeRecord(4, "aa")}, layers={"residual": [0, 1]}, left_out={}, pooling="mean",
    num_rows=4, precision="fp32", neighbours=2, draws=3, hidden=8, expected_biased_cka=0.5, drift={"1": 0.25},
    not_measured={"forgetting": "no head"}, seconds={"base": 1.0}, peak_memory_bytes=None,
)  # fmt: skip


def draws(summary: np.ndarray | None) -> Draws:
    return Draws(
        draws=np.full((3, 1, 1), 0.25, np.float32), runs=np.array(["r"]), seeds=np.array(["1"]),
        sites=np.array(["residual"]), layers=np.array([1]), summary=summary,
    )  # fmt: skip


@pytest.fixture
def artifact(tmp_path: Path) -> Any:
    """A committed drift step."""
    row = dict(zip(DISTANCE_COLUMNS, ("r", "1", "probe", "mean", "residual", 1, "drift", 0.25, "1"), strict=True))
    references = [
        ("seed-v-seed", "probe", "mean", "residual", 1, "drift", 0.5),
        ("other-examples", "probe", "mean", "residual", 1, "drift", 1),
    ]
    write_tables(tmp_path, distances=pd.DataFrame([row]), references=references, spectra=pd.DataFrame([row]), pairs={})
    return SimpleNamespace(id="drift-x", result=RECORD.to_json(), file=tmp_path.joinpath, directory=tmp_path)


def test_rows_are_of_runs_and_of_references_by_arm(artifact: Any) -> None:
    table = validate_measurements(pd.concat(DRIFT.rows([(LABEL, artifact)]), ignore_index=True))
    assert table[["run", "method", "seed", "value"]].to_numpy().tolist() == [
        ["r", "lora", "1", 0.25],
        ["drift-x", "reference:seed-v-seed:lora", "*", 0.5],
        ["drift-x", "reference:other-examples", "*", 1.0],
    ]


def test_the_result_is_read_as_it_was_written(artifact: Any) -> None:
    assert DriftRecord.read(artifact) == RECORD
    assert [tuple(found) for found in DRIFT.examples([(LABEL, artifact)])] == [("t", "drift-x", "aa")]


@pytest.mark.parametrize("summary", [None, np.full((3, 1), 0.25, np.float32)])
def test_draws_without_the_residual_stream_have_no_summary(artifact: Any, summary: np.ndarray | None) -> None:
    draws(summary).write(artifact.directory)
    evidence = DRIFT.add_evidence(MeasuredEvidence(), [(LABEL, artifact)], pd.DataFrame())
    (found,) = evidence.drift.values()
    assert found.seeds == ("1",) and found.num_examples == 4
    assert np.isnan(found.summary).all() == (summary is None)
