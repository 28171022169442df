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
from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, task_key, task_spec, verify_files
from lorascope.data.splits import SPLITS, Splits, make_splits
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.errors import DataError
from lorascope.registry import PROCESSORS, TASKS, resolve
from lorascope.study.spec import DataSpec
from lorascope.tasks.classification import Classification
from lorascope.tasks.description import task_from_result
from lorascope.tasks.task import Task

TOKENISE_CHUNK = 2000


def prepare_data(context: StepContext) -> dict[str, Any]:
    """Write {train,validation,test}.parquet: example_id (str), label (int64) and the text columns.

    params: {"task": TaskSpec dump, "source": fingerprint, "protocol", "data": DataSpec dump}; locations: role -> path.
    Raises DataError for examples that cannot be used and for files that changed since the study was planned.
    """
    params = context.step.params
    spec = task_spec(params["task"])
    source = SourceDescription(params["source"], context.step.locations)
    verify_files(source)
    key = task_key(spec)
    kind: type[Classification] = resolve(TASKS, key)
    raw = kind.read(spec, source=source, protocol=params["protocol"])
    data = DataSpec.model_validate(params["data"])
    splits = make_splits(raw, data, task=spec.name)
    for name, frame in splits.frames.items():
        frame.to_parquet(context.out / f"{name}.parquet", index=False, compression="zstd")
    if raw.disjoint:
        _notice_overlap(splits, context)
    return {"task": _describe_task(spec.name, key, raw), **_describe_splits(splits, raw), "source": raw.source}


def _describe_task(name: str, key: str, raw: RawExamples) -> dict[str, Any]:
    return {
        "class": key,
        "name": name,
        "num_labels": len(raw.label_names),
        "label_names": list(raw.label_names),
        "text_columns": list(raw.text_columns),
        "metrics": list(raw.metrics),
    }


def _describe_splits(splits: Splits, raw: RawExamples) -> dict[str, Any]:
    frames = splits.frames
    return {
        "num_examples": {name: len(frame) for name, frame in frames.items()},
        "label_counts": {
            name: {
                label: int(np.sum(frame["label"].to_numpy() == index)) for index, label in enumerate(raw.label_names)
            }
            for name, frame in frames.items()
        },
        "duplicates": splits.duplicates,
        "duplicates_dropped": splits.dropped,
        "example_ids_sha256": {name: ids_checksum(frame["example_id"].tolist()) for name, frame in frames.items()},
        "sha256": {name: content_checksum(frame) for name, frame in frames.items()},
    }


def ids_checksum(ids: Iterable[str]) -> str:
    """sha256 of the example ids in their order: two arms scored on the same examples have the same."""
    return hashlib.sha256("\n".join(str(example_id) for example_id in ids).encode()).hexdigest()


def content_checksum(frame: pd.DataFrame) -> str:
    """sha256 of the examples themselves, whatever library or compression wrote the file."""
    digest = hashlib.sha256()
    for row in frame.itertuples(index=False):
        digest.update(json.dumps(list(row), ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


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
    load_tokenizer = resolve(PROCESSORS, "text")
    tokenizer = load_tokenizer(params["model"], locations=context.step.locations, cache_dir=context.cache_dir)
    assert tokenizer.pad_token_id is not None, "load_tokenizer gives every tokenizer a padding token"
    total = sum(data.result["num_examples"].values())
    result: dict[str, Any] = {
        "max_length": params["max_length"], "num_tokens": {}, "truncated_fraction": {}, "mean_length": {},
        "max_length_seen": {}, "max_length_before_truncation": {},
    }  # fmt: skip
    done = 0
    for split in SPLITS:
        frame = pd.read_parquet(data.file(f"{split}.parquet"))
        columns: Columns = {}
        for start in range(0, len(frame), TOKENISE_CHUNK):
            chunk = frame.iloc[start : start + TOKENISE_CHUNK]
            for name, rows in tokenise_frame(chunk, task, tokenizer, max_length=params["max_length"]).items():
                columns.setdefault(name, []).extend(rows)
            done += len(chunk)
            context.emit(StepProgress(step=context.step.id, done=done, total=total, unit="example"))
        _refuse_final_padding(columns, frame, pad_token_id=tokenizer.pad_token_id, split=split)
        ColumnStore.write(context.out / split, columns, frame["example_id"].tolist())
        for name, value in measure_lengths(columns, max_length=params["max_length"]).items():
            result[name][split] = value
    return result


def tokenise_frame(frame: pd.DataFrame, task: Task, tokenizer: Any, *, max_length: int) -> Columns:
    """The columns of `Task.tokenise` for the rows of a prepared split."""
    return task.tokenise(frame.to_dict("records"), tokenizer, max_length=max_length)


def measure_lengths(columns: Mapping[str, Sequence[np.ndarray]], *, max_length: int) -> dict[str, Any]:
    """Tokens of one split: their number, mean and longest after truncation, and what truncation cut."""
    lengths = np.array([len(row) for row in columns["input_ids"]])
    before = np.array([int(length) for length in columns["num_tokens_before_truncation"]])
    return {
        "num_tokens": int(lengths.sum()),
        "truncated_fraction": float((before > max_length).mean()),
        "mean_length": float(lengths.mean()),
        "max_length_seen": int(lengths.max()),
        "max_length_before_truncation": int(before.max()),
    }


def _refuse_final_padding(columns: Columns, frame: pd.DataFrame, *, pad_token_id: int, split: str) -> None:
    ends = [row for row, ids in enumerate(columns["input_ids"]) if len(ids) == 0 or int(ids[-1]) == pad_token_id]
    if ends:
        named = ", ".join(frame["example_id"].iloc[ends[:5]])
        raise DataError(
            f"{len(ends)} {split} examples end in the tokenizer's padding token ({pad_token_id}): {named}",
            hint="The last real token could not be told from padding. Remove that token's text from the examples, or "
            "give the model a padding token of its own.",
        )
