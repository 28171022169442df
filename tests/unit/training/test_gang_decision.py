"""Whether runs train together on a processor: timed once a machine, whatever a second timing would say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lorascope.engine import provenance
from lorascope.training import sizing
from lorascope.training.gang_decision import GangDecision
from lorascope.training.sizing import UpdateCost, gang_size


def decision(cache: Path, *tokens: str, gang_key: str = "lora") -> GangDecision:
    return GangDecision.of(cache, gang_key=gang_key, tokens=tokens or ["tokens-mrpc"], device="cpu")


class Clock:
    """An update's seconds by how many runs are in it. timed: the gangs that were, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: dict[int, float] = {}
        self.timed: list[int] = []
        monkeypatch.setattr(sizing, "probe", self._probe)

    def _probe(self, gang: Any, device: str) -> UpdateCost:
        self.timed.append(len(gang))
        return UpdateCost(self.seconds[len(gang)], peak_bytes=1)

    def size(self, kept: GangDecision, *, runs: int = 3, limit: int | None = None) -> int:
        members: Sequence[Any] = list(range(runs))
        return gang_size(members, device="cpu", limit=limit, build=list, decision=kept)[0]  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("together_s, size, again", [(2.0, 3, [1]), (2.9, 1, [])])
def test_a_second_timing_is_not_asked(
    tmp_path: Path, clock: Clock, together_s: float, size: int, again: list[int]
) -> None:
    clock.seconds = {1: 1.0, 3: together_s}
    assert decision(tmp_path).read() is None
    assert clock.size(decision(tmp_path)) == size
    assert clock.timed == [1, 3]
    clock.seconds = {1: 1.0, 3: 5.0 - together_s}  # a busier machine would decide otherwise
    clock.timed.clear()
    assert clock.size(decision(tmp_path)) == size
    assert clock.timed == again
    assert decision(tmp_path).read() is (size > 1)


def test_it_holds_for_another_number_of_runs(tmp_path: Path, clock: Clock) -> None:
    clock.seconds = {1: 1.0, 2: 1.2, 3: 2.0}
    assert clock.size(decision(tmp_path)) == 3
    assert clock.size(decision(tmp_path), runs=2) == 2
    assert clock.timed == [1, 3, 1]


def test_a_study_that_sets_its_gang_neither_asks_nor_decides(tmp_path: Path, clock: Clock) -> None:
    clock.seconds = {1: 1.0, 2: 9.0, 3: 9.0}
    assert clock.size(decision(tmp_path), limit=2) == 2
    assert decision(tmp_path).read() is None
    assert clock.size(decision(tmp_path)) == 1
    assert clock.size(decision(tmp_path), limit=2) == 2


def test_a_single_run_decides_nothing_for_those_to_come(tmp_path: Path, clock: Clock) -> None:
    assert clock.size(decision(tmp_path), runs=1) == 1
    assert clock.timed == []
    assert decision(tmp_path).read() is None


def test_other_runs_data_and_machines_are_timed_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decision(tmp_path).keep(together=True, runs=2, alone_seconds=1.0, together_seconds=1.0)
    assert decision(tmp_path).read() is True
    assert decision(tmp_path, gang_key="full").read() is None
    assert decision(tmp_path, "tokens-rte").read() is None
    monkeypatch.setattr(provenance, "_host_digest", lambda: "another")
    assert decision(tmp_path).read() is None


def test_tasks_that_share_batches_share_the_decision(tmp_path: Path) -> None:
    decision(tmp_path, "tokens-mrpc", "tokens-rte").keep(
        together=False, runs=4, alone_seconds=1.0, together_seconds=4.0
    )
    assert decision(tmp_path, "tokens-rte").read() is False
    assert decision(tmp_path, "tokens-sst2", "tokens-rte").read() is False


def test_a_torn_file_is_timed_again(tmp_path: Path, clock: Clock) -> None:
    kept = decision(tmp_path)
    kept.keep(together=True, runs=3, alone_seconds=1.0, together_seconds=1.0)
    kept.paths[0].write_text("")
    clock.seconds = {1: 1.0, 3: 9.0}
    assert clock.size(kept) == 1
    assert kept.read() is False
