"""The store: where finished work lies, named by what it is, so that nothing is computed twice.

A step's files are written to a staging directory, its record last, and the directory is renamed into place: an artifact
exists if and only if it is complete, whatever was killed and whenever. Everything else here (work directories, locks,
failures, logs, cache) can be deleted between studies without losing a result.

    artifacts/<kind>/<step id>/   record.json and the files of one finished step
    staging/  work/  locks/       of steps under way; work/ outlives a kill (checkpoints)
    steps/<step id>.json          any step, to run it again by hand
    failures/<step id>.json       how a step last failed
    damaged/                      artifacts that were not what was committed, set aside by `run --repair`
    remembered/                   what a run has seen of this machine, such as the version of an engine
    cache/  logs/                 what can be rebuilt; what workers said
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.engine.failure import Failure
from lorascope.engine.step import Step, canonical_json
from lorascope.engine.store.artifact import RECORD, Artifact
from lorascope.engine.store.durable import files_under, name_in, seal_files, sha256_of, sync_directory, write_file
from lorascope.engine.store.integrity import discrepancies, is_record, sealed, spelled
from lorascope.engine.store.lock import StepLock
from lorascope.errors import EnvironmentProblem


class StoreProblem(EnvironmentProblem):
    """The store cannot be written: disk full, read-only, not ours. It stops the whole study: no step could end."""


class Store:
    """The directory `root`. Made at the first write; reading an absent store finds nothing. Safe among processes.

    look_every_s: how often it is worth asking how others are getting on.
    """

    look_every_s = 0.0
    _named_with = "--store"

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        with self.guard():
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root))

    @property
    def place(self) -> str:
        """What names this store, here and to other processes."""
        return str(self.root)

    def check(self) -> None:
        """Before work starts: raises StoreProblem if it could not be kept. A directory shows that when it is written to."""

    # -- finished work

    def has(self, step_id: str) -> bool:
        """Whether the artifact of this step is committed."""
        return is_step_id(step_id) and (self._artifact_path(step_id) / RECORD).exists()

    def present(self, step_ids: Iterable[str]) -> set[str]:
        """Those that are committed: `has` of many."""
        return {step_id for step_id in step_ids if self.has(step_id)}

    def ids(self, kind: str | None = None) -> list[str]:
        """Of every committed artifact, or of those of one kind, in order."""
        above = self.root / "artifacts"
        kinds = _names_in(above) if kind is None else [kind]
        found = ((name, above / one / name) for one in kinds for name in _names_in(above / one))
        return sorted(name for name, path in found if os.path.exists(path / RECORD))

    def artifact(self, step_id: str) -> Artifact:
        """The committed artifact. Raises KeyError if there is none."""
        if not self.has(step_id):
            raise KeyError(step_id)
        return Artifact(self._artifact_path(step_id))

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Every committed artifact, or those of one kind, in the order of their ids."""
        return [self.artifact(step_id) for step_id in self.ids(kind)]

    def glances(self) -> Iterator[Mapping[str, Any]]:
        """Every record, unchecked, for estimates; what is no record is passed over."""
        above = self.root / "artifacts"
        for kind in _names_in(above):
            for name in _names_in(above / kind):
                with contextlib.suppress(OSError, ValueError, RecursionError):
                    record = json.loads(Path(above, kind, name, RECORD).read_bytes())
                    if is_record(record):
                        yield record

    def commit(
        self, step: Step, staging: Path, *, result: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> Artifact:
        """Make the files in `staging` (from `stage`) the artifact of `step`. If it exists already, that one stays.

        Raises AssertionError for a result or provenance that is not finite JSON, StoreProblem if it cannot be written.
        """
        _assert_canonical(step.id, result=result, provenance=provenance)
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
            artifact = self._publish(step.id, staging, record)
        self.clear_failure(step.id)
        shutil.rmtree(self._work_path(step.id), ignore_errors=True)
        return artifact

    def verify(self, step_id: str) -> list[str]:
        """What is wrong with a committed artifact, one sentence each; empty if it is as it was committed."""
        path = self._artifact_path(step_id)
        try:
            record = json.loads((path / RECORD).read_bytes())
            found = {name_in(path, file) for file in files_under(path)} - {RECORD}
            return discrepancies(
                step_id, record, found, lambda name: ((path / name).stat().st_size, sha256_of(path / name))
            )
        except FileNotFoundError:
            return [f"{step_id}: there is no such artifact"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return [f"{step_id}: {RECORD} cannot be read ({type(error).__name__}: {error})"]

    def set_aside(self, step_id: str) -> str | None:
        """Take a damaged artifact out of the finished work, and keep it; where it lies now. None if there is none."""
        target = self._directory("damaged") / f"{step_id}.{uuid.uuid4().hex[:12]}"
        with self.guard():
            try:
                os.rename(self._artifact_path(step_id), target)
            except FileNotFoundError:
                return None
        return str(target)

    # -- steps, and work under way

    def save_step(self, step: Step) -> None:
        """Remember a step, so that it can be run by its id alone."""
        text = json.dumps(step.to_json(), indent=1, sort_keys=True)
        assert not {"-", "/"} & set(step.kind), f"a step kind is one word; found {step.kind!r}"
        path = self.root / "steps" / f"{step.id}.json"
        if not path.exists() or path.read_bytes() != text.encode():
            self._replace(path, text, flush=False)  # a step torn by a power cut is written again by the next run

    def save_steps(self, steps: Sequence[Step]) -> None:
        """Keep the steps, so that each can be run by its id."""
        for step in steps:
            self.save_step(step)

    def load_step(self, step_id: str) -> Step:
        """A saved or committed step. Raises KeyError if the store knows neither."""
        path = self.root / "steps" / f"{step_id}.json"
        if is_step_id(step_id) and path.exists():
            with contextlib.suppress(ValueError, TypeError):  # torn by a power cut: the next run writes it again
                return Step.from_json(json.loads(path.read_bytes()))
        return self.artifact(step_id).step

    def lock(self, step_id: str) -> StepLock:
        """The lock of a step."""
        return StepLock(self.root / "locks" / step_id)

    def locked(self) -> list[str]:
        """The steps whose locks were taken once and not removed since."""
        return sorted(path.name for path in (self.root / "locks").glob("*"))

    def stage(self, step_id: str) -> Path:
        """A new empty directory for the files of a step; only the holder of its lock asks for one."""
        path = self.root / "staging" / f"{step_id}.{uuid.uuid4().hex[:12]}"
        with self.guard():
            path.mkdir(parents=True)
        return path

    def work_dir(self, step_id: str) -> Path:
        """The step's directory for checkpoints: outlives a kill, is removed at commit."""
        return self._directory(f"work/{step_id}")

    @property
    def cache_dir(self) -> Path:
        """Where what can always be rebuilt is kept."""
        return self._directory("cache")

    @property
    def logs_dir(self) -> Path:
        """Where the logs of workers are kept."""
        return self._directory("logs")

    def sweep(self) -> None:
        """Remove what dead processes left behind. What belongs to a live holder of a lock stays."""
        for path in (self.root / "staging").glob("*"):
            if self.lock(path.name.rpartition(".")[0]).holder() is None:
                shutil.rmtree(path, ignore_errors=True)
        for step_id in self.present([*self.locked(), *(path.name for path in (self.root / "work").glob("*"))]):
            if self.lock(step_id).holder() is None:  # its process was killed between commit and tidying up
                shutil.rmtree(self._work_path(step_id), ignore_errors=True)
                self._remove_lock(step_id)

    # -- failures

    def record_failure(self, step_id: str, failure: Failure) -> None:
        """Keep why a step failed."""
        self._replace(self._failure_path(step_id), json.dumps(failure.to_json(), indent=1), flush=True)

    def failure(self, step_id: str) -> Failure | None:
        """How the step last failed, None if it did not."""
        if not is_step_id(step_id):
            return None
        try:
            return Failure.read(self._failure_path(step_id).read_bytes(), step_id)
        except FileNotFoundError:
            return None

    def failures(self, step_ids: Iterable[str]) -> dict[str, Failure]:
        """`failure` of many: of those that failed."""
        return {step_id: failure for step_id in step_ids if (failure := self.failure(step_id))}

    def clear_failure(self, step_id: str) -> None:
        """Forget why a step failed."""
        with self.guard():
            self._failure_path(step_id).unlink(missing_ok=True)

    # -- what was seen of machines

    def remember(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep what a run has seen, for those who only read."""
        self._replace(self.root / "remembered" / f"{name}.json", json.dumps(found, indent=1), flush=True)

    def recall(self, name: str) -> dict[str, Any]:
        """What was last remembered under this name; nothing where that is torn, until the next run sees it again."""
        with contextlib.suppress(FileNotFoundError):
            return mapping_in((self.root / "remembered" / f"{name}.json").read_bytes())
        return {}

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
                f"the store to a larger disk and name it with {self._named_with}, then run the same command again.",
                where=where,
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return StoreProblem(
                f"the store cannot be written ({os.strerror(error.errno)}: {error.filename or where})",
                hint=f"Make the directory writable, or name another one with {self._named_with}.",
                where=where,
            )
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return StoreProblem(
                f"the store is not a directory ({os.strerror(error.errno)}: {error.filename or where})",
                hint=f"Name a directory with {self._named_with}; it is made if it does not exist.",
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

    def _publish(self, step_id: str, staging: Path, record: Mapping[str, Any]) -> Artifact:
        """Make the sealed files of `staging` an artifact, at once, unless there is one."""
        target = self._artifact_path(step_id)
        write_file(staging / RECORD, spelled(sealed(record)), flush=True)
        sync_directory(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._rename_into_place(staging, target)
        sync_directory(target.parent)
        return Artifact(target)

    def _remove_lock(self, step_id: str) -> None:
        shutil.rmtree(self.root / "locks" / step_id, ignore_errors=True)

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


def is_step_id(text: str) -> bool:
    """Whether this may be the id of a step: one name, which leads nowhere else."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text) is not None


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def mapping_in(content: bytes) -> dict[str, Any]:
    """The JSON object, an empty one for what is none."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _assert_canonical(step_id: str, **values: Mapping[str, Any]) -> None:
    for place, value in values.items():
        try:
            canonical_json(value, place=place)
        except TypeError as error:
            raise AssertionError(f"{step_id}: {error}") from None
