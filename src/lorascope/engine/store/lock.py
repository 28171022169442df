"""One process at a time works on a step, also over a shared file system and with clocks that disagree.

A lock is a row of numbered generations and its highest generation says who holds it. Every change of hands (take,
release, take-over of a dead holder) is the exclusive creation of the next number, so of any number of contenders exactly
one succeeds, and a holder that was suspended finds out that a higher generation exists.

A holder renews a counter in its generation every few seconds. Others call it dead if that counter stood still for
`stale_after_s` on their own monotonic clock (nobody compares two machines' clocks), or at once if it ran on this very
host and its process is gone. A holder wrongly called dead does no harm: commits are idempotent, the first one wins.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lorascope.engine.store.generations import DirectoryGenerations, Generations

BEAT_S = 5.0
STALE_AFTER_S = 60.0

_RELEASED = b"released\n"
_MOST_LOOKS = 1000


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. machine: the running system and pid namespace in which `pid` and `started` mean something."""

    host: str
    machine: str
    pid: int
    started: str
    token: str

    def is_gone(self) -> bool:
        """Whether this process certainly ended: only ever true for processes of this machine."""
        return self.machine == _this_machine() and _start_of_process(self.pid) != self.started

    def is_process(self, other: Owner) -> bool:
        """Whether both are one process, whichever locks they hold."""
        return (self.machine, self.pid, self.started) == (other.machine, other.pid, other.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


_UNREADABLE = Owner(host="an unknown host", machine="", pid=0, started="", token="")


class StepLock:
    """The lock in `place`, a directory or what else keeps generations. Remembers when it last saw the counter move, so keep
    one object while polling.

    clock: seconds of this process's monotonic clock (an argument for tests).
    """

    def __init__(
        self,
        place: Path | Generations,
        *,
        beat_s: float = BEAT_S,
        stale_after_s: float = STALE_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = DirectoryGenerations(place) if isinstance(place, Path) else place
        self._beat_s = beat_s
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._seen: tuple[int, bytes] | None = None
        self._seen_at = 0.0
        self._generation: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = False

    @property
    def is_lost(self) -> bool:
        """Whether somebody took this lock over while we held it (we were suspended for longer than the timeout)."""
        if self._generation is not None and not self._lost:
            self._lost = self._generations.numbers()[-1:] != [self._generation]
        return self._lost

    @property
    def was_taken_over(self) -> bool:
        """`is_lost` as the last heartbeat saw it: costs nothing."""
        return self._lost

    def holder(self) -> Owner | None:
        """Who holds the lock now (this process included), or None if it is free: never taken, released, or stale."""
        return self._judge(*self._top())

    def changed_hands_at(self) -> float | None:
        """When the lock was last taken or released: Unix time of the store's clock, None if it is not there."""
        return self._generations.changed_hands_at()

    def try_acquire(self) -> bool:
        """Take the lock if it is free or stale. False if somebody else holds it or was quicker."""
        assert self._generation is None, f"{self._generations.name}: this lock is already held by this object"
        top, content = self._top()
        if self._judge(top, content) is not None:
            return False
        owner = this_process()
        if not self._generations.create(top + 1, _spell(owner, 0)):
            return False
        if self._generations.numbers()[-1:] != [top + 1]:
            self._generations.remove(top + 1)  # our look was out of date, as a network file system may serve it
            return False
        self._generation, self._lost = top + 1, False
        self._remove_below(top + 1)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, args=(owner, top + 1), name="lock-heartbeat", daemon=True)
        self._thread.start()
        return True

    def release(self, *, discard: bool = False) -> None:
        """Let go. discard: the step is committed, so nothing of the lock needs to stay."""
        if self._generation is None:
            return
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():  # it is not, if we were interrupted in starting it
            self._thread.join()
        generation, self._generation = self._generation, None
        try:
            released = self._generations.create(generation + 1, _RELEASED)
        except OSError:
            # No room even for this: taking our generation away frees the lock too, or else the timeout does.
            with contextlib.suppress(OSError):
                self._generations.remove(generation)
            return
        if released:
            self._remove_below(generation + 1)
            if discard:
                self._remove_below(generation + 2)
                with contextlib.suppress(OSError):
                    self._generations.remove_place()
        else:
            self._lost = True

    def reap(self, *, ended: Owner | None = None) -> bool:
        """Release the lock on behalf of a dead holder. False if it is held, or somebody else was quicker.

        For a coordinator that watched the counter stand still: its worker, which did not, can then take the lock. ended: a
        process that the coordinator knows to be over by other means, such as the loss of its machine.
        """
        top, content = self._top()
        if self._judge(top, content) is not None and not (ended and _read_owner(content).is_process(ended)):
            return False
        return top == 0 or content == _RELEASED or self._generations.create(top + 1, _RELEASED)

    def _judge(self, generation: int, content: bytes) -> Owner | None:
        if generation == 0 or content == _RELEASED:
            return None
        owner = _read_owner(content)
        if owner.is_gone():
            return None
        if (generation, content) != self._seen:
            self._seen, self._seen_at = (generation, content), self._clock()
        return owner if self._clock() - self._seen_at < self._stale_after_s else None

    def _top(self) -> tuple[int, bytes]:
        top = 0
        for _ in range(_MOST_LOOKS):
            numbers = self._generations.numbers()
            if not numbers:
                return 0, b""
            top = numbers[-1]
            try:
                return top, self._generations.read(top)
            except FileNotFoundError:  # a later generation replaced it between listing and reading
                time.sleep(0.001)
            except IsADirectoryError:
                break
        return (
            top,
            b"",
        )  # listed but not to be read, such as a link that leads nowhere: only the timeout can call it free

    def _remove_below(self, generation: int) -> None:
        """Tidies up; what cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            for old in self._generations.numbers():
                if old < generation:
                    self._generations.remove(old)

    def _beat(self, owner: Owner, generation: int) -> None:
        counter = 0
        while not self._stop.wait(self._beat_s):
            counter += 1
            # Trouble of a moment: the next beat may succeed, and if none does we count as dead.
            with contextlib.suppress(OSError):
                self._generations.renew(generation, _spell(owner, counter))
            with contextlib.suppress(OSError):
                if self.is_lost:
                    return


def _spell(owner: Owner, counter: int) -> bytes:
    """Always the same length, so that rewriting it in place leaves no mixture of old and new."""
    return f"{counter:012d} {json.dumps(asdict(owner))}\n".encode()


def _read_owner(content: bytes) -> Owner:
    """The owner, or an unknown one while its line is not yet written: then only the timeout can call it dead."""
    try:
        return Owner(**json.loads(content.partition(b"\n")[0][13:]))
    except (ValueError, TypeError):
        return _UNREADABLE


def this_process() -> Owner:
    """This process as the holder of a lock, with a token of its own each time."""
    pid = os.getpid()
    started = _start_of_process(pid)
    assert started is not None, "this process does not find itself"
    return Owner(host=platform.node(), machine=_this_machine(), pid=pid, started=started, token=uuid.uuid4().hex)


@functools.cache
def _this_machine() -> str:
    """Names the running system: another boot or another container is another machine."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{platform.node()} {uuid.getnode():x}"


def _start_of_process(pid: int) -> str | None:
    """When a live process of this machine started (opaque text), None if there is none. A zombie is not alive."""
    if sys.platform == "linux":
        try:
            # proc_pid_stat(5): fields follow the name, which may itself hold spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    found = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()
