"""The classification study on real text and a real model, cut down to what two cores train in minutes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from small_study import run

STUDIES = Path(__file__).parents[2] / "studies"
# Real GLUE files, where they are at hand: LORASCOPE_DATA, or a folder beside the checkout.
DATA = Path(os.environ.get("LORASCOPE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SETTINGS = (
    "models=[minilm-l6]", "seeds=[42, 1337]", "data.train_examples=16", "data.validation_examples=8",
    "data.test_examples=32", "train.epochs=1", "train.batch_size=8", "train.max_length=32", "train.precision=fp32",
    "train.evaluations_per_epoch=1", "train.early_stopping=null", "train.gang=off",
    "methods.full.learning_rate=2e-4", "methods.lora.learning_rate=5e-3",
)  # fmt: skip


@pytest.mark.skipif(not (DATA / "mrpc_test.parquet").exists(), reason="needs GLUE's parquet files (LORASCOPE_DATA)")
def test_classification_study_runs_whole_on_three_real_tasks(tmp_path: Path) -> None:
    overrides = [word for setting in SETTINGS for word in ("--set", setting)]
    done = run(
        tmp_path, "run", str(STUDIES / "classification.yaml"), "--data", str(DATA), *overrides, "--json"
    )  # fmt: skip
    outcome = json.loads(done.stdout)
    assert outcome["failed"] == {}, outcome["failed"]
    assert done.returncode == 0
    (results,) = (tmp_path / "results").glob("classification@*")
    frame = pd.read_parquet(results / "measurements.parquet")
    scores = frame[(frame["metric"] == "accuracy") & (frame["split"] == "test")]
    arms = scores[~scores["method"].str.startswith("baseline:")].groupby(["task", "method"])["seed"].nunique()
    assert arms.to_dict() == {(task, method): 2 for task in ("mrpc", "rte", "sst2") for method in ("full", "lora")}
    assert [verdict["name"] for verdict in outcome["verdicts"]] == ["H1a", "H1b"]
    assert (results / "report.html").stat().st_size > 20_000
