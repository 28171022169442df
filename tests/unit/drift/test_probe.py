"""Which examples and tokens the models are looked at on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lorascope.data.columns import ColumnStore
from lorascope.drift.probe import PROBE_TOKENS, TokenSample, choose_probe, choose_tokens, rows_of
from lorascope.errors import StudyError
from lorascope.tasks.steps import ids_checksum


def store(directory: Path, ids: list[str]) -> ColumnStore:
    """Example i has the tokens [number in its id] * (1 + number % 5)."""
    numbers = [int(example_id.partition("-")[2]) for example_id in ids]
    rows = [np.full(1 + number % 5, number, dtype=np.int32) for number in numbers]
    ColumnStore.write(directory, {"input_ids": rows}, ids)
    return ColumnStore.open(directory)


@pytest.fixture
def columns(tmp_path: Path) -> ColumnStore:
    return store(tmp_path / "test", [f"test-{number}" for number in range(200)])


def test_a_probe_is_sorted_by_id_and_holds_each_example_once(columns: ColumnStore) -> None:
    probe = choose_probe(columns, 50, seed=1)
    ids = list(probe.columns.ids)
    assert len(probe) == 50 and ids == sorted(set(ids)) and set(ids) < set(columns.ids)
    assert probe.ids_sha256 == ids_checksum(ids) and probe.num_available == 200
    for example_id, (tokens,) in zip(ids, zip(probe.columns.gather(range(50))["input_ids"], strict=True), strict=True):
        assert f"test-{tokens[0]}" == example_id


def test_a_probe_depends_on_ids_and_seed_and_not_on_the_order_of_the_store(
    columns: ColumnStore, tmp_path: Path
) -> None:
    shuffled = np.random.default_rng(0).permutation(columns.ids).tolist()
    other = store(tmp_path / "shuffled", shuffled)
    assert choose_probe(columns, 50, seed=1).ids_sha256 == choose_probe(other, 50, seed=1).ids_sha256
    assert choose_probe(columns, 50, seed=1).ids_sha256 != choose_probe(columns, 50, seed=2).ids_sha256


def test_of_an_example_with_windows_the_first_is_in_the_probe(columns: ColumnStore, tmp_path: Path) -> None:
    rows = [np.array([row, window], dtype=np.int32) for row in range(200) for window in range(1 + row % 3)]
    ids = [f"test-{row[0]}" for row in rows]
    ColumnStore.write(tmp_path / "windows", {"input_ids": rows}, ids)
    probe = choose_probe(ColumnStore.open(tmp_path / "windows"), 50, seed=1)
    assert probe.ids_sha256 == choose_probe(columns, 50, seed=1).ids_sha256
    assert {int(row[1]) for row in probe.columns.gather(range(50))["input_ids"]} == {0}


def test_a_smaller_probe_is_part_of_a_larger_one(columns: ColumnStore) -> None:
    small, large = choose_probe(columns, 20, seed=1), choose_probe(columns, 60, seed=1)
    assert set(small.columns.ids) < set(large.columns.ids)


def test_a_probe_of_a_small_split_is_the_whole_split(columns: ColumnStore) -> None:
    probe = choose_probe(columns, seed=1)
    assert list(probe.columns.ids) == sorted(columns.ids)


def test_examples_are_drawn_evenly(columns: ColumnStore) -> None:
    """Each of 200 examples is in a probe of 50 with probability 1/4: over 400 seeds 100 times, sd 8.7."""
    counts = dict.fromkeys(columns.ids, 0)
    for seed in range(400):
        for example_id in choose_probe(columns, 50, seed=seed).columns.ids:
            counts[example_id] += 1
    deviations = (np.array(list(counts.values())) - 100) / 8.66
    assert np.abs(deviations).max() < 4.5 and 0.8 < deviations.std() < 1.2


def test_fewer_than_four_examples_are_refused(columns: ColumnStore, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"at least 4 probe examples .* but 3 were asked for"):
        choose_probe(columns, 3, seed=1)
    with pytest.raises(StudyError, match="but the split has 3"):
        choose_probe(store(tmp_path / "few", ["a-1", "a-2", "a-3"]), seed=1)
    assert len(choose_probe(columns, 4, seed=1)) == 4


def test_chosen_tokens_are_real_sorted_and_distinct() -> None:
    lengths = np.array([3, 1, 0, 5, 2])
    everything = choose_tokens(lengths, 100, seed=0)
    expected = [(example, position) for example, length in enumerate(lengths) for position in range(length)]
    assert list(zip(everything.examples.tolist(), everything.positions.tolist(), strict=True)) == expected
    some = choose_tokens(lengths, 6, seed=0)
    pairs = list(zip(some.examples.tolist(), some.positions.tolist(), strict=True))
    assert len(some) == 6 and pairs == sorted(set(pairs)) and set(pairs) < set(expected)
    assert pairs != list(zip(*(a.tolist() for a in vars(choose_tokens(lengths, 6, seed=1)).values()), strict=True))


def test_pooling_by_token_draws_a_fixed_sample_of_tokens():
    columns = SimpleNamespace(lengths=np.full(300, 7))
    assert [rows_of(pooling, columns) for pooling in ("mean", "decision-token")] == ["mean", "decision-token"]
    one, two = (rows_of("token", columns) for _ in range(2))
    assert isinstance(one, TokenSample) and isinstance(two, TokenSample)
    assert len(one) == PROBE_TOKENS < 300 * 7
    np.testing.assert_array_equal(one.examples, two.examples)
    np.testing.assert_array_equal(one.positions, two.positions)
