"""An artifact: the committed directory of one finished step. It exists if and only if it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lorascope.engine.step import Step
from lorascope.engine.store.integrity import LEFT_OUT, CorruptArtifact, check_file, files_named, parsed_record

RECORD = "record.json"


class Artifact:
    """path: the committed directory; `record.json` in it holds step, result and provenance."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """Its directory on this machine, of which nothing was checked."""
        return self._path

    @property
    def checked_path(self) -> Path:
        """Its directory on this machine, with every file checked. Raises CorruptArtifact, FilesLeftOut."""
        directory, record = self.path, self.record
        for name in record["files"]:
            check_file(directory / name, name, record)
        return directory

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return str(self.path)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """{"id", "step": Step.to_json(), "result": dict, "provenance": dict, "files": {name: bytes}, "sha256": {name: sum}},
        "left_out": names of files that were left out when the store was packed, and "seal". Raises CorruptArtifact."""
        file = self._path / RECORD
        try:
            return parsed_record(file.read_bytes(), self._path.name, place=str(file))
        except OSError as error:
            text = f"{file} cannot be read ({error.strerror})"
            raise CorruptArtifact(text, step_id=self._path.name) from None

    @property
    def id(self) -> str:
        """The id of its step."""
        return self._path.name

    @cached_property
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

    @property
    def left_out(self) -> list[str]:
        """The files that were left out when the store was packed."""
        return list(self.record.get(LEFT_OUT, ()))

    def file(self, name: str) -> Path:
        """The path of a committed file, or of a directory of them, checked against the record. Raises FileNotFoundError
        naming the artifact, CorruptArtifact for a damaged file, FilesLeftOut for one that was left out."""
        names = files_named(name, self.record)
        if not names:
            raise FileNotFoundError(f"{self.id} has no file {name}")
        for file in names:
            check_file(self._path / file, file, self.record)
        return self._path / name
