"""Whether runs train together where a timing decides that: timed once a machine, then remembered.

A timing may fall differently whenever it is repeated, and what a worker's memory holds with it. The decision is kept in the
store's cache, so training does what its calibration did. It is no part of any identity. Plans read it: no torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorascope.engine.provenance import machine
from lorascope.engine.step import canonical_json
from lorascope.engine.store.durable import write_file


@dataclass(frozen=True)
class GangDecision:
    """What was decided on one machine for runs of one `gang_key`. paths: where it is kept, one a task's tokens; runs that
    share batches are alike in length, so what is known of one task holds for those with it."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, cache_dir: Path, *, gang_key: str | None, tokens: Iterable[str], device: str) -> GangDecision:
        """cache_dir: the store's. tokens: ids of the runs' `tokens` steps. device: of this machine, "cpu"."""
        about = {"machine": machine(device=device), "gang_key": gang_key}
        names = [
            hashlib.sha256(canonical_json({**about, "tokens": own}).encode()).hexdigest()[:24]
            for own in sorted(set(tokens))
        ]
        return cls(tuple(cache_dir / "gangs" / f"{name}.json" for name in names))

    def read(self) -> bool | None:
        """Whether the runs train together; None if that is still to be timed."""
        for path in self.paths:
            with suppress(FileNotFoundError, ValueError):  # ValueError: torn by a power cut
                return bool(json.loads(path.read_text())["together"])
        return None

    def keep(self, *, together: bool, runs: int, alone_seconds: float, together_seconds: float) -> None:
        """For the next to find. runs, seconds: how many were timed together, and an update of one and of all of them."""
        figures = {"runs": runs, "alone_seconds": alone_seconds, "together_seconds": together_seconds}
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}.tmp")
            write_file(draft, json.dumps({"together": together, **figures}), flush=False)
            draft.replace(path)
