"""`protocol: resplit`: the labelled files of a task pooled, and a test set of the wanted size carved out of them.

The one idea: what could tell a model something about a test example stays on one side. Examples that share a text are a
group and go together; where examples are parts of others (SST-2's phrases), only whole ones are carved, and what is a part of
a carved one is taken out of train and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lorascope.data.raw import RawExamples
from lorascope.errors import DataError
from lorascope.study.spec import DataSpec

ORDER = ("train", "validation", "test")
_SHORTFALL = 0.05
"""At most this share of its size may a carved split lack where groups do not add up to it."""


@dataclass(frozen=True)
class Resplit:
    """frames: train, validation and test. parts: "train~SPLIT" -> examples taken out of train as parts of that split's."""

    frames: dict[str, pd.DataFrame]
    parts: dict[str, int]


def resplit(raw: RawExamples, data: DataSpec, *, test_rows: int, task: str) -> Resplit:
    """A test set of `test_rows` examples and a validation set, out of all files of the source; the rest is train.

    Raises DataError where there are not enough examples to carve, or their groups are too large.
    """
    pool = _pool(raw)
    texts = _as_one_text(pool, raw.content)
    free = whole_texts(texts) if raw.has_parts else np.ones(len(pool), dtype=bool)
    groups = group_numbers([texts] if raw.has_parts else [_stripped(pool[column]) for column in raw.content])
    strata = np.zeros(len(pool), dtype=int) if raw.strata is None else pool[raw.strata.column].to_numpy()
    frames: dict[str, pd.DataFrame] = {}
    rest = np.ones(len(pool), dtype=bool)
    parts: dict[str, int] = {}
    generator = np.random.default_rng(data.split_seed)
    for name in ("test", "validation"):
        candidates = free & rest
        size = test_rows if name == "test" else round(candidates.sum() * data.validation_fraction)
        carved = _carve_groups(groups, strata, candidates, size=size, generator=generator)
        if carved is None:
            raise _too_few(name, size, groups, candidates, task=task, has_parts=raw.has_parts)
        frames[name] = pool.loc[carved].reset_index(drop=True)
        rest &= ~carved
        if raw.has_parts:
            inside = rest & parts_of(texts, [texts[row] for row in np.flatnonzero(carved)])
            parts[f"train~{name}"] = int(inside.sum())
            rest &= ~inside
    frames["train"] = pool.loc[rest].reset_index(drop=True)
    return Resplit(frames, parts)


def _pool(raw: RawExamples) -> pd.DataFrame:
    """All examples, in the order of the files. Ids that two files share get "-2", "-3" ..."""
    pool = pd.concat([raw.splits[name] for name in ORDER if name in raw.splits], ignore_index=True)
    copies = pool.groupby("example_id", sort=False).cumcount()
    ids = [f"{name}-{copy + 1}" if copy else name for name, copy in zip(pool["example_id"], copies, strict=True)]
    return pool.assign(example_id=ids)


def _stripped(column: Iterable[object]) -> list[str]:
    return [value.strip() if isinstance(value, str) else repr(value) for value in column]


def _as_one_text(frame: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The words of each example, with one space in between."""
    parts = zip(*(_stripped(frame[column]) for column in columns), strict=True)
    return [" ".join(" ".join(part).split()) for part in parts]


# --------------------------------------------------------------------------------------------------------------- groups


def group_numbers(columns: Sequence[Sequence[str]]) -> np.ndarray:
    """int64 [examples]: which group each belongs to. Two examples that share a text, in any of the columns, are of one."""
    parent = list(range(len(columns[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for column in columns:
        for row, text in enumerate(column):
            other = root(first.setdefault(text, row))
            parent[max(other, root(row))] = min(other, root(row))
    return np.unique([root(row) for row in range(len(parent))], return_inverse=True)[1].astype(np.int64)


def _carve_groups(
    groups: np.ndarray, strata: np.ndarray, candidates: np.ndarray, *, size: int, generator: np.random.Generator
) -> np.ndarray | None:
    """bool [examples]: whole groups of candidates, drawn at random, the strata in proportion; None if it cannot be done."""
    counts = np.bincount(strata[candidates], minlength=int(strata.max()) + 1)
    if not 0 < size < counts.sum():
        return None
    quota, left = _in_proportion(counts, size), size
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    slack = max(len(mine) for mine in members) - 1  # none where every example is a group of its own
    carved = np.zeros(len(groups), dtype=bool)
    for group in generator.permutation(len(members)):
        mine = members[group]
        wanted = np.bincount(strata[mine], minlength=len(quota))
        if candidates[mine].all() and len(mine) <= left and (wanted <= quota + slack).all():
            carved[mine] = True
            quota -= wanted
            left -= len(mine)
    is_lost = (np.bincount(strata[candidates & ~carved], minlength=len(quota)) == 0) & (counts > 0)
    return None if left > min(slack, _SHORTFALL * size) or is_lost.any() else carved


def _in_proportion(counts: np.ndarray, size: int) -> np.ndarray:
    """`size` divided in proportion to `counts`, by largest remainders."""
    exact = counts * size / counts.sum()
    quota = np.floor(exact).astype(int)
    for stratum in np.argsort(quota - exact, kind="stable")[: size - quota.sum()]:
        quota[stratum] += 1
    return quota


def _too_few(
    name: str, size: int, groups: np.ndarray, candidates: np.ndarray, *, task: str, has_parts: bool
) -> DataError:
    there = int(candidates.sum())
    what = "whole sentences" if has_parts else "examples"
    largest = int(np.bincount(groups[candidates]).max(initial=0))
    grouped = f", of which {largest} share a text and stay together" if largest > 1 else ""
    return DataError(
        f"task `{task}`: a {name} set of {size} cannot be carved out of {there} {what}{grouped}",
        hint="Lower the task's `test_rows`."
        if name == "test"
        else "Lower the task's `test_rows`, or change data.validation_fraction.",
    )


# ---------------------------------------------------------------------------------------------------------------- parts


def whole_texts(texts: Sequence[str]) -> np.ndarray:
    """bool [texts]: which are a part of no longer one, word by word. texts: words with one space in between."""
    lengths = [text.count(" ") for text in texts]
    known: set[str] = set()
    whole: set[str] = set()
    for row in sorted(range(len(texts)), key=lambda row: -lengths[row]):
        if texts[row] not in known:
            whole.add(texts[row])
            known.update(_runs_of_words(texts[row]))
    return np.array([text in whole for text in texts], dtype=bool)


def parts_of(texts: Sequence[str], wholes: Iterable[str]) -> np.ndarray:
    """bool [texts]: which are a part of one of `wholes`, or equal to it."""
    known = {run for whole in wholes for run in _runs_of_words(whole)}
    return np.array([text in known for text in texts], dtype=bool)


def _runs_of_words(text: str) -> Iterator[str]:
    words = text.split(" ")
    return (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
