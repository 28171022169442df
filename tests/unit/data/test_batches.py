"""Batches: every row once, the same order for the same seed, and padding that length grouping really lowers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lorascope.data.batches import epoch_batches, evaluation_batches, padded_length, padding_share

LENGTHS = arrays(np.int64, st.integers(0, 300), elements=st.integers(1, 500))


@settings(deadline=None)
@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 9), grouped=st.booleans())
def test_an_epoch_holds_every_row_exactly_once(lengths: np.ndarray, batch_size: int, seed: int, grouped: bool) -> None:
    batches = epoch_batches(
        lengths,
        batch_size=batch_size,
        generator=np.random.default_rng(seed),
        sequence=np.random.default_rng(9),
        group_by_length=grouped,
    )
    rows = np.concatenate(batches) if batches else np.array([])
    assert sorted(rows) == list(range(len(lengths)))
    sizes = sorted((len(batch) for batch in batches), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert len(batches) == -(-len(lengths) // batch_size)


@settings(deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_the_same_seed_gives_the_same_order(lengths: np.ndarray, seed: int) -> None:
    first, second = (
        epoch_batches(lengths, batch_size=8, generator=np.random.default_rng(seed), sequence=np.random.default_rng(9))
        for _ in range(2)
    )
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


def test_the_next_epoch_of_one_generator_has_another_order() -> None:
    generator = np.random.default_rng(0)
    lengths = np.arange(1, 200)
    first, second = (epoch_batches(lengths, batch_size=8, generator=generator, sequence=generator) for _ in range(2))
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]


@pytest.mark.parametrize("grouped", [True, False])
def test_which_rows_share_a_batch_changes_from_epoch_to_epoch(grouped: bool) -> None:
    generator = np.random.default_rng(0)
    lengths = np.random.default_rng(1).integers(5, 60, size=4000)
    first, second = (
        {
            frozenset(batch.tolist())
            for batch in epoch_batches(
                lengths, batch_size=8, generator=generator, sequence=generator, group_by_length=grouped
            )
        }
        for _ in range(2)
    )
    assert not first & second


def test_grouped_batches_do_not_go_from_short_to_long() -> None:
    lengths = np.arange(1, 1601)
    batches = epoch_batches(
        lengths, batch_size=16, generator=np.random.default_rng(0), sequence=np.random.default_rng(9)
    )
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3


def test_grouping_by_length_at_least_halves_the_padding() -> None:
    lengths = np.random.default_rng(1).integers(5, 120, size=3000)
    grouped, shuffled = (
        padding_share(
            lengths,
            epoch_batches(
                lengths,
                batch_size=16,
                generator=np.random.default_rng(0),
                sequence=np.random.default_rng(9),
                group_by_length=group,
            ),
        )
        for group in (True, False)
    )
    assert grouped < shuffled / 2


@settings(deadline=None)
@given(lengths=LENGTHS, max_tokens=st.integers(1, 4000))
def test_evaluation_batches_hold_every_row_once_within_the_token_budget(lengths: np.ndarray, max_tokens: int) -> None:
    batches = evaluation_batches(lengths, max_tokens=max_tokens)
    rows = np.concatenate(batches) if batches else np.array([])
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * padded_length(int(lengths[batch].max())) <= max_tokens


def test_evaluation_starts_with_the_longest_batch() -> None:
    lengths = np.random.default_rng(1).integers(5, 120, size=300)
    assert lengths[evaluation_batches(lengths, max_tokens=1024)[0]].max() == lengths.max()


@settings(deadline=None)
@given(longest=st.integers(1, 5000), multiple=st.integers(1, 128))
def test_padded_length_is_the_next_multiple(longest: int, multiple: int) -> None:
    length = padded_length(longest, multiple)
    assert length % multiple == 0
    assert 0 <= length - longest < multiple


@settings(deadline=None)
@given(lengths=arrays(np.int64, st.integers(1, 100), elements=st.integers(1, 90)))
def test_padding_share_equals_the_share_of_masked_tokens(lengths: np.ndarray) -> None:
    batches = evaluation_batches(lengths, max_tokens=512)
    masks = [np.arange(padded_length(int(lengths[rows].max())))[None, :] < lengths[rows][:, None] for rows in batches]
    masked = sum(int((~mask).sum()) for mask in masks)
    assert padding_share(lengths, batches) == pytest.approx(masked / sum(mask.size for mask in masks))


def test_runs_that_share_a_sequence_meet_like_lengths_together() -> None:
    lengths = np.random.default_rng(1).integers(5, 120, size=3000)
    longest = [
        [
            int(lengths[batch].max())
            for batch in epoch_batches(
                lengths, batch_size=16, generator=np.random.default_rng(seed), sequence=np.random.default_rng(9)
            )
        ]
        for seed in range(5)
    ]
    apart = np.ptp(np.array(longest), axis=0)
    assert np.median(apart) <= 4
