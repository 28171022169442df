"""The store: where finished work lies, named by what it is, so that nothing is computed twice.

A step's files are written to a staging directory, its record last, and the directory is renamed into place: an artifact
exists if and only if it is complete, whatever was killed and whenever. Everything else here (work directories, locks,
failures, logs, cache) can be deleted between studies without losing a result.

    artifacts/<kind>/<step id>/   record.json and the files of one finished step
    staging/  work/  locks/       of steps under way; work/ outlives a kill (checkpoints)
    steps/<step id>.json          any step, to run it again by hand
    failures/<step id>.json       how a step last failed
    cache/  logs/                 what can be rebuilt; what workers said
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorascope.engine.artifact import Artifact
from lorascope.engine.durable import files_under, name_in, seal_files, sha256_of, sync_directory, write_file
from lorascope.engine.failure import Failure
from lorascope.engine.lock import StepLock
from lorascope.engine.step import Step, canonical_json
from lorascope.errors import EnvironmentProblem

RECORD = "record.json"


class StoreProblem(EnvironmentProblem):
    """The store cannot be written: disk full, read-only, not ours. It stops the whole study: no step could end."""


class Store:
    """The directory `root`. Made at the first write; reading an absent store finds nothing. Safe among processes."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        with self.guard():
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))

    # -- finished work

    def has(self, step_id: str) -> bool:
        return (self._artifact_path(step_id) / RECORD).exists()

    def artifact(self, step_id: str) -> Artifact:
        """The committed artifact. Raises KeyError if there is none."""
        if not self.has(step_id):
            raise KeyError(step_id)
        return Artifact(self._artifact_path(step_id))

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Every committed artifact, or those of one kind, in the order of their ids."""
        records = (self.root / "artifacts").glob(f"{kind or '*'}/*/{RECORD}")
        return [Artifact(record.parent) for record in sorted(records, key=lambda record: record.parent.name)]

    def commit(
        self, step: Step, staging: Path, *, result: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> Artifact:
        """Make the files in `staging` (from `stage`) the artifact of `step`. If it exists already, that one stays.

        Raises AssertionError for a result or provenance that is no finite JSON, StoreProblem if it cannot be written.
        """
        _assert_canonical(step.id, result=result, provenance=provenance)
        target = self._artifact_path(step.id)
        with self.guard():
            files, checksums = seal_files(staging)
            assert RECORD not in files, f"{step.id}: {RECORD} is written by the store alone"
            record = {
                "id": step.id,
                "step": step.to_json(),
                "result": dict(result),
                "provenance": dict(provenance),
                "files": files,
                "sha256": checksums,
            }
            write_file(staging / RECORD, json.dumps(record, indent=1, sort_keys=True, allow_nan=False), flush=True)
            sync_directory(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._rename_into_place(staging, target)
            sync_directory(target.parent)
        self.clear_failure(step.id)
        shutil.rmtree(self._work_path(step.id), ignore_errors=True)
        return Artifact(target)

    def verify(self, step_id: str) -> list[str]:
        """What is wrong with a committed artifact, one sentence each; empty if it is as it was committed."""
        path = self._artifact_path(step_id)
        try:
            record = json.loads((path / RECORD).read_text())
            recorded_id = Step.from_json(record["step"]).id
            sizes, checksums = record["files"], record["sha256"]
        except FileNotFoundError:
            return [f"{step_id}: there is no such artifact"]
        except (ValueError, KeyError, TypeError) as error:
            return [f"{step_id}: {RECORD} cannot be read ({type(error).__name__}: {error})"]
        problems = []
        if recorded_id != step_id:
            problems.append(f"{step_id}: the record is that of {recorded_id}")
        found = {name_in(path, file) for file in files_under(path)} - {RECORD}
        problems += [f"{step_id}: {name} is missing" for name in sorted(set(sizes) - found)]
        problems += [f"{step_id}: {name} was added after the commit" for name in sorted(found - set(sizes))]
        for name in sorted(found & set(sizes)):
            size = (path / name).stat().st_size
            if size != sizes[name]:
                problems.append(f"{step_id}: {name} has {size} bytes, {sizes[name]} were committed")
            elif sha256_of(path / name) != checksums[name]:
                problems.append(f"{step_id}: {name} is not the file that was committed (its checksum differs)")
        return problems

    # -- steps, and work under way

    def save_step(self, step: Step) -> None:
        """Remember a step, so that it can be run by its id alone."""
        text = json.dumps(step.to_json(), indent=1, sort_keys=True)
        assert not {"-", "/"} & set(step.kind), f"a step kind is one word; found {step.kind!r}"
        path = self.root / "steps" / f"{step.id}.json"
        if not path.exists() or path.read_text() != text:
            self._replace(path, text, flush=False)  # a step torn by a power cut is written again by the next run

    def load_step(self, step_id: str) -> Step:
        """A saved or committed step. Raises KeyError if the store knows neither."""
        path = self.root / "steps" / f"{step_id}.json"
        if path.exists():
            return Step.from_json(json.loads(path.read_text()))
        return self.artifact(step_id).step

    def lock(self, step_id: str) -> StepLock:
        return StepLock(self.root / "locks" / step_id)

    def stage(self, step_id: str) -> Path:
        """A new empty directory for the files of a step; only the holder of its lock asks for one."""
        path = self.root / "staging" / f"{step_id}.{uuid.uuid4().hex[:12]}"
        with self.guard():
            path.mkdir(parents=True)
        return path

    def work_dir(self, step_id: str) -> Path:
        """The step's directory for checkpoints: outlives a kill, is removed at commit."""
        path = self._work_path(step_id)
        with self.guard():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # a place where nothing can be made, such as /proc
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from error
        return path

    @property
    def cache_dir(self) -> Path:
        return self._directory("cache")

    @property
    def logs_dir(self) -> Path:
        return self._directory("logs")

    def sweep(self) -> None:
        """Remove what dead processes left behind. What belongs to a live holder of a lock stays."""
        for path in (self.root / "staging").glob("*"):
            if self.lock(path.name.rpartition(".")[0]).holder() is None:
                shutil.rmtree(path, ignore_errors=True)
        for path in [*(self.root / "work").glob("*"), *(self.root / "locks").glob("*")]:
            if self.has(path.name) and self.lock(path.name).holder() is None:  # killed between commit and tidying up
                shutil.rmtree(path, ignore_errors=True)

    # -- failures

    def record_failure(self, step_id: str, failure: Failure) -> None:
        self._replace(self._failure_path(step_id), json.dumps(failure.to_json(), indent=1), flush=True)

    def failure(self, step_id: str) -> Failure | None:
        """How the step last failed, None if it did not."""
        try:
            return Failure.from_json(json.loads(self._failure_path(step_id).read_text()))
        except FileNotFoundError:
            return None

    def clear_failure(self, step_id: str) -> None:
        with self.guard():
            self._failure_path(step_id).unlink(missing_ok=True)

    # -- writing

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around what reads or writes the store: a disk's misfortunes become a StoreProblem that says what to do."""
        try:
            yield
        except OSError as error:
            problem = self.problem(error)
            if problem is None:
                raise
            raise problem from error

    def problem(self, error: OSError) -> StoreProblem | None:
        """What a person can do about `error`, None if it is not about room or permission."""
        where = str(self.root)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreProblem(
                f"no space is left for the store ({os.strerror(error.errno)})",
                hint="Nothing finished is lost. Free some space (the store's cache/ and logs/ can be deleted), or move "
                "the store to a larger disk and name it with --store, then run the same command again.",
                where=where,
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return StoreProblem(
                f"the store cannot be written ({os.strerror(error.errno)}: {error.filename or where})",
                hint="Make the directory writable, or name another one with --store.",
                where=where,
            )
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return StoreProblem(
                f"the store is no directory ({os.strerror(error.errno)}: {error.filename or where})",
                hint="Name a directory with --store; it is made if it does not exist.",
                where=where,
            )
        return None

    def _directory(self, name: str) -> Path:
        path = self.root / name
        with self.guard():
            try:
                path.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # a place where nothing can be made, such as /proc
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from error
        return path

    def _replace(self, path: Path, text: str, *, flush: bool) -> None:
        """Write a small file so that readers see all of it or nothing."""
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with self.guard():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_file(draft, text, flush=flush)
                os.replace(draft, path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise

    def _rename_into_place(self, staging: Path, target: Path) -> None:
        while True:
            try:
                os.rename(staging, target)
                return
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            if (target / RECORD).exists():
                shutil.rmtree(staging, ignore_errors=True)
                return
            # A directory without a record is no artifact: somebody deleted files by hand. It gives way.
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, self.root / "staging" / f"{target.name}.{uuid.uuid4().hex[:12]}")

    def _artifact_path(self, step_id: str) -> Path:
        return self.root / "artifacts" / step_id.partition("-")[0] / step_id

    def _work_path(self, step_id: str) -> Path:
        return self.root / "work" / step_id

    def _failure_path(self, step_id: str) -> Path:
        return self.root / "failures" / f"{step_id}.json"


def _assert_canonical(step_id: str, **values: Mapping[str, Any]) -> None:
    for place, value in values.items():
        try:
            canonical_json(value, place=place)
        except TypeError as error:
            raise AssertionError(f"{step_id}: {error}") from None
