"""Work of the processor during work of the device: a thread that measures while the caller keeps an accelerator busy.

torch keeps the gradient mode, autocast, the current CUDA device and the current stream by thread, but settings of arithmetic
(deterministic algorithms, TF32) by process, so both sides compute alike. The thread has a CUDA stream of its own: its copies
to the host would else wait for everything that the caller has queued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from lorascope.training.hardware import side_stream

Found = TypeVar("Found")


class Cancellation:
    """Asked for by one thread, noticed by others."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises CancelledError once it was asked for."""
        if self._event.is_set():
            raise CancelledError


@contextmanager
def beside(work: Callable[[Cancellation], Found], *, device: str, at_once: bool) -> Iterator[Callable[[], Found]]:
    """Yields what waits for `work` and gives what it found, or raises what it raised. at_once: begins in a thread, for a CUDA
    device; else the work is the caller's, done when it is asked for.

    However the block ends, the thread has ended too. If it ends by an exception, work is cancelled.
    """
    cancellation = Cancellation()
    if not at_once:
        yield lambda: work(cancellation)
        return
    stream = side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the base may still be on its way to the device

    def in_thread() -> Found:
        with torch.cuda.stream(stream):
            found = work(cancellation)
            stream.synchronize()  # what it leaves on the device may be read from any stream
            return found

    with in_a_thread(in_thread, cancellation) as found:
        yield found


@contextmanager
def in_a_thread(work: Callable[[], Found], cancellation: Cancellation) -> Iterator[Callable[[], Found]]:
    """Yields what waits for the work; cancels it if the block raises, and waits for its end in any case."""
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        future = pool.submit(work)
        try:
            yield future.result
        except BaseException:
            cancellation.ask()
            raise


def has_room_beside(device: str, *, needed: int) -> bool:
    """Whether the device is a CUDA one on which `needed` bytes are less than half of the memory. On a CPU both sides would want
    the same cores."""
    return device.startswith("cuda") and needed < torch.cuda.get_device_properties(device).total_memory / 2
