"""Train, validation and test: carved once from a fixed seed, disjoint, stratified, and checked.

The one idea: whatever could leak from a later split into an earlier one is taken out of the earlier one, counted, and
recorded; a user's own files that overlap are refused instead, because only their owner knows which side is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lorascope.data.pooling import resplit
from lorascope.data.raw import RawExamples
from lorascope.data.tables import name_rows
from lorascope.errors import DataError
from lorascope.study.spec import DataSpec

SPLITS = ("train", "validation", "test")
PAIRS = (("train", "test"), ("validation", "test"), ("train", "validation"))


@dataclass
class Splits:
    """frames: the three splits. duplicates: rows of the first split whose texts also stand in the second, as found.
    dropped: how many of them were taken out of the first. parts: examples taken out of the first that are parts of examples
    of the second."""

    frames: dict[str, pd.DataFrame]
    duplicates: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)


def make_splits(raw: RawExamples, data: DataSpec, *, task: str, test_rows: int | None = None) -> Splits:
    """The three splits of a source, each with a fresh index, in the order of the source.

    test_rows: pool the files and carve so many test examples (`protocol: resplit`). Raises DataError when a split is empty,
    has one class only, lacks a class in training, or overlaps another one in a user's own files.
    """
    _check_ids(raw.splits, task=task)
    if test_rows is None:
        if raw.duplicates_are_errors:
            _refuse_overlap(raw, task=task)
        splits = Splits({name: frame.reset_index(drop=True) for name, frame in raw.splits.items()})
    else:
        pooled = resplit(raw, data, test_rows=test_rows, task=task)
        splits = Splits(pooled.frames, parts=pooled.parts)
    frames = splits.frames
    _check_classes(frames, raw, task=task)
    for name in ("test", "validation"):
        if name not in frames:
            frames["train"], frames[name] = _carve(frames["train"], data=data, raw=raw, task=task, name=name)
        _separate(splits, raw, task=task)
    caps = dict(zip(SPLITS, (data.train_examples, data.validation_examples, data.test_examples), strict=True))
    for name, cap in caps.items():
        if cap is not None and cap < len(frames[name]):
            frames[name] = frames[name].loc[stratified_sample(_strata(frames[name], raw), cap, seed=data.split_seed)]
    _check_classes(frames, raw, task=task)
    splits.frames = {name: frames[name].reset_index(drop=True) for name in SPLITS}
    return splits


def stratified_sample(strata: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Positions of `size` examples without repetition, strata in proportion, ascending."""
    from sklearn.utils import resample

    positions = np.arange(len(strata))
    chosen = resample(positions, replace=False, n_samples=size, stratify=strata, random_state=seed)
    return np.sort(np.asarray(chosen))


def _strata(frame: pd.DataFrame, raw: RawExamples) -> np.ndarray:
    """The stratum of each example; examples without classes are of one."""
    return np.zeros(len(frame)) if raw.strata is None else frame[raw.strata.column].to_numpy()


