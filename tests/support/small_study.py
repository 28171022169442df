"""A whole small study on disk: a tiny random BERT, sentences of one's own, two methods, two seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from tiny import save_tiny_checkpoint, tiny_examples

STUDY = """
name: small
question: Does LoRA learn sentiment as well as full fine-tuning?
models: [{name: tiny, source: {path: bert}}]
tasks:
  - {name: sentiment, kind: classification, train: train.csv, text: text, label: label, metrics: [accuracy, f1], positive: good}
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 4, dropout: 0.1}
seeds: [1, 2]
train: {epochs: 4, batch_size: 16, max_length: 32, evaluations_per_epoch: 2}
measure: {drift: {examples: 60, draws: 200}}
hypotheses:
  H1a: {non_inferior: lora, to: full, margin: 5%}
  H1b: {lower: lora, than: full, on: drift, by: 5%}
  H2: {lower: lora, than: full, on: trainable_parameters, by: 50%}
conclusion: H1a and H2
"""
COSTS = ("training_seconds", "peak_memory_bytes", "energy_joules", "tokens_per_second", "mfu")


def write_small_study(directory: Path, text: str = STUDY) -> Path:
    """The study's file, its checkpoint and its data beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tiny_checkpoint(directory / "bert", "bert")
    examples = tiny_examples(600, seed=1).drop_duplicates("text")
    examples["label"] = examples["label"].map({0: "bad", 1: "good"})
    examples[["text", "label"]].to_csv(directory / "train.csv", index=False)
    path = directory / "study.yaml"
    path.write_text(text)
    return path


def lorascope(*arguments: str) -> list[str]:
    """The command line that runs lorascope from this checkout."""
    return [sys.executable, "-m", "lorascope", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, finding this checkout's lorascope, one thread a worker."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **changes}


def run(directory: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """`lorascope ARGUMENTS` in a directory, to its end."""
    return subprocess.run(
        lorascope(*arguments), cwd=directory, env=environment(**changes), capture_output=True, text=True, timeout=900
    )


def what_was_measured(results: Path) -> pd.DataFrame:
    """The measurements that chance and clocks have no part in: everything but costs that time decides."""
    frame = pd.read_parquet(results / "measurements.parquet")
    kept = frame[~frame["metric"].isin(COSTS)].drop(columns="run")
    order = [name for name in kept.columns if name != "value"]
    return kept.sort_values(order).reset_index(drop=True)


def only_exit_code(done: subprocess.CompletedProcess[str]) -> Any:
    """The exit code, with everything printed if a test shows it."""
    return done.returncode, done.stdout[-3000:], done.stderr[-3000:]
