"""Which examples go together, and the padded batch that is made of them.

Batches of rows are deterministic and grouped by length, so that little padding is computed.

Padding all of GLUE to 384 tokens wastes 5 to 20 times the work. Training sorts by length only inside mega-batches of
shuffled rows, so the order stays random; evaluation sorts everything and bounds the padded tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.data.columns import Batch

MASK = "attention_mask"

MEGA_BATCH = 50


@dataclass(frozen=True)
class ColumnUse:
    """What a column becomes in a batch. column: its name in the store. key: its name in a batch. fill: what stands behind
    the end of a shorter row; None: the model's pad token. A column that is not ragged is stacked as it is."""

    column: str
    key: str
    fill: int | None = 0


def padded_batch(
    columns: Mapping[str, Sequence[np.ndarray]], uses: Sequence[ColumnUse], *, pad_token_id: int | None, length: int
) -> Batch:
    """One batch of these rows: whole numbers as int64, other numbers as float32, ragged columns padded on the right.

    A batch with ragged columns has an attention mask too, int64 [rows, length]: 1 where the first of them has a value.
    uses: the columns to take; those that the rows lack are left out. length: at least the longest row's.
    """
    batch: Batch = {}
    mask = None
    for use in uses:
        if use.column not in columns:
            continue
        rows = columns[use.column]
        if rows[0].ndim != 1:
            batch[use.key] = _as_number(np.stack(rows))
            continue
        fill = pad_token_id if use.fill is None else use.fill
        assert fill is not None, f"{use.column} is filled up with the pad token, and the model has none"
        lengths = np.array([len(row) for row in rows])
        assert lengths.max(initial=0) <= length, f"padded length {length} is below the longest example"
        batch[use.key] = _pad_right(rows, length=length, fill=fill)
        if mask is None:
            mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
    if mask is not None:
        batch[MASK] = mask
    return batch


def _pad_right(rows: Sequence[np.ndarray], *, length: int, fill: int) -> np.ndarray:
    """[rows, length], every row filled up with `fill`."""
    padded = np.full((len(rows), length), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _as_number(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32)


def epoch_batches(
    lengths: np.ndarray,
    *,
    batch_size: int,
    generator: np.random.Generator,
    sequence: np.random.Generator,
    group_by_length: bool = True,
) -> list[np.ndarray]:
    """One epoch: every row exactly once, in batches of `batch_size` (one may be smaller), in a shuffled order.

    lengths: tokens [examples]. generator: decides which rows go together. sequence: decides which batch comes when; runs
    that share it meet batches of like lengths at the same time, whatever their rows, so a gang of them pads little. The
    same lengths and the same states of both give the same batches.
    """
    order = generator.permutation(len(lengths))
    if group_by_length:
        mega = batch_size * MEGA_BATCH
        chunks = [order[start : start + mega] for start in range(0, len(order), mega)]
        order = (
            np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]) if chunks else order
        )
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in sequence.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, *, max_tokens: int, multiple: int = 8) -> list[np.ndarray]:
    """Every row once, longest first, at most `max_tokens` padded tokens a batch (one row alone may exceed it).

    Longest first: a batch that does not fit into memory fails at once, not at the end.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, max_tokens // padded_length(int(lengths[order[start]]), multiple))
        batches.append(order[start : start + size])
        start += size
    return batches


def padded_length(longest: int, multiple: int = 8) -> int:
    """The length a batch is padded to: the next multiple, so that few different shapes occur."""
    return max(multiple, -(-longest // multiple) * multiple)


def padding_share(lengths: np.ndarray, batches: Sequence[np.ndarray], *, multiple: int = 8) -> float:
    """The fraction of the tokens computed over these batches that is padding, 0-1."""
    real = sum(int(lengths[rows].sum()) for rows in batches)
    computed = sum(len(rows) * padded_length(int(lengths[rows].max()), multiple) for rows in batches)
    return 1 - real / computed
