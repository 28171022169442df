"""Probe examples: the fixed inputs on which all models of a comparison are looked at.

Every model sees the same examples in the same order, so a feature matrix has the same rows for all. The rows are a draw
without replacement that depends on the ids and a seed alone, neither on the order in which they are stored nor on the
model's tokenizer. In-task probes come from the task's test split, out-of-task probes from another task's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int

from lorascope.data.batches import ColumnUse
from lorascope.errors import StudyError
from lorascope.tasks.steps import ids_checksum

if TYPE_CHECKING:
    from lorascope.data.columns import ColumnStore, ColumnSubset, Examples
    from lorascope.study.measure import PoolingName
    from lorascope.tasks.task import Task

PROBE_EXAMPLES = 750
LEAST_EXAMPLES = 4
"""Debiased HSIC divides by n (n - 3) (Song et al. 2012, eq. 5)."""
PROBE_TOKENS = 1024
"""Gram matrices have a row and a column for each: twice the memory of 750 examples."""
_TOKENS_SEED = 0
_EXAMPLES_STREAM, _TOKENS_STREAM = 0x70726F62, 0x746F6B65  # "prob", "toke": draws of one seed for different purposes


@dataclass(frozen=True)
class Probe:
    """columns: one row of each example (its first window), sorted by id. ids_sha256: of those ids, in that order. seed: what
    drew them. num_available: how many examples there were to draw from."""

    columns: ColumnSubset
    ids_sha256: str
    seed: int
    num_available: int

    def __len__(self) -> int:
        return len(self.columns)


def choose_probe(columns: ColumnStore, count: int = PROBE_EXAMPLES, *, seed: int) -> Probe:
    """`count` examples of a tokenised split, or all if there are fewer; of one with several windows the first is read, so that
    the rows are independent and, for every model, of the same examples.

    A smaller probe of the same seed is part of a larger one. Raises StudyError below 4 examples, with which no debiased
    estimate exists.
    """
    by_id = np.unique(columns.ids, return_index=True)[1]
    if min(count, len(by_id)) < LEAST_EXAMPLES:
        found = f"{count} were asked for" if count < LEAST_EXAMPLES else f"the split has {len(by_id)}"
        raise StudyError(
            f"drift needs at least {LEAST_EXAMPLES} probe examples (debiased CKA divides by n - 3), but {found}",
            hint=f"raise measure.drift.examples (default {PROBE_EXAMPLES}), or use a task with a larger test split",
        )
    order = np.random.default_rng([_EXAMPLES_STREAM, seed]).permutation(len(by_id))
    subset = columns.subset(by_id[np.sort(order[:count])])
    return Probe(subset, ids_checksum(subset.ids), seed, len(by_id))


@dataclass(frozen=True)
class TokenSample:
    """Single real tokens of a probe, sorted by example and position: token i is at `positions[i]` of the probe's example
    `examples[i]`."""

    examples: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]

    def __len__(self) -> int:
        return len(self.examples)


def choose_tokens(lengths: Int[np.ndarray, " examples"], cap: int = PROBE_TOKENS, *, seed: int) -> TokenSample:
    """`cap` of the real tokens of examples with these lengths, or all if there are fewer, for features token by token.

    Drawn without replacement; special tokens count as tokens. Tokens of one example are not independent: intervals have
    to resample examples (`TokenSample.examples`).
    """
    lengths = np.asarray(lengths)
    total = int(lengths.sum())
    chosen = np.arange(total)
    if cap < total:
        chosen = np.sort(np.random.default_rng([_TOKENS_STREAM, seed]).choice(total, size=cap, replace=False))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    examples = np.searchsorted(starts, chosen, side="right") - 1
    return TokenSample(examples, chosen - starts[examples])


def class_labels(task: Task, columns: Examples) -> np.ndarray | None:
    """The class of each example by number; None for a task whose targets are no class."""
    if task.scoring.targets != (ColumnUse("label", "labels"),):
        return None
    labels = np.asarray(columns.values("label", np.arange(len(columns))))
    return labels if labels.dtype.kind in "iu" else None


Pooling = Literal["mean", "non-sink-mean", "decision-token"] | TokenSample
"""What a row of features is. mean: over the real tokens of an example. non-sink-mean: over those that are no attention sinks
of the base. decision-token: the one that a classification head reads, the last real token of a decoder, the first (CLS) of an
encoder. A TokenSample: these tokens, each a row of its own."""


def rows_of(pooling: PoolingName, columns: Examples) -> Pooling:
    """What a study's `pooling` means on these examples: "token" is a sample of their tokens."""
    return choose_tokens(np.asarray(columns.lengths), seed=_TOKENS_SEED) if pooling == "token" else pooling
