"""Where a study was read from: what tells its results from those of another study of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """file: the YAML file, None of a study that a program made. overrides: those of `--set`. content: SHA-256 of the study as
    it was read, so that a copy that a program changed is seen to be another. No part of what the study asks: all origins
    are equal."""

    file: Path | None = field(default=None, compare=False)
    overrides: tuple[str, ...] = field(default=(), compare=False)
    content: str | None = field(default=None, compare=False)
