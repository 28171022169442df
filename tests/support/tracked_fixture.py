"""A study's events as they come, and W&B's offline files read back."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorascope.engine.events import (
    CurvePoint,
    Event,
    ReportWritten,
    StepFinished,
    StepPlanned,
    StepProgress,
    StepStarted,
    StudyFinished,
    StudyStarted,
)

TRAIN, EVALUATE = "train-tiny-mrpc-lora-1-00", "evaluate-tiny-mrpc-lora-1-00"
NAME = "tiny / mrpc / lora / 1"


def planned(step: str, *, phase: str | None = "training", part_of: str | None = None) -> StepPlanned:
    return StepPlanned(
        step=step, name=NAME, phase=phase, part_of=part_of,
        labels={"model": "tiny", "task": "mrpc", "method": "lora", "seed": "1"},
        settings={"learning_rate": 0.01, "method": {"rank": 4, "sites": ["query"]}},
    )  # fmt: skip


def training() -> list[Event]:
    """A run from its start to its end: four points of two curves, a rate, figures."""
    points = [
        CurvePoint(step=TRAIN, name=name, value=value / at, at=at)
        for at in (10, 20, 30, 40)
        for name, value in (("train/loss", 8.0), ("learning_rate", 0.1))
    ]
    return [
        planned(TRAIN),
        planned(EVALUATE, part_of=TRAIN),
        StepStarted(step=TRAIN, worker="cpu-0"),
        *points,
        StepProgress(step=TRAIN, done=40, total=40, unit="update", rates={"tokens/s": 1200.0}),
        StepFinished(step=TRAIN, seconds=3.0, worker="cpu-0", figures={"trainable_parameters": 1090.0}),
    ]


def scoring() -> list[Event]:
    return [
        StepStarted(step=EVALUATE, worker="cpu-0"),
        StepFinished(step=EVALUATE, seconds=1.0, worker="cpu-0", figures={"test/accuracy": 0.75}),
    ]


def whole_study(report: Path) -> list[Event]:
    return [
        StudyStarted(study="small", num_steps=2, num_cached=0),
        *training(),
        *scoring(),
        StudyFinished(study="small", num_done=2, num_cached=0, num_failed=0, num_blocked=0, seconds=5.0),
        ReportWritten(path=str(report), verdicts={"H1": "supported"}),
    ]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records in one run's file: a LevelDB log (blocks of 32 KiB, records in pieces) after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, pieces = file.read_bytes(), 7, b""
    block, header = 32 * 1024, 7
    while position + header <= len(content):
        left = block - position % block
        if left < header:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + header])
        pieces += content[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # whole, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record