def _carve(
    train: pd.DataFrame, *, data: DataSpec, raw: RawExamples, task: str, name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(what stays in train, the carved split)"""
    size = round(len(train) * data.validation_fraction)
    refuse_to_carve = _reason_against_carving(train, size, raw=raw)
    if refuse_to_carve is not None:
        raise DataError(
            f"task `{task}`: a {name} set of {size} cannot be carved out of {len(train)} training examples"
            f"{refuse_to_carve}",
            hint=f"Name a {name} file, add examples, or change data.validation_fraction "
            f"({data.validation_fraction:g}).",
        )
    carved = stratified_sample(_strata(train, raw), size, seed=data.split_seed)
    stays = np.setdiff1d(np.arange(len(train)), carved)
    return train.iloc[stays].reset_index(drop=True), train.iloc[carved].reset_index(drop=True)


def _reason_against_carving(train: pd.DataFrame, size: int, *, raw: RawExamples) -> str | None:
    """Why `size` examples cannot be taken out of train, as the end of a sentence; None if they can."""
    if raw.strata is None:
        return None if 1 <= size < len(train) else ""
    names = raw.strata.names
    counts = np.bincount(train[raw.strata.column], minlength=len(names))
    if counts.min() >= 2 and len(names) <= size <= len(train) - len(names):
        return None
    return f" (the rarest class, `{names[int(counts.argmin())]}`, has {counts.min()})"


def content_keys(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """One string an example: its texts without the white space around them, other values as they are. Equal keys are
    duplicates."""
    parts = (
        [value.strip() if isinstance(value, str) else repr(value) for value in frame[column]] for column in columns
    )
    return ["\x1f".join(row) for row in zip(*parts, strict=True)]


def _shared_rows(first: pd.DataFrame, second: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """bool [examples of first]: whose texts also stand in `second`."""
    known = set(content_keys(second, columns))
    return np.array([key in known for key in content_keys(first, columns)], dtype=bool)


def _separate(splits: Splits, raw: RawExamples, *, task: str) -> None:
    """Count duplicates between the splits that exist by now and drop them from the earlier split.

    A drop that would cost train or validation a whole class is not made; the counts then show what remained. Raises DataError
    instead for a source whose owner asked for the drop.
    """
    frames = splits.frames
    for first, second in PAIRS:
        if first not in frames or second not in frames:
            continue
        pair = f"{first}~{second}"
        shared = _shared_rows(frames[first], frames[second], raw.content)
        splits.duplicates[pair] = splits.duplicates.get(pair, 0) + int(shared.sum()) - _left(splits, pair)
        splits.dropped.setdefault(pair, 0)
        kept = frames[first].loc[~shared]
        if not raw.disjoint or not shared.any():
            continue
        if _keeps_every_class(kept, frames[first], raw):
            frames[first] = kept.reset_index(drop=True)
            splits.dropped[pair] += int(shared.sum())
        elif not raw.keeps_some:
            raise DataError(
                f"task `{task}`: without the {int(shared.sum())} {first} examples that also stand in {second}, {first} would "
                "lose a class",
                hint=f"Add examples of every class to the {first} file that stand in no other.",
            )


def _keeps_every_class(kept: pd.DataFrame, whole: pd.DataFrame, raw: RawExamples) -> bool:
    if raw.strata is None:
        return not kept.empty
    return set(kept[raw.strata.column]) == set(whole[raw.strata.column])


def _left(splits: Splits, pair: str) -> int:
    """Duplicates that an earlier pass found and could not drop: they are found again now."""
    return splits.duplicates.get(pair, 0) - splits.dropped.get(pair, 0)


def _refuse_overlap(raw: RawExamples, *, task: str) -> None:
    """Raises DataError naming the rows of the files, which their frames have as their index."""
    for first, second in PAIRS:
        if first not in raw.splits or second not in raw.splits:
            continue
        earlier, later = raw.splits[first], raw.splits[second]
        shared = np.flatnonzero(_shared_rows(earlier, later, raw.content))
        if len(shared):
            key = content_keys(earlier.iloc[shared[:1]], raw.content)[0]
            twin = later.index[content_keys(later, raw.content).index(key)]
            raise DataError(
                f"task `{task}`: {len(shared)} of the {first} examples also stand in the {second} file "
                f"({name_rows(earlier.index[shared].tolist())} of {first}; the first is row {twin + 1} of {second})",
                hint=f"A score on examples seen before means nothing: remove these rows from the {first} file, or set "
                f"`duplicates: drop` in the task, which takes them out of {first} and counts them in the report.",
            )


def _check_ids(frames: Mapping[str, pd.DataFrame], *, task: str) -> None:
    for name, frame in frames.items():
        ids = frame["example_id"]
        if not ids.is_unique:
            twice = np.flatnonzero(ids.duplicated(keep=False))
            rows = name_rows(ids.index[twice].tolist())
            raise DataError(
                f"task `{task}`: the example id {ids.tolist()[twice[0]]} stands for {rows} of {name}",
                hint="Results are paired by example, so every example needs an id of its own (`idx` in GLUE's files).",
            )


def _check_classes(frames: Mapping[str, pd.DataFrame], raw: RawExamples, *, task: str) -> None:
    for name, frame in frames.items():
        if frame.empty:
            raise DataError(f"task `{task}`: the {name} split is empty", hint="Every split needs examples.")
        if raw.strata is None:
            continue
        names, present = raw.strata.names, sorted(set(frame[raw.strata.column]))
        if len(present) == 1:
            raise DataError(
                f"task `{task}`: every {name} example has the same class, `{names[present[0]]}`",
                hint="A classifier needs examples of at least two classes in every split.",
            )
        if name == "train" and len(present) < len(names):
            absent = [label for index, label in enumerate(names) if index not in present]
            raise DataError(
                f"task `{task}`: no training example has the class {', '.join(f'`{label}`' for label in absent)}",
                hint="Add such examples to train, raise data.train_examples, or take the class out of `labels`.",
            )
