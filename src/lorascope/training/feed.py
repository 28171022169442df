"""Batches of a gang, built ahead of the step by a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    CUDA), and "weights", float32 [runs * examples]: what each example's loss counts in its run's mean, 0 for one that only
    fills up.
    padded_tokens: of each run."""

    tensors: dict[str, Tensor]
    padded_tokens: int


@dataclass(frozen=True)
class Batch:
    """One update of a gang. real_tokens: one figure a run; padded_tokens: of each run."""

    micro_batches: list[MicroBatch]
    real_tokens: list[int]
    padded_tokens: int


def gang_batch(
    members: Sequence[Member],
    rows: Sequence[np.ndarray],
    *,
    round_up: Callable[[int], int],
    is_fixed_size: bool,
    pin: bool,
) -> Batch:
    """The batch of these rows, one array of rows a member. round_up: longest example -> padded length. is_fixed_size:
    whether a run's short last batch is filled up to the batch size (a captured step has one shape)."""
    micro = members[0].micro_batch_size
    size = members[0].train.batch_size if is_fixed_size else max(len(chosen) for chosen in rows)
    micro_batches = [
        _micro_batch(members, rows, slice(start, min(start + micro, size)), round_up=round_up, pin=pin)
        for start in range(0, size, micro)
    ]
    real = [int(_lengths(member, chosen).sum()) for member, chosen in zip(members, rows, strict=True)]
    return Batch(micro_batches, real, sum(micro_batch.padded_tokens for micro_batch in micro_batches))


def _micro_batch(
    members: Sequence[Member],
    rows: Sequence[np.ndarray],
    part: slice,
    *,
    round_up: Callable[[int], int],
    pin: bool,
) -> MicroBatch:
    examples = part.stop - part.start
    filled = [
        np.concatenate([own, np.repeat(chosen[:1], examples - len(own))]) for chosen in rows for own in (chosen[part],)
    ]
    longest = max(int(_lengths(member, own).max()) for member, own in zip(members, filled, strict=True))
    length = round_up(longest)
    arrays: dict[str, list[np.ndarray]] = {}
    for member, chosen, own in zip(members, rows, filled, strict=True):
        batch = member.reading.collate(member.columns.gather(own), length=length)
        weights = np.zeros(examples, dtype=np.float32)
        counts = member.weights(chosen)
        weights[: len(chosen[part])] = counts[part] / counts.sum()
        for name, array in {**batch, "weights": weights}.items():
            arrays.setdefault(name, []).append(array)
    tensors = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in arrays.items()}
    return MicroBatch({name: t.pin_memory() for name, t in tensors.items()} if pin else tensors, examples * length)


def _lengths(member: Member, rows: np.ndarray) -> np.ndarray:
    return np.asarray(member.columns.lengths)[rows]


class Feed:
    """The batches of the members' coming updates, in order. build: {member: update} -> Batch."""

    def __init__(self, build: Callable[[Mapping[Member, int]], Batch], updates: Mapping[Member, int]) -> None:
        self._build = build
        self._next = dict(updates)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Batch]] = deque()

    def take(self, last: Mapping[Member, int]) -> Batch:
        """The next batch. last: how many updates each member has in all; nothing is built beyond the first of them."""
        while len(self._ahead) <= _AHEAD and all(update < last[member] for member, update in self._next.items()):
            self._ahead.append(self._pool.submit(self._build, dict(self._next)))
            self._next = {member: update + 1 for member, update in self._next.items()}
        return self._ahead.popleft().result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
