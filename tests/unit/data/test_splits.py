"""Splits: disjoint, stratified, reproducible, capped in proportion; what overlaps is dropped and counted."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from lorascope.data.raw import RawExamples, Strata
from lorascope.data.splits import SPLITS, content_keys, make_splits, stratified_sample
from lorascope.errors import DataError
from lorascope.study.spec import DataSpec


def examples(num_rows: int, *, prefix: str, share: int = 4) -> pd.DataFrame:
    """One in `share` rows has class 1."""
    return pd.DataFrame(
        {
            "example_id": [f"{prefix}-{row}" for row in range(num_rows)],
            "label": [int(row % share == 0) for row in range(num_rows)],
            "text": [f"{prefix} {row}" for row in range(num_rows)],
        }
    )


def raw_examples(splits: dict[str, pd.DataFrame], **fields: Any) -> RawExamples:
    strata = Strata("label", ("no", "yes"))
    return RawExamples(splits, {}, ("text",), "made here", strata, **fields)


def test_carved_splits_are_disjoint_complete_and_stratified() -> None:
    train = examples(400, prefix="a")
    splits = make_splits(raw_examples({"train": train}), DataSpec(), task="t")
    frames = splits.frames
    assert splits.duplicates == {"train~test": 0, "validation~test": 0, "train~validation": 0}
    ids = [example_id for name in SPLITS for example_id in frames[name]["example_id"]]
    assert sorted(ids) == sorted(train["example_id"])
    assert {name: len(frame) for name, frame in frames.items()} == {"train": 324, "validation": 36, "test": 40}
    for frame in frames.values():
        assert frame["label"].mean() == pytest.approx(0.25, abs=0.01)


def test_the_split_seed_alone_decides_the_carving() -> None:
    raw = raw_examples({"train": examples(400, prefix="a")})
    first, again, other = (make_splits(raw, DataSpec(split_seed=seed), task="t").frames for seed in (0, 0, 1))
    for name in SPLITS:
        pd.testing.assert_frame_equal(first[name], again[name])
    assert set(first["validation"]["example_id"]) != set(other["validation"]["example_id"])


def test_a_cap_on_training_leaves_validation_and_test_as_they_are() -> None:
    raw = raw_examples({"train": examples(400, prefix="a")})
    whole = make_splits(raw, DataSpec(), task="t").frames
    capped = make_splits(raw, DataSpec(train_examples=40), task="t").frames
    assert len(capped["train"]) == 40
    assert capped["train"]["label"].sum() == 10
    assert set(capped["train"]["example_id"]) <= set(whole["train"]["example_id"])
    for name in ("validation", "test"):
        pd.testing.assert_frame_equal(capped[name], whole[name])


def test_training_rows_that_stand_in_test_are_dropped_and_counted() -> None:
    train, test = examples(100, prefix="a"), examples(40, prefix="b")
    train.loc[[3, 8], "text"] = [" b 5", "b 6 "]
    splits = make_splits(raw_examples({"train": train, "test": test}), DataSpec(), task="t")
    assert splits.duplicates["train~test"] == splits.dropped["train~test"] == 2
    keys = {name: set(content_keys(splits.frames[name], ["text"])) for name in SPLITS}
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]
    assert len(splits.frames["test"]) == 40


def test_a_text_repeated_in_train_never_stands_in_train_and_validation() -> None:
    train = examples(200, prefix="a")
    train["text"] = [f"text {row // 2}" for row in range(200)]
    splits = make_splits(raw_examples({"train": train, "test": examples(40, prefix="b")}), DataSpec(), task="t")
    keys = {name: set(content_keys(splits.frames[name], ["text"])) for name in SPLITS}
    assert not keys["train"] & keys["validation"]
    assert splits.dropped["train~validation"] == splits.duplicates["train~validation"] > 0


def test_a_drop_that_would_cost_train_a_class_is_not_made() -> None:
    test = examples(40, prefix="b")
    train = examples(40, prefix="a", share=40)
    train.loc[0, "text"] = "b 0"
    validation = examples(20, prefix="c")
    raw = raw_examples({"train": train, "validation": validation, "test": test})
    splits = make_splits(raw, DataSpec(), task="t")
    assert splits.duplicates["train~test"] == 1
    assert splits.dropped["train~test"] == 0
    assert len(splits.frames["train"]) == 40


def test_splits_that_may_overlap_are_counted_and_kept() -> None:
    test = examples(40, prefix="b")
    raw = raw_examples({"train": examples(80, prefix="a"), "validation": test, "test": test}, disjoint=False)
    splits = make_splits(raw, DataSpec(), task="t")
    assert splits.duplicates == {"train~test": 0, "validation~test": 40, "train~validation": 0}
    assert splits.dropped["validation~test"] == 0
    pd.testing.assert_frame_equal(splits.frames["validation"], splits.frames["test"])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_fraction_that_leaves_nothing_is_refused(fraction: float) -> None:
    raw = raw_examples({"train": examples(400, prefix="a")})
    with pytest.raises(DataError, match=r"cannot be carved out of 400 training examples"):
        make_splits(raw, DataSpec(validation_fraction=fraction), task="t")


def test_a_stratified_sample_keeps_the_order_and_repeats_nothing() -> None:
    labels = examples(103, prefix="a")["label"].to_numpy()
    chosen = stratified_sample(labels, 50, seed=7).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 50
