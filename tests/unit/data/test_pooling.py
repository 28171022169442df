"""`protocol: resplit`: a larger test set, whose groups stay together and of which train holds no part."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from lorascope.data.pooling import group_numbers, parts_of, whole_texts
from lorascope.data.raw import RawExamples, Strata
from lorascope.data.splits import SPLITS, Splits, make_splits
from lorascope.errors import DataError
from lorascope.study.spec import DataSpec


def pairs(num_rows: int, *, prefix: str, per_group: int = 1, share: int = 4) -> pd.DataFrame:
    """Pairs of which `per_group` share their first text; one in `share` has class 1."""
    return pd.DataFrame(
        {
            "example_id": [f"{prefix}-{row}" for row in range(num_rows)],
            "label": [int(row % share == 0) for row in range(num_rows)],
            "premise": [f"{prefix} premise {row // per_group}" for row in range(num_rows)],
            "claim": [f"{prefix} claim {row}" for row in range(num_rows)],
        }
    )


def carve(frames: dict[str, pd.DataFrame], test_rows: int, *, seed: int = 0, **fields: Any) -> Splits:
    content = tuple(column for column in ("premise", "claim") if column in frames["train"])
    raw = RawExamples(frames, {}, content, "made here", Strata("label", ("no", "yes")), **fields)
    return make_splits(raw, DataSpec(split_seed=seed), task="t", test_rows=test_rows)


def test_all_labelled_files_are_pooled_and_no_example_is_lost() -> None:
    frames = {"train": pairs(400, prefix="a"), "validation": pairs(100, prefix="b"), "test": pairs(60, prefix="c")}
    found = carve(frames, 200).frames
    assert {name: len(frame) for name, frame in found.items()} == {"train": 324, "validation": 36, "test": 200}
    ids = [example_id for name in SPLITS for example_id in found[name]["example_id"]]
    assert sorted(ids) == sorted(example_id for frame in frames.values() for example_id in frame["example_id"])
    assert {example_id[0] for example_id in found["test"]["example_id"]} == {"a", "b", "c"}
    assert found["test"]["label"].sum() == 50


def test_examples_that_share_a_text_stay_in_one_split() -> None:
    found = carve({"train": pairs(400, prefix="a", per_group=5)}, 100).frames
    premises = [set(found[name]["premise"]) for name in SPLITS]
    assert not premises[0] & premises[1] and not premises[0] & premises[2] and not premises[1] & premises[2]
    assert len(found["test"]) == 100 and found["test"]["label"].mean() == pytest.approx(0.25, abs=0.05)


def test_a_text_joins_examples_in_whichever_column_it_stands() -> None:
    assert group_numbers([["a", "b", "c", "d"], ["x", "a", "y", "x"]]).tolist() == [0, 0, 1, 0]


def test_the_split_seed_alone_decides_what_is_carved() -> None:
    train = {"train": pairs(400, prefix="a")}
    first, again, other = (set(carve(train, 100, seed=seed).frames["test"]["example_id"]) for seed in (0, 0, 1))
    assert first == again != other


def test_a_test_set_that_is_too_large_is_refused() -> None:
    with pytest.raises(DataError) as error:
        carve({"train": pairs(400, prefix="a", per_group=200)}, 150)
    assert str(error.value) == (
        "task `t`: a test set of 150 cannot be carved out of 400 examples, of which 200 share a text and stay together\n"
        "  hint: Lower the task's `test_rows`."
    )


SENTENCES = [f"film {i} is {'good' if i % 2 else 'bad'} , says critic {i} ." for i in range(60)]


def phrases() -> pd.DataFrame:
    texts = [
        text for i, text in enumerate(SENTENCES) for text in (text, f"is {'good' if i % 2 else 'bad'}", f"film {i}")
    ]
    texts += [f"nothing about it {i}" for i in range(40)]
    labels = [int("good" in text or text[-1] in "13579") for text in texts]
    return pd.DataFrame({"example_id": [f"s-{row}" for row in range(len(texts))], "label": labels, "premise": texts})


def test_only_whole_sentences_are_carved_and_their_parts_leave_train() -> None:
    splits = carve({"train": phrases()}, 20, has_parts=True)
    test, validation, train = (splits.frames[name] for name in ("test", "validation", "train"))
    carved = [*test["premise"], *validation["premise"]]
    assert len(test) == 20 and not any(text.startswith("is ") for text in carved)
    assert not parts_of(train["premise"].tolist(), carved).any()
    assert splits.parts["train~test"] > 20
    assert sum(map(len, splits.frames.values())) + sum(splits.parts.values()) == len(phrases())


def test_a_part_is_a_run_of_whole_words() -> None:
    texts = ["a good film", "good", "good film", "film a", "goo", "a good film"]
    assert whole_texts(texts).tolist() == [True, False, False, True, True, True]
    assert parts_of(texts, ["a good film"]).tolist() == [True, True, True, False, False, True]
