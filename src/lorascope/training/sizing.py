"""How many runs train together: as many as memory holds and as pays.

On a GPU a small model's update is bound by launching kernels, so a larger gang costs each run less at any size measured
(docs/performance.md); memory decides, from a probe of one run on its longest batch. A processor has no idle time to give
away, so there a gang's update is timed against a run's own, and kept only if it is faster: once a machine
(training/gang_decision.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from lorascope.engine.provenance import workers_on_device
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise

if TYPE_CHECKING:
    from lorascope.training.gang import Gang
    from lorascope.training.gang_decision import GangDecision
    from lorascope.training.member import Member

T = TypeVar("T")
LARGEST = {"cuda": 16, "cpu": 4, "mps": 4}
_LARGEST_PADDING = 1.15
_MEMORY_SHARE = 0.8
_LEAST_GAIN = 1.05
_COMPILE_FROM_UPDATES = 2500  # of all runs together


@dataclass(frozen=True)
class UpdateCost:
    """What an update costs. seconds: at the usual length; peak_bytes: at the longest, everything else included."""

    seconds: float
    peak_bytes: int


def partition(items: Sequence[T], *, member: Callable[[T], Member]) -> list[list[T]]:
    """Runs that can share batches: equal heads, and lengths so alike that sharing adds little padding."""
    groups: list[list[T]] = []
    ordered = sorted(items, key=lambda item: (_head(member(item)), usual_length(member(item))))
    for item in ordered:
        if groups and _head(member(groups[-1][0])) == _head(member(item)):
            lengths = [usual_length(member(other)) for other in [*groups[-1], item]]
            if len(lengths) * max(lengths) <= _LARGEST_PADDING * sum(lengths):
                groups[-1].append(item)
                continue
        groups.append([item])
    return groups


def split(items: Sequence[T], size: int) -> list[list[T]]:
    """As few groups of at most `size` as possible, as equal as possible."""
    count = -(-len(items) // size)
    return [[items[int(i)] for i in part] for part in np.array_split(np.arange(len(items)), count)]


def gang_size(
    members: Sequence[Member],
    *,
    device: str,
    limit: int | None,
    build: Callable[[Sequence[Member]], Gang],
    decision: GangDecision,
) -> tuple[int, UpdateCost | None]:
    """How many of the members to train together, and what one alone costs (None: they train alone, as was known before).

    limit: the study's `train.gang`. build: a gang of these members that is thrown away. decision: where a timing is kept,
    or found.
    """
    kind = torch.device(device).type
    most = min(len(members), limit or LARGEST[kind])
    is_timed = limit is None and kind != "cuda"
    together = decision.read() if is_timed else True
    if most == 1 or together is False:
        return 1, None
    alone = probe(build(members[:1]), device)
    if limit is None and kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        own = max(alone.peak_bytes - torch.cuda.memory_allocated(device), 1)
        room = min(free, total // workers_on_device())  # what others do not hold yet, they will want
        return max(1, min(most, int(_MEMORY_SHARE * room / own))), alone
    if together is None:
        whole = probe(build(members[:most]), device)
        together = most * alone.seconds > _LEAST_GAIN * whole.seconds
        decision.keep(together=together, runs=most, alone_seconds=alone.seconds, together_seconds=whole.seconds)
    return (most if together else 1), alone


def probe(gang: Gang, device: str) -> UpdateCost:
    """Two updates of a gang that is thrown away: on the longest batches, then on usual ones, which is timed."""
    reset_peak_memory(device)
    gang.rehearse([_rows(member, np.argsort(-np.asarray(member.columns.lengths))) for member in gang.members])
    peak = peak_memory_bytes(device)
    usual = [_rows(m, np.argsort(np.abs(np.asarray(m.columns.lengths) - usual_length(m)))) for m in gang.members]
    synchronise(device)
    start = time.perf_counter()
    gang.rehearse(usual)
    synchronise(device)
    return UpdateCost(time.perf_counter() - start, peak)


def pays_to_compile(members: Sequence[Member]) -> bool:
    """Whether fusing kernels saves more than compiling them takes (some 15 s, less once it is cached): decided by the
    plan, not by a clock, so that a repetition of the study computes the same numbers."""
    return sum(m.last_update - m.progress.update for m in members) >= _COMPILE_FROM_UPDATES


def usual_length(member: Member) -> int:
    """The padded length of an ordinary batch, tokens."""
    return member.reading.padded(int(np.median(member.columns.lengths)))


def _rows(member: Member, order: np.ndarray) -> np.ndarray:
    return order[: member.train.batch_size]


def _head(member: Member) -> str:
    return repr(member.task.head.shape)
