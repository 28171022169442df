"""What a step's function is given, and all it may use.

A step kind is one function `StepContext -> dict`: it reads its dependencies' artifacts, writes files under `out`, and
returns its result, which becomes `record.json["result"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.engine.events import Emit
from lorascope.engine.step import Step
from lorascope.engine.warm import Warm

if TYPE_CHECKING:
    from lorascope.engine.store.artifact import Artifact


class HandedBack(Exception):
    """What a gang's function says of a step that it leaves to whoever is free next, here or elsewhere. It has done nothing
    for it that another could not begin with."""


@dataclass(frozen=True)
class StepContext:
    """step: what to do. out: an empty directory whose files are committed. work: a directory that survives a kill
    (checkpoints) and is removed at commit. deps: role -> committed artifact. emit: raises StepBusy once another process
    took the step over. device: a torch device name ("cpu", "cuda:0", "mps"). data_dir: where `{task}_{split}.parquet`
    may lie. cache_dir: a directory of the store for what can always be rebuilt. warm: what the worker keeps loaded from
    one step to the next.
    """

    step: Step
    out: Path
    work: Path
    deps: Mapping[str, Artifact]
    emit: Emit
    device: str
    data_dir: Path | None
    cache_dir: Path
    warm: Warm = field(default_factory=Warm)
