"""Several engines started at once: most of an engine's time goes into starting, and only measuring has to be alone.

Engines that wait compute nothing, so those that are compared take turns, part by part: a machine that is slow for a while,
as one that others use is, is so for all of them. An engine that says it is ready leaves something behind (compilers that
end, files that are written), which whoever is measured next would feel: after a start there is a rest, whether it was of
many or, later, of one again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol, TypeVar

from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure

Key = TypeVar("Key", bound=Hashable)
KeyIn = TypeVar("KeyIn", bound=Hashable, contravariant=True)
Found = TypeVar("Found")
FoundOut = TypeVar("FoundOut", covariant=True)
Started = EngineProcess | EngineFailure
"""An engine that is ready, or why it is not."""
OUT_OF_MEMORY = "out-of-memory"
PAUSE_S = 20.0


class Measure(Protocol[KeyIn, FoundOut]):
    """Measures an engine that is ready and ends it, or tells of its failure; pauses between its parts. is_beside_others: other
    engines hold a part of the memory; then, and only then, it raises an EngineFailure, which is that no memory was left."""

    def __call__(
        self, key: KeyIn, engine: Started, /, *, is_beside_others: bool
    ) -> Generator[None, None, FoundOut]: ...


def measured_in_turn(
    engines: Mapping[Key, Callable[[], EngineProcess]],
    measure: Measure[Key, Found],
    *,
    block: Callable[[Key], Hashable],
    rest: bool,
) -> Iterator[tuple[Key, Found]]:
    """All of them started at once, then measured, one at any time; nothing starts meanwhile. Neighbours of one block take
    turns, in their order; the next block follows. Those for which the others left no memory come after them, each alone. One
    that died while it waited for its first turn is started again then. rest: whether there is one after every start."""
    crowded_out: list[Key] = []
    is_beside_others = len(engines) > 1
    with _started_together({key: make() for key, make in engines.items()}, rest=rest) as waiting:

        def turns(key: Key) -> Generator[None, None, Found]:
            engine = waiting[key]
            if is_beside_others:
                engine = _at_its_turn(engine, rest=rest)
            return (yield from measure(key, engine, is_beside_others=is_beside_others))

        for _, keys in groupby(waiting, key=block):
            left = {key: turns(key) for key in keys}
            while left:
                for key in list(left):
                    try:
                        next(left[key])
                    except StopIteration as ended:
                        del left[key]
                        yield key, ended.value
                    except EngineFailure as failure:
                        assert is_beside_others and failure.kind == OUT_OF_MEMORY, failure
                        del left[key]
                        crowded_out.append(key)
    for key in crowded_out:
        yield key, _to_its_end(measure(key, started(engines[key](), rest=rest), is_beside_others=False))


def _to_its_end(measurement: Generator[None, None, Found]) -> Found:
    while True:
        try:
            next(measurement)
        except StopIteration as ended:
            return ended.value


def started(engine: EngineProcess, *, rest: bool) -> Started:
    """The engine once it is ready and, where it has to, has rested; or its failure."""
    return _outcome(engine, engine.start, rest=rest)


def _at_its_turn(engine: Started, *, rest: bool) -> Started:
    if isinstance(engine, EngineFailure):
        return engine
    try:
        engine.memory()  # any question will do
    except EngineFailure as failure:
        note = f"started again: it ended while it waited for its turn ({failure.message.splitlines()[0]})"
        return _outcome(engine, lambda: engine.start_again(note), rest=rest)
    return engine


def _outcome(engine: EngineProcess, start: Callable[[], object], *, rest: bool) -> Started:
    try:
        start()
        if rest:
            time.sleep(PAUSE_S)
    except EngineFailure as failure:
        return failure
    except BaseException:
        engine.end()
        raise
    return engine


@contextmanager
def _started_together(engines: Mapping[Key, EngineProcess], *, rest: bool) -> Iterator[dict[Key, Started]]:
    """All of them, ready or failed, whatever happens ended at the end; ending one before that is the caller's."""
    # The threads stay until the engines have ended: an engine ends with the thread that started it.
    with ThreadPoolExecutor(max_workers=max(1, len(engines))) as threads:
        try:
            outcomes = threads.map(lambda engine: started(engine, rest=False), engines.values())
            waiting = dict(zip(engines, outcomes, strict=True))
            if rest and waiting:
                time.sleep(PAUSE_S)
            yield waiting
        finally:
            for engine in engines.values():
                engine.end()
