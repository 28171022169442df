"""The log of a study: every event, one JSON line each, appended and flushed at once."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from lorascope.engine.events import Event


class JsonlSink:
    """An Emit that appends to `path`. The file is opened at the first event; `tail -f` follows a running study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None

    def __call__(self, event: Event) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(event.to_json()) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> JsonlSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
