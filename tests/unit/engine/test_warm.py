"""What a worker keeps warm: by owner, so many at a time, and what may be dropped for room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lorascope.engine.warm import Kept, Warm

TOKENIZERS = Kept[str]("tokenizers")
BASE = Kept[str]("the base", most=1)
PROBES = Kept[str]("probes", is_spare=True)


def never() -> str:
    raise AssertionError("it was there already")


def test_what_was_made_for_a_key_is_made_once():
    warm = Warm()
    assert [warm.keep(TOKENIZERS, key, lambda key=key: key * 2) for key in "ab"] == ["aa", "bb"]
    assert [warm.keep(TOKENIZERS, key, never) for key in "ab"] == ["aa", "bb"]


def test_owners_that_use_one_key_and_name_do_not_meet():
    warm, other = Warm(), Kept[str](TOKENIZERS.name)
    warm.keep(TOKENIZERS, "a", lambda: "mine")
    assert warm.keep(other, "a", lambda: "theirs") == "theirs"
    assert warm.keep(TOKENIZERS, "a", never) == "mine"


def test_the_only_one_is_let_go_before_the_next_is_made():
    warm = Warm()
    assert warm.last_key(BASE) is None
    warm.keep(BASE, "first", lambda: "1")

    def second() -> str:
        assert not warm.has(BASE, "first"), "two would not fit"
        return "2"

    assert warm.keep(BASE, "second", second) == "2"
    assert warm.last_key(BASE) == "second"


def test_one_that_could_not_be_made_leaves_nothing_behind():
    warm = Warm()
    warm.keep(BASE, "first", lambda: "1")
    with pytest.raises(AssertionError):
        warm.keep(BASE, "second", never)
    assert warm.last_key(BASE) is None


def test_room_is_made_of_what_is_spare_and_nothing_else():
    warm = Warm()
    make: Callable[[], str] = lambda: "made"  # noqa: E731
    for kept in (TOKENIZERS, BASE, PROBES):
        warm.keep(kept, "a", make)
    warm.make_room()
    assert [warm.has(kept, "a") for kept in (TOKENIZERS, BASE, PROBES)] == [True, True, False]
    warm.clear()
    assert not warm.has(BASE, "a")
