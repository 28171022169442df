"""The two data steps: `data` fixes the examples of every split, `tokens` encodes them for one model.

Both are what every later number stands on, so both record what they did: checksums, ids, label balance, duplicates,
truncation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lorascope.data.columns import Columns, ColumnStore
from lorascope.data.sources import SourceDescription, task_key, verify_files
from lorascope.data.splits import SPLITS, Splits, make_splits
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.errors import DataError
from lorascope.metrics.quality import quality
from lorascope.registry import TASKS, resolve
from lorascope.study.spec import DataSpec
from lorascope.study.tasks import task_spec
from lorascope.tasks.description import task_from_result
from lorascope.tasks.inputs import EXAMPLE, SIZE_BEFORE
from lorascope.tasks.scoring import Scoring
from lorascope.tasks.task import Task

TOKENISE_CHUNK = 2000
PLACE = "file_row"
"""The column that says where an example stands in a user's own files."""


def prepare_data(context: StepContext) -> dict[str, Any]:
    """Write {train,validation,test}.parquet: example_id (str) and the task's columns.

    params: {"task": TaskSpec dump, "source": fingerprint, "protocol", "data": DataSpec dump} and, under `resplit`,
    "test_rows"; locations: role -> path.
    Raises DataError for examples that cannot be used and for files that changed since the study was planned.
    """
    params = context.step.params
    spec = task_spec(params["task"])
    source = SourceDescription(params["source"], context.step.locations)
    verify_files(source)
    key = task_key(spec)
    kind: type[Task] = resolve(TASKS, key)
    raw = kind.read(spec, source=source, protocol=params["protocol"])
    description = {"class": key, "name": spec.name, **raw.task}
    scoring = kind.from_description(description).scoring
    _require_metrics(scoring, task=spec.name)
    data = DataSpec.model_validate(params["data"])
    splits = make_splits(raw, data, task=spec.name, test_rows=params.get("test_rows"))
    for name, frame in splits.frames.items():
        frame.to_parquet(context.out / f"{name}.parquet", index=False, compression="zstd")
    if raw.disjoint:
        _notice_overlap(splits, context)
    return {
        "task": description,
        "primary_metric": scoring.metric_names[0],
        "num_examples": {name: len(frame) for name, frame in splits.frames.items()},
        **scoring.describe(raw, splits.frames),
        "duplicates": splits.duplicates,
        "duplicates_dropped": splits.dropped,
        "example_ids_sha256": {
            name: ids_checksum(frame["example_id"].tolist()) for name, frame in splits.frames.items()
        },
        "sha256": {name: content_checksum(frame) for name, frame in splits.frames.items()},
        "source": raw.source,
        "protocol": params["protocol"],
        **({"parts_dropped": splits.parts} if splits.parts else {}),
    }


def _require_metrics(scoring: Scoring, *, task: str) -> None:
    """Raises StudyError unless the task reports a metric, and each has a row in the table of metrics."""
    if not scoring.metric_names:
        raise DataError(
            f"the task `{task}` names no metric",
            hint="Its author names at least one in `Scoring.metric_names`; the first is the primary one.",
        )
    for name in scoring.metric_names:
        quality(name, where=f"tasks: {task}")


def ids_checksum(ids: Iterable[str]) -> str:
    """sha256 of the example ids in their order: two arms scored on the same examples have the same."""
    return hashlib.sha256("\n".join(str(example_id) for example_id in ids).encode()).hexdigest()


def content_checksum(frame: pd.DataFrame) -> str:
    """sha256 of the examples themselves, whatever library or compression wrote the file, and wherever they stood in it."""
    digest = hashlib.sha256()
    for row in frame.drop(columns=PLACE, errors="ignore").itertuples(index=False):
        digest.update(json.dumps(list(row), ensure_ascii=False, default=_as_json).encode() + b"\n")
    return digest.hexdigest()


def _as_json(value: Any) -> Any:
    """What JSON has no word for: bytes by their checksum, arrays and numbers of numpy as lists and numbers."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value.tolist()


def _notice_overlap(splits: Splits, context: StepContext) -> None:
    for pair, found in splits.duplicates.items():
        if left := found - splits.dropped[pair]:
            first, second = pair.split("~")
            text = f"{left} {first} examples also stand in {second} and were kept: without them a class would be lost"
            context.emit(Notice(step=context.step.id, level="warning", text=text))


def prepare_tokens(context: StepContext) -> dict[str, Any]:
    """Write one `ColumnStore` a split, named after it.

    params: {"model": ModelSpec dump, "max_length": tokens}; deps: {"data"}; locations: those of the model.
    Raises DataError if an example ends in the padding token, which a decoder's pooling would take for padding.
    """
    params = context.step.params
    data = context.deps["data"]
    task = task_from_result(data.result)
    locations, cache_dir = context.step.locations, context.cache_dir
    processor = task.inputs.load_processor(params["model"], locations=locations, cache_dir=cache_dir)
    total = sum(data.result["num_examples"].values())
    result: dict[str, Any] = {
        "max_length": params["max_length"], "num_rows": {}, "num_tokens": {}, "truncated_fraction": {}, "mean_length": {},
        "max_length_seen": {}, "max_length_before_truncation": {},
    }  # fmt: skip
    done = 0
    for split in SPLITS:
        frame = pd.read_parquet(data.file(f"{split}.parquet"))
        columns: Columns = {}
        ids: list[str] = []
        for start in range(0, len(frame), TOKENISE_CHUNK):
            chunk = frame.iloc[start : start + TOKENISE_CHUNK]
            encoded = task.encode(chunk.to_dict("records"), processor, max_length=params["max_length"])
            ids += [chunk["example_id"].iloc[int(index)] for index in encoded.pop(EXAMPLE)]
            for name, rows in encoded.items():
                columns.setdefault(name, []).extend(rows)
            done += len(chunk)
            context.emit(StepProgress(step=context.step.id, done=done, total=total, unit="example"))
        task.inputs.refuse(columns, _places(frame, ids), processor, split=split)
        ColumnStore.write(context.out / split, columns, ids)
        for name, value in measure_lengths(columns, max_length=params["max_length"]).items():
            result[name][split] = value
    return result


def _places(frame: pd.DataFrame, ids: Sequence[str]) -> list[str]:
    """How messages name these examples: by their rows in a user's own files, else by their ids."""
    if PLACE not in frame:
        return list(ids)
    known = dict(zip(frame["example_id"], frame[PLACE], strict=True))
    return [known[example_id] for example_id in ids]


def measure_lengths(columns: Mapping[str, Sequence[np.ndarray]], *, max_length: int) -> dict[str, Any]:
    """How many rows one split has (windows count), and their sizes in the unit of the task's inputs: sum, mean and largest
    after truncation, and what truncation cut."""
    ragged = next((rows for rows in columns.values() if rows[0].ndim == 1), None)
    lengths = np.ones(len(next(iter(columns.values()))), dtype=int) if ragged is None else np.array([*map(len, ragged)])
    before = np.array([int(length) for length in columns[SIZE_BEFORE]]) if SIZE_BEFORE in columns else lengths
    return {
        "num_rows": len(lengths),
        "num_tokens": int(lengths.sum()),
        "truncated_fraction": float((before > max_length).mean()) if SIZE_BEFORE in columns else 0.0,
        "mean_length": float(lengths.mean()),
        "max_length_seen": int(lengths.max()),
        "max_length_before_truncation": int(before.max()),
    }
