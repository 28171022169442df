"""Which padded lengths a gang uses: few, so that few steps are captured, and where they waste least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lorascope.data.batches import padded_length

LARGEST_COUNT = 8
_UPDATES_A_BUCKET = 60


def choose_buckets(lengths: Sequence[int], *, longest: int, count: int, multiple: int = 8) -> list[int]:
    """At most `count` lengths, ascending, the last one `longest` rounded up, that pad `lengths` least in total.

    lengths: the longest example of each batch, one an update. Dynamic programming over the distinct rounded lengths.
    """
    values, frequencies = np.unique([padded_length(length, multiple) for length in lengths], return_counts=True)
    last = padded_length(longest, multiple)
    if values[-1] < last:
        values, frequencies = np.append(values, last), np.append(frequencies, 0)
    # cost[c][j]: tokens computed for the j + 1 shortest values with c + 1 buckets, the last of which is values[j].
    batches = np.cumsum(frequencies)
    cost = values * batches
    chosen = [[[int(value)] for value in values]]
    for _ in range(1, min(count, len(values))):
        before, best, paths = cost, cost.copy(), []
        for j in range(len(values)):
            options = [before[i] + values[j] * (batches[j] - batches[i]) for i in range(j)]
            i = int(np.argmin(options)) if options else -1
            if options and options[i] < best[j]:
                best[j] = options[i]
                paths.append([*chosen[-1][i], int(values[j])])
            else:
                paths.append(chosen[-1][j])
        cost = best
        chosen.append(paths)
    return chosen[-1][-1]


def bucket_count(updates: int) -> int:
    """How many lengths are worth capturing for a gang of so many updates."""
    return int(np.clip(updates // _UPDATES_A_BUCKET, 1, LARGEST_COUNT))


def rounding_to(buckets: Sequence[int]) -> Callable[[int], int]:
    """Longest example -> the smallest bucket that holds it."""
    ascending = np.asarray(sorted(buckets))

    def round_up(longest: int) -> int:
        return int(ascending[np.searchsorted(ascending, longest)])

    return round_up
