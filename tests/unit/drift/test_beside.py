"""Work beside other work: in order on a CPU, in a thread where the device is an accelerator."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest
import torch

from lorascope.drift.beside import Cancellation, beside, has_room_beside, in_a_thread
from lorascope.errors import StudyError

SOON = 10  # seconds


def test_work_that_may_not_begin_at_once_is_done_when_it_is_asked_for() -> None:
    order: list[str] = []

    def work(cancellation: Cancellation) -> int:
        order.append(threading.current_thread().name)
        return 3

    with beside(work, device="cpu", at_once=False) as found:
        order.append("block")
        assert found() == 3
    assert order == ["block", threading.current_thread().name]


def test_a_thread_works_while_the_block_does() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert go_on.wait(SOON)
        return threading.current_thread().name

    with in_a_thread(work, Cancellation()) as found:
        assert begun.wait(SOON)
        go_on.set()
        assert found().startswith("beside")
        assert found().startswith("beside"), "asked twice, done once"


def test_what_a_thread_raises_is_raised_in_the_block_that_asks() -> None:
    def work() -> None:
        raise StudyError("the export is incomplete")

    with pytest.raises(StudyError, match="the export is incomplete"), in_a_thread(work, Cancellation()) as found:
        found()


def test_a_block_that_fails_cancels_the_thread_and_outlives_it() -> None:
    cancellation, ended = Cancellation(), threading.Event()

    def work() -> None:
        try:
            for _ in range(1000 * SOON):
                cancellation.check()
                threading.Event().wait(0.001)
        except CancelledError:
            ended.set()
            raise

    with pytest.raises(ValueError, match="reading failed"), in_a_thread(work, cancellation):
        raise ValueError("reading failed")
    assert ended.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("beside")]


def test_both_are_done_together_only_where_half_the_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    assert has_room_beside("cuda:0", needed=39)
    assert not has_room_beside("cuda:0", needed=40)
    assert not has_room_beside("cpu", needed=0)
