"""A store whose finished work lies in object storage, with a directory of this machine in front of it.

A step's files are uploaded under a key of their own attempt, its record last, as one object that is created exclusively and
names that attempt: an artifact exists if and only if its record does, and is complete then. Nothing is renamed, the first
commit wins, and files that no record names are no part of anything.

    records/<step id>.json                the record of a finished step: its files, their sizes and checksums, the attempt
    files/<step id>/<attempt>/            those files
    locks/<step id>/  failures/  steps/   as in a directory
    damaged/<step id>/<attempt>.json      the record of a damaged attempt that was set aside

The directory keeps what is local: staging/, work/ (checkpoints), cache/, logs/, and files/, those of the bucket that were
made or needed here, each compared with its record when it arrives. It can be deleted while nothing runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.engine.failure import Failure
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.bucket import Bucket, BucketTrouble
from lorascope.engine.store.directory import Store, StoreProblem, mapping_in
from lorascope.engine.store.durable import files_under, name_in, sha256_of, sync_file
from lorascope.engine.store.generations import BucketGenerations
from lorascope.engine.store.integrity import (
    LEFT_OUT,
    CorruptArtifact,
    check_file,
    discrepancies,
    files_named,
    parsed_record,
    sealed,
    spelled,
)
from lorascope.engine.store.lock import StepLock

BEAT_S = 10.0  # each beat is two requests that are paid for
LOOK_EVERY_S = 5.0


class RemoteArtifact(Artifact):
    """A committed artifact in a bucket. Its files are fetched when they are asked for."""

    def __init__(self, store: RemoteStore, record: Mapping[str, Any]) -> None:
        self._store = store
        self.record = record

    @property
    def path(self) -> Path:
        """The directory of all its files, fetched now."""
        for name in self.record["files"]:
            self._store.fetch(self.record, name)
        directory = self._store.kept(self.record)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def checked_path(self) -> Path:
        return self.path

    @property
    def place(self) -> str:
        return self._store.bucket.address(_record_key(self.record["id"]))

    def file(self, name: str) -> Path:
        names = files_named(name, self.record)
        if not names:
            raise FileNotFoundError(f"{self.id} has no file {name}")
        for file in names:
            self._store.fetch(self.record, file)
        return self._store.kept(self.record) / name


class RemoteStore(Store):
    """What is finished in `bucket`, what is under way in the directory `root`.

    A committed artifact stays, so a record that was read is read once; what is absent is asked for anew each time.
    """

    look_every_s = LOOK_EVERY_S
    _named_with = "LORASCOPE_LOCAL_STORE"

    def __init__(self, bucket: Bucket, root: Path) -> None:
        super().__init__(root)
        self.bucket = bucket
        self._records: dict[str, Mapping[str, Any]] = {}

    @property
    def place(self) -> str:
        return self.bucket.url

    def check(self) -> None:
        with self.guard():
            self.bucket.prove()

    # -- finished work

    def has(self, step_id: str) -> bool:
        return self._record(step_id) is not None

    def present(self, step_ids: Iterable[str]) -> set[str]:
        found = set(step_ids)
        if found:
            found &= set(self.ids())
            self._read(found)
        return found

    def ids(self, kind: str | None = None) -> list[str]:
        names = self._names("records")
        return [name for name in names if kind is None or name.partition("-")[0] == kind]

    def artifact(self, step_id: str) -> Artifact:
        record = self._record(step_id)
        if record is None:
            raise KeyError(step_id)
        return RemoteArtifact(self, record)

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        ids = self.ids(kind)
        self._read(ids)
        return [RemoteArtifact(self, self._records[i]) for i in ids if i in self._records]

    def glances(self) -> Iterator[Mapping[str, Any]]:
        ids = self.ids()
        self._read(ids)
        return (self._records[i] for i in ids if i in self._records)

    def verify(self, step_id: str) -> list[str]:
        """Reads every file of the artifact in the bucket, and those of its files that lie here."""
        with self.guard():
            try:
                record = json.loads(self.bucket.read(_record_key(step_id)))
                place, kept = _key_of(record), self.kept(record)
                keys = self.bucket.keys(place)
                found = [key.removeprefix(f"{place}/") for key in keys]
                problems = discrepancies(step_id, record, found, lambda name: self.bucket.measure(f"{place}/{name}"))
            except FileNotFoundError:
                return [f"{step_id}: there is no such artifact"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                return [f"{step_id}: its record cannot be read ({type(error).__name__}: {error})"]
            for file in files_under(kept):
                if sha256_of(file) != record["sha256"].get(name_in(kept, file)):
                    problems.append(f"{step_id}: {file}, a copy of this machine, is not the file that was committed")
        return problems

    def set_aside(self, step_id: str) -> str | None:
        """The record is moved; the files that it names stay under its attempt."""
        key = _record_key(step_id)
        with self.guard():
            try:
                content = self.bucket.read(key)
            except FileNotFoundError:
                return None
            try:
                attempt = str(json.loads(content)["attempt"])
            except (ValueError, KeyError, TypeError):
                attempt = uuid.uuid4().hex[:12]
            target = f"damaged/{step_id}/{attempt}.json"
            self.bucket.write(target, content)
            self.bucket.remove([key])
        self._records.pop(step_id, None)
        return self.bucket.address(target)

    def fetch(self, record: Mapping[str, Any], name: str) -> None:
        """Have a file of an artifact on this machine, as it was committed. A copy of this machine that was damaged is fetched
        again. Raises CorruptArtifact, FilesLeftOut, StoreProblem."""
        target, key = self.kept(record) / name, f"{_key_of(record)}/{name}"
        with self.guard():
            with contextlib.suppress(CorruptArtifact):
                if target.exists():
                    check_file(target, name, record)
                    return
            draft = self._directory("arriving") / uuid.uuid4().hex
            try:
                self.bucket.download(key, draft)
                if draft.stat().st_size != record["files"][name] or sha256_of(draft) != record["sha256"][name]:
                    raise self._corrupt(record["id"], f"{self.bucket.address(key)} is not the file that was committed")
                sync_file(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft, target)
            except FileNotFoundError:
                if name in record.get(LEFT_OUT, ()):
                    check_file(target, name, record)
                raise self._corrupt(record["id"], f"{self.bucket.address(key)} is missing") from None
            finally:
                draft.unlink(missing_ok=True)

    def kept(self, record: Mapping[str, Any]) -> Path:
        """Where the files of an artifact lie on this machine, as far as they do."""
        return self.root / _key_of(record)

    # -- steps, and work under way

    def save_step(self, step: Step) -> None:
        self.save_steps([step])

    def save_steps(self, steps: Sequence[Step]) -> None:
        with self.guard():
            texts = {f"steps/{step.id}.json": json.dumps(step.to_json(), indent=1, sort_keys=True) for step in steps}
            self.bucket.write_all({key: text.encode() for key, text in texts.items()})

    def load_step(self, step_id: str) -> Step:
        with self.guard(), contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return Step.from_json(json.loads(self.bucket.read(f"steps/{step_id}.json")))
        return self.artifact(step_id).step

    def lock(self, step_id: str) -> StepLock:
        return StepLock(BucketGenerations(self.bucket, f"locks/{step_id}"), beat_s=BEAT_S)

    def locked(self) -> list[str]:
        with self.guard():
            return sorted({key.split("/")[1] for key in self.bucket.keys("locks")})

    # -- failures

    def record_failure(self, step_id: str, failure: Failure) -> None:
        with self.guard():
            self.bucket.write(f"failures/{step_id}.json", json.dumps(failure.to_json(), indent=1).encode())

    def failure(self, step_id: str) -> Failure | None:
        with self.guard(), contextlib.suppress(FileNotFoundError):
            return Failure.read(self.bucket.read(f"failures/{step_id}.json"), step_id)
        return None

    def failures(self, step_ids: Iterable[str]) -> dict[str, Failure]:
        failed = set(self._names("failures"))
        with self.guard():
            keys = [f"failures/{step_id}.json" for step_id in step_ids if step_id in failed]
            found = self.bucket.read_all(keys)
        return {(name := _name_in_key(key)): Failure.read(content, name) for key, content in found.items()}

    def clear_failure(self, step_id: str) -> None:
        with self.guard():
            self.bucket.remove([f"failures/{step_id}.json"])

    # -- what was seen of machines

    def remember(self, name: str, found: Mapping[str, Any]) -> None:
        with self.guard():
            self.bucket.write(f"remembered/{name}.json", json.dumps(found, indent=1).encode())

    def recall(self, name: str) -> dict[str, Any]:
        with self.guard(), contextlib.suppress(FileNotFoundError):
            return mapping_in(self.bucket.read(f"remembered/{name}.json"))
        return {}

    # -- asking and writing

    def problem(self, error: OSError) -> StoreProblem | None:
        if isinstance(error, BucketTrouble):
            return StoreProblem(error.message, hint=error.hint)
        return super().problem(error)

    def _publish(self, step_id: str, staging: Path, record: Mapping[str, Any]) -> Artifact:
        record = sealed({**record, "attempt": uuid.uuid4().hex[:12]})
        place = _key_of(record)
        for name in record["files"]:
            self.bucket.upload(staging / name, f"{place}/{name}")
        if self.bucket.create(_record_key(step_id), spelled(record).encode()):
            self._records[step_id] = record
        # From here on the artifact exists, ours or another's; the rest is tidying up, and may fail.
        with contextlib.suppress(OSError):
            winner = (
                self._records[step_id]
                if step_id in self._records
                else json.loads(self.bucket.read(_record_key(step_id)))
            )
            if winner["attempt"] == record["attempt"]:
                kept = self.kept(record)
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.rename(staging, kept)
            kept_apart = [
                key.rpartition("/")[2].removesuffix(".json") for key in self.bucket.keys(f"damaged/{step_id}")
            ]
            whole = tuple(f"files/{step_id}/{attempt}/" for attempt in (winner["attempt"], *kept_apart))
            self.bucket.remove(key for key in self.bucket.keys(f"files/{step_id}") if not key.startswith(whole))
        shutil.rmtree(staging, ignore_errors=True)
        return self.artifact(step_id)

    def _remove_lock(self, step_id: str) -> None:
        self.bucket.remove(self.bucket.keys(f"locks/{step_id}"))

    def _record(self, step_id: str) -> Mapping[str, Any] | None:
        if step_id not in self._records:
            key = _record_key(step_id)
            with self.guard():
                try:
                    content = self.bucket.read(key)
                except FileNotFoundError:
                    return None
            self._records[step_id] = self._parsed(key, content)
        return self._records[step_id]

    def _read(self, step_ids: Iterable[str]) -> None:
        """Records together, as far as they are there."""
        with self.guard():
            found = self.bucket.read_all([_record_key(i) for i in step_ids if i not in self._records])
        for key, content in found.items():
            self._records[_name_in_key(key)] = self._parsed(key, content)

    def _parsed(self, key: str, content: bytes) -> Mapping[str, Any]:
        record = parsed_record(content, _name_in_key(key), place=self.bucket.address(key))
        if "attempt" not in record:
            raise self._corrupt(_name_in_key(key), f"{self.bucket.address(key)} is not a record")
        return record

    def _corrupt(self, step_id: str, message: str) -> CorruptArtifact:
        return CorruptArtifact(message, step_id=step_id)

    def _names(self, directory: str) -> list[str]:
        with self.guard():
            return sorted(_name_in_key(key) for key in self.bucket.keys(directory))


def _record_key(step_id: str) -> str:
    return f"records/{step_id}.json"


def _key_of(record: Mapping[str, Any]) -> str:
    """Where the files of a record lie, in the bucket and in the directory."""
    return f"files/{record['id']}/{record['attempt']}"


def _name_in_key(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
