"""Several engines started at once and measured in turns, a part of each after a part of the other.

Most of an engine's time goes into starting, and only measuring has to be alone. A machine drifts while it measures, since
others use its processors too: what is to be compared answers the same load one right after another, so that a slow minute
meets all of it alike.

An engine that says it is ready leaves something behind all the same (compilers that end, files that are written), which
whoever is measured next would feel: after a start there is a rest, whether it was of many or, later, of one again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Protocol, TypeAlias, TypeVar

from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure

Key = TypeVar("Key", bound=Hashable)
KeyIn = TypeVar("KeyIn", bound=Hashable, contravariant=True)
Found = TypeVar("Found")
FoundOut = TypeVar("FoundOut", covariant=True)
Turns: TypeAlias = Generator[None, None, Found]
"""A measurement that pauses between its parts, so that others can have their turns, and returns what it found."""
Started = EngineProcess | EngineFailure
"""An engine that is ready, or why it is not."""
OUT_OF_MEMORY = "out-of-memory"
PAUSE_S = 20.0


class Measuring(Protocol[KeyIn, FoundOut]):
    """Measures an engine that is ready, in turns, and ends it, or tells of its failure. is_beside_others: other engines hold
    a part of the memory; then, and only then, it raises an EngineFailure, which is that no memory was left."""

    def __call__(self, key: KeyIn, engine: Started, /, *, is_beside_others: bool) -> Turns[FoundOut]: ...


def measured_in_turns(
    blocks: Sequence[Sequence[Key]],
    make: Callable[[Key], EngineProcess],
    measure: Measuring[Key, Found],
    *,
    rest: bool,
) -> Iterator[tuple[Key, Found]]:
    """All engines started at once, then measured block by block: those of a block take turns, in their order, and each is
    yielded as it ends. One that died while it waited is started again at its first turn; nothing else starts meanwhile. Those
    for which the others left no memory come after them, each alone. rest: whether there is one after every start."""
    engines = {key: make(key) for block in blocks for key in block}
    is_beside_others = len(engines) > 1

    def beside_others(key: Key, engine: Started) -> Turns[Found | EngineFailure]:
        if is_beside_others:
            engine = _at_its_first_turn(engine, rest=rest)
        try:
            return (yield from measure(key, engine, is_beside_others=is_beside_others))
        except EngineFailure as failure:
            assert is_beside_others and failure.kind == OUT_OF_MEMORY, failure
            return failure

    crowded_out: list[Key] = []
    with _started_together(engines, rest=rest) as waiting:
        for block in blocks:
            for key, found in _round_robin({key: beside_others(key, waiting[key]) for key in block}):
                if isinstance(found, EngineFailure):
                    crowded_out.append(key)
                else:
                    yield key, found
    for key in crowded_out:
        alone = measure(key, started(make(key), rest=rest), is_beside_others=False)
        yield from _round_robin({key: alone})


def _round_robin(turns: Mapping[Key, Turns[Found]]) -> Iterator[tuple[Key, Found]]:
    """One part of each at a time until all have returned; whatever happens, all are closed."""
    with ExitStack() as stack:
        left = {key: stack.enter_context(closing(turn)) for key, turn in turns.items()}
        while left:
            for key, turn in list(left.items()):
                try:
                    next(turn)
                except StopIteration as end:
                    del left[key]
                    yield key, end.value


def started(engine: EngineProcess, *, rest: bool) -> Started:
    """The engine once it is ready and, where it has to, has rested; or its failure."""
    return _outcome(engine, engine.start, rest=rest)


def _at_its_first_turn(engine: Started, *, rest: bool) -> Started:
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
