"""Batches of a gang, built ahead of the step by a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorascope.training.member import Member

_AHEAD = 3


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of a gang. tensors: the task's arrays, [runs * examples, ...], run by run, on the host (pinned for
    CUDA), and "weights", float32 [runs * examples]: what each example's loss counts, 0 for one that only fills up."""

    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One update of a gang. length: tokens a row is padded to. real_tokens, padded_tokens: one figure a run."""

    length: int
    micro_batches: list[MicroBatch]
    real_tokens: list[int]
    padded_tokens: list[int]


def build_batch(
    members: Sequence[Member],
    updates: Sequence[int],
    *,
    pad_token_id: int,
    round_up: Callable[[int], int],
    is_fixed_size: bool,
    pin: bool,
) -> Batch:
    """The batch of each member's update. round_up: longest example -> padded length. is_fixed_size: whether a run's short
    last batch is filled up to the batch size (a captured step has one shape)."""
    rows = [member.rows(update) for member, update in zip(members, updates, strict=True)]
    return gang_batch(members, rows, pad_token_id=pad_token_id, round_up=round_up, is_fixed_size=is_fixed_size, pin=pin)


def gang_batch(
    members: Sequence[Member],
    rows: Sequence[np.ndarray],
    *,
    pad_token_id: int,
    round_up: Callable[[int], int],
    is_fixed_size: bool,
    pin: bool,
) -> Batch:
    """The batch of these rows, one array of rows a member."""
    lengths = [np.asarray(member.columns.lengths)[chosen] for member, chosen in zip(members, rows, strict=True)]
    length = round_up(max(int(own.max()) for own in lengths))
    micro = members[0].micro_batch_size
    size = members[0].train.batch_size if is_fixed_size else max(len(chosen) for chosen in rows)
    micro_batches = [
        _micro_batch(members, rows, slice(start, min(start + micro, size)), length, pad_token_id, pin)
        for start in range(0, size, micro)
    ]
    real = [int(own.sum()) for own in lengths]
    return Batch(length, micro_batches, real, [size * length] * len(members))


def _micro_batch(
    members: Sequence[Member], rows: Sequence[np.ndarray], part: slice, length: int, pad_token_id: int, pin: bool
) -> MicroBatch:
    arrays: dict[str, list[np.ndarray]] = {"weights": []}
    examples = part.stop - part.start
    for member, chosen in zip(members, rows, strict=True):
        own = chosen[part]
        filled = np.concatenate([own, np.full(examples - len(own), chosen[0], dtype=chosen.dtype)])
        batch = member.task.collate(member.columns.gather(filled), pad_token_id=pad_token_id, length=length)
        for name, array in batch.items():
            arrays.setdefault(name, []).append(array)
        weights = np.zeros(examples, dtype=np.float32)
        weights[: len(own)] = 1 / len(chosen)
        arrays["weights"].append(weights)
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in arrays.items()}
    return MicroBatch({name: t.pin_memory() for name, t in tensors.items()} if pin else tensors)


class Feed:
    """The batches of the members' coming updates, in order. build: (updates, one a member) -> Batch."""

    def __init__(self, build: Callable[[list[int]], Batch], updates: Sequence[int]) -> None:
        self._build = build
        self._next = list(updates)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Batch]] = deque()

    def take(self, last: Sequence[int]) -> Batch:
        """The next batch. last: how many updates each member has in all; nothing is built beyond the first of them."""
        while len(self._ahead) <= _AHEAD and all(n < end for n, end in zip(self._next, last, strict=True)):
            self._ahead.append(self._pool.submit(self._build, list(self._next)))
            self._next = [n + 1 for n in self._next]
        return self._ahead.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
