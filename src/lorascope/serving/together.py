"""Several engines started at once: most of an engine's time goes into starting, and only measuring has to be alone.

An engine that says it is ready leaves something behind all the same (compilers that end, files that are written), which
whoever is measured first would feel: after a start of several there is a pause.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure

Key = TypeVar("Key", bound=Hashable)
Started = EngineProcess | EngineFailure
"""An engine that is ready, or why it is not."""
PAUSE_S = 20.0


def started(engine: EngineProcess) -> Started:
    """The engine once it is ready, or its failure."""
    try:
        return engine.start()
    except EngineFailure as failure:
        return failure


@contextmanager
def started_together(engines: Mapping[Key, EngineProcess]) -> Iterator[dict[Key, Started]]:
    """All of them, ready or failed, whatever happens ended at the end; ending one before that is the caller's."""
    # The threads stay until the engines have ended: an engine ends with the thread that started it.
    with ThreadPoolExecutor(max_workers=max(1, len(engines))) as threads:
        try:
            waiting = dict(zip(engines, threads.map(started, engines.values()), strict=True))
            if len(engines) > 1:
                time.sleep(PAUSE_S)
            yield waiting
        finally:
            for engine in engines.values():
                engine.end()
