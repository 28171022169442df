"""An artifact: the committed directory of one finished step. It exists if and only if it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorascope.engine.step import Step


@dataclass(frozen=True)
class Artifact:
    """path: the committed directory; `record.json` in it holds step, result and provenance."""

    path: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """{"id", "step": Step.to_json(), "result": dict, "provenance": dict, "files": {name: bytes}}."""
        return json.loads((self.path / "record.json").read_text())

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def step(self) -> Step:
        return Step.from_json(self.record["step"])

    @property
    def result(self) -> Mapping[str, Any]:
        return self.record["result"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.record["provenance"]

    def file(self, name: str) -> Path:
        """The path of a committed file. Raises FileNotFoundError naming the artifact."""
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(f"{self.path.name} has no file {name}")
        return path
