"""Where a worker computes its steps: everything that all its steps have in common, in one object.

An executor, a worker process and a person who runs a step by hand each make one, and every step's context is drawn from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lorascope.engine.events import Emit
from lorascope.engine.store.directory import Store
from lorascope.engine.warm import Warm


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """store: where artifacts are read and committed. device: a torch device name ("cpu", "cuda:0", "mps"). data_dir: where
    `{task}_{split}.parquet` may lie. emit: where events go. worker: its name in events. warm: what it keeps loaded. log: the
    file of its standard error, for the record of a failure.
    """

    store: Store
    device: str
    emit: Emit
    worker: str
    data_dir: Path | None = None
    warm: Warm = field(default_factory=Warm)
    log: str | None = None
