"""An artifact: the committed directory of one finished step. It exists if and only if it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lorascope.engine.step import Step

RECORD = "record.json"


class Artifact:
    """path: the committed directory; `record.json` in it holds step, result and provenance."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """Its directory on this machine."""
        return self._path

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return str(self.path)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """{"id", "step": Step.to_json(), "result": dict, "provenance": dict, "files": {name: bytes}}."""
        return json.loads((self.path / RECORD).read_text())

    @property
    def id(self) -> str:
        """The id of its step."""
        return self.record["id"]

    @property
    def step(self) -> Step:
        """The step that it was computed for."""
        return Step.from_json(self.record["step"])

    @property
    def result(self) -> Mapping[str, Any]:
        """What the step returned."""
        return self.record["result"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it was computed, with which versions."""
        return self.record["provenance"]

    def file(self, name: str) -> Path:
        """The path of a committed file, or of a directory of them. Raises FileNotFoundError naming the artifact."""
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(f"{self.path.name} has no file {name}")
        return path


def discrepancies(
    step_id: str, record: Mapping[str, Any], found: Collection[str], measure: Callable[[str], tuple[int, str]]
) -> list[str]:
    """How the files found differ from those a record names, one sentence each. measure: a file's bytes and SHA-256.

    Raises KeyError or TypeError for what is no record.
    """
    recorded_id, sizes, checksums = Step.from_json(record["step"]).id, record["files"], record["sha256"]
    problems = [] if recorded_id == step_id else [f"{step_id}: the record is that of {recorded_id}"]
    problems += [f"{step_id}: {name} is missing" for name in sorted(set(sizes) - set(found))]
    problems += [f"{step_id}: {name} was added after the commit" for name in sorted(set(found) - set(sizes))]
    for name in sorted(set(found) & set(sizes)):
        size, checksum = measure(name)
        if size != sizes[name]:
            problems.append(f"{step_id}: {name} has {size} bytes, {sizes[name]} were committed")
        elif checksum != checksums[name]:
            problems.append(f"{step_id}: {name} is not the file that was committed (its checksum differs)")
    return problems
