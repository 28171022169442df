"""Several engines started at once: most of an engine's time goes into starting, and only measuring has to be alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure

Key = TypeVar("Key", bound=Hashable)
Started = EngineProcess | EngineFailure
"""An engine that is ready, or why it is not."""


def started(engine: EngineProcess) -> Started:
    """The engine once it is ready, or its failure."""
    try:
        return engine.start()
    except EngineFailure as failure:
        return failure


@contextmanager
def started_together(engines: Mapping[Key, EngineProcess]) -> Iterator[dict[Key, Started]]:
    """All of them, ready or failed. Whoever takes one out of the mapping ends it; those left in it are ended here."""
    # The threads stay until the engines have ended: an engine ends with the thread that started it.
    with ThreadPoolExecutor(max_workers=max(1, len(engines))) as threads:
        waiting = dict(zip(engines, threads.map(started, engines.values()), strict=True))
        try:
            yield waiting
        finally:
            for engine in waiting.values():
                if not isinstance(engine, EngineFailure):
                    engine.end()
