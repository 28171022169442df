"""Whether what lies in a store is what was committed: seals of records, checksums of files, and files that were left out.

A record names every file with its size and checksum, and carries a seal, the checksum of itself. A file is compared with its
record before it is used: its size each time, its checksum once a process, and again whenever its size or its time changed.
A record may list files that were left out when the store was packed. Such an artifact is finished, but lacks those files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from lorascope.engine.step import Step
from lorascope.engine.store.durable import sha256_of
from lorascope.errors import EnvironmentProblem

SEAL = "seal"
LEFT_OUT = "left_out"
REPAIR_HINT = "`lorascope run STUDY --repair` sets the damaged artifact aside and computes it again."
_KEYS = frozenset({"id", "step", "result", "provenance", "files", "sha256"})
_checked: dict[tuple[str, str], tuple[int, int, int]] = {}
"""(file, checksum) -> size, time and inode of the file when it had that checksum, of this process."""


class CorruptArtifact(EnvironmentProblem):
    """What the store holds of a finished step is not what was committed. step_id: of that step, in the process that found
    it."""

    def __init__(
        self, message: str, *, hint: str | None = None, where: str | None = None, step_id: str | None = None
    ) -> None:
        super().__init__(message, hint=hint or REPAIR_HINT, where=where)
        self.step_id = step_id


class FilesLeftOut(EnvironmentProblem):
    """The store was packed without these files of a finished step."""


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its seal."""
    return {**record, SEAL: _seal_of(record)}


def spelled(record: Mapping[str, Any]) -> str:
    """The text of a record's file."""
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False)


def _seal_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of the record's canonical JSON without the seal."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parsed_record(content: bytes, step_id: str, *, place: str) -> dict[str, Any]:
    """The record in `content`. A record of before there were seals is taken as it is. Raises CorruptArtifact for what is not
    a record, is that of another step, or does not agree with its seal."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not is_record(record):
        raise CorruptArtifact(f"{place} is not a record", step_id=step_id)
    if record["id"] != step_id:
        raise CorruptArtifact(f"{place} is the record of {record['id']}", step_id=step_id)
    if not is_as_sealed(record):
        raise CorruptArtifact(f"{place} was changed after the commit: its seal does not agree", step_id=step_id)
    return record


def is_record(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether this has the parts of a record, and names no file outside its artifact."""
    if not isinstance(found, dict) or not found.keys() >= _KEYS:
        return False
    if not all(isinstance(found[part], dict) for part in ("step", "result", "provenance", "files", "sha256")):
        return False
    names = found["files"]
    return not any(name.startswith("/") or ".." in name.split("/") for name in names)


def is_as_sealed(record: Mapping[str, Any]) -> bool:
    """Whether the record agrees with its seal, or has none."""
    return SEAL not in record or record[SEAL] == _seal_of(record)


def check_file(file: Path, name: str, record: Mapping[str, Any]) -> None:
    """Compare a file of this machine with its record. Raises CorruptArtifact, or FilesLeftOut for one that was left out."""
    step_id, size, checksum = record["id"], record["files"][name], record["sha256"][name]
    try:
        found = os.stat(file)
    except FileNotFoundError:
        if name in record.get(LEFT_OUT, ()):
            raise FilesLeftOut(
                f"{step_id} has no {name} here: the store was packed without it",
                hint=f"Copy the file from the store that was packed to {file}; or remove {record_directory(file, name)} "
                "and run the study, which computes the step again.",
            ) from None
        raise CorruptArtifact(f"{step_id}: {name} is missing", where=str(file), step_id=step_id) from None
    if found.st_size != size:
        raise CorruptArtifact(
            f"{step_id}: {name} has {found.st_size} bytes, {size} were committed", where=str(file), step_id=step_id
        )
    signature = found.st_size, found.st_mtime_ns, found.st_ino
    if _checked.get((str(file), checksum)) == signature:
        return
    if sha256_of(file) != checksum:
        raise CorruptArtifact(
            f"{step_id}: {name} is not the file that was committed (its checksum differs)",
            where=str(file),
            step_id=step_id,
        )
    _checked[str(file), checksum] = signature


def record_directory(file: Path, name: str) -> Path:
    """The directory of the artifact that `file` is in under `name`."""
    return file.parents[name.count("/")]


def files_named(name: str, record: Mapping[str, Any]) -> list[str]:
    """The committed files that `name` stands for: itself, or those in the directory of that name."""
    return [file for file in record["files"] if file == name or file.startswith(f"{name}/")]


def discrepancies(
    step_id: str, record: Mapping[str, Any], found: Collection[str], measure: Callable[[str], tuple[int, str]]
) -> list[str]:
    """How the files found differ from those a record names, one sentence each; what was left out may be missing. measure: a
    file's bytes and SHA-256.

    Raises KeyError, TypeError or ValueError for what is no record.
    """
    if not is_record(record):
        raise ValueError("it lacks a part, or has one of another kind")
    recorded_id, sizes, checksums = Step.from_json(record["step"]).id, record["files"], record["sha256"]
    problems = [] if recorded_id == step_id else [f"{step_id}: the record is that of {recorded_id}"]
    if not is_as_sealed(record):
        problems.append(f"{step_id}: the record was changed after the commit (its seal does not agree)")
    missing = set(sizes) - set(found) - set(record.get(LEFT_OUT, ()))
    problems += [f"{step_id}: {name} is missing" for name in sorted(missing)]
    problems += [f"{step_id}: {name} was added after the commit" for name in sorted(set(found) - set(sizes))]
    for name in sorted(set(found) & set(sizes)):
        size, checksum = measure(name)
        if size != sizes[name]:
            problems.append(f"{step_id}: {name} has {size} bytes, {sizes[name]} were committed")
        elif checksum != checksums[name]:
            problems.append(f"{step_id}: {name} is not the file that was committed (its checksum differs)")
    return problems
