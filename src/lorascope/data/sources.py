"""Where a task's examples come from, as literals: what a `data` step's identity is made of.

A source has a fingerprint (checksums, a pinned revision, package versions: identity) and locations (paths: no part of
it), so a file may be moved without anything being computed again, and a changed file can never pass for the old one.
Importing this module loads neither pandas nor torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.errors import DataError, EnvironmentProblem, StudyError
from lorascope.registry import TASKS, nearest, resolve
from lorascope.study.tasks import AnyTask, NamedTask


@dataclass(frozen=True)
class SourceDescription:
    """fingerprint: JSON literals that change whenever the examples could. locations: role -> path, not identity."""

    fingerprint: Mapping[str, Any]
    locations: Mapping[str, str] = field(default_factory=dict)


def task_key(spec: AnyTask) -> str:
    """The key of `registry.TASKS` that implements `spec`. Raises StudyError for a name that is not registered."""
    if not isinstance(spec, NamedTask):
        return spec.kind
    named = [key for key, task in TASKS.loaded().items() if task.settings is None]
    if spec.name in named:
        return spec.name
    close = nearest(spec.name, named)
    guess = f" Did you mean `{close}`?" if close else ""
    raise StudyError(
        f"unknown task `{spec.name}`.{guess}",
        hint=f"Tasks: {', '.join(named)}; or `kind: classification` with your own files (docs/writing-a-study.md).",
        where="tasks",
    )


def describe_source(spec: AnyTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
    """What identifies the examples of `spec`, and where they lie. Reads files only to take their checksums.

    Raises StudyError (unknown task), DataError (a named file is absent), EnvironmentProblem (no such data directory,
    a package that is not installed).
    """
    if data_dir is not None and not data_dir.is_dir():
        raise EnvironmentProblem(
            f"the data directory {data_dir} does not exist", hint="Check --data (or LORASCOPE_DATA)."
        )
    return resolve(TASKS, task_key(spec)).describe(spec, data_dir=data_dir, protocol=protocol)


def file_format(path: Path) -> str:
    """ ".csv", ".csv.gz": what a file's name says of its bytes."""
    suffix = path.suffix.lower()
    return f"{path.with_suffix('').suffix.lower()}{suffix}" if suffix == ".gz" else suffix


def file_checksum(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal. Raises DataError if it is absent or cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(
            f"{path} is a pipe or a device, not a file", hint="Write its rows to a file, and name that file."
        )
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"the file {path} does not exist", hint=_hint_for_absent(path)) from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory, not a file", hint="Name a csv, tsv, jsonl or parquet file.") from None
    except OSError as error:
        raise DataError(f"the file {path} cannot be read: {error.strerror}", hint="Check its permissions.") from None


def _hint_for_absent(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no directory {path.parent} either; paths in a study are relative to the study's file."
    close = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    return f"Did you mean {close}?" if close else "Paths in a study are relative to the study's file."


def describe_files(paths: Mapping[str, Path]) -> SourceDescription:
    """The source made of these files, role -> path. The format is identity too: it decides how bytes are read."""
    files = {role: {"sha256": file_checksum(path), "format": file_format(path)} for role, path in paths.items()}
    return SourceDescription({"files": files}, {role: str(path.absolute()) for role, path in paths.items()})


def verify_files(source: SourceDescription) -> None:
    """Raises DataError unless every file still has the checksum it had when the study was planned."""
    for role, known in source.fingerprint.get("files", {}).items():
        path = Path(source.locations[role])
        if file_checksum(path) != known["sha256"]:
            raise DataError(
                f"the {role} file has changed since this step was planned",
                hint="Start the same command again: the changed file gives new steps, the old results stay.",
                where=str(path),
            )
