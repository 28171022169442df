"""A place in object storage, reached through fsspec: whole objects, one of them created exclusively, nothing renamed.

`create` is what everything else rests on: of any number of processes that create one key, one succeeds (a conditional PUT,
which the service decides). Only services that can do so are let in, and each place is put to the proof before work starts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem, StudyError

PATIENCE_S = 60.0
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
_CHUNK_BYTES = 1 << 20

_LIBRARIES = {"s3": "s3fs"}
"""Scheme -> the package that reaches it, an extra of the same name as the scheme. Each decides `mode="create"` at the
service; fsspec's other file systems look first and write then, or ignore it."""

_SPEAKERS = ("botocore", "aiobotocore", "aiohttp")
"""Packages whose exceptions mean trouble with the service."""


class BucketTrouble(OSError):
    """A place in object storage that does not do what it should. hint: the remedy. is_lasting: waiting mends nothing."""

    def __init__(self, message: str, *, hint: str, is_lasting: bool) -> None:
        super().__init__(message)
        self.message, self.hint, self.is_lasting = message, hint, is_lasting


class Bucket:
    """The objects of `file_system` (of fsspec) under `root`, each named by a key below it. url: the place, for people.

    Every method raises BucketTrouble, after trying for `patience_s` where waiting may help. Keys are "directory/name".
    """

    def __init__(self, file_system: Any, root: str, *, url: str, patience_s: float = PATIENCE_S) -> None:
        self._files, self._root, self.url = file_system, root.rstrip("/"), url.rstrip("/")
        self.patience_s = patience_s

    def address(self, key: str) -> str:
        """The address of a key, for people."""
        return f"{self.url}/{key}"

    def create(self, key: str, content: bytes) -> bool:
        """Make an object that was not there. False if it was: then nothing has changed.

        The answer to a request may be lost and the request be made again: what is there is ours if it is what we wrote, so
        contents must differ between those who contend.
        """
        try:
            self._ask(self._create, key, content)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                return self.read(key) == content
            return False
        return True

    def write(self, key: str, content: bytes) -> None:
        self._ask(self._files.pipe_file, self._path(key), content)

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        """Write several objects."""
        if contents:
            self._ask(self._files.pipe, {self._path(key): content for key, content in contents.items()})

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return self._ask(self._files.cat_file, self._path(key))

    def read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The contents of those that are there, read together."""
        return self._ask(self._read_all, keys) if keys else {}

    def keys(self, directory: str) -> list[str]:
        """Of all objects below a directory, sorted."""
        return sorted(self._ask(self._list, directory))

    def upload(self, file: Path, key: str) -> None:
        """Write a file of this machine."""
        self._ask(self._files.put_file, str(file), self._path(key))

    def download(self, key: str, file: Path) -> None:
        """Raises FileNotFoundError."""
        self._ask(self._files.get_file, self._path(key), str(file))

    def measure(self, key: str) -> tuple[int, str]:
        """An object's bytes and the SHA-256 of its content, read as a stream. Raises FileNotFoundError."""
        return self._ask(self._measure, key)

    def remove(self, keys: Iterable[str]) -> None:
        """Harmless for those that are not there."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._ask(self._files.rm_file, self._path(key))

    def written_at(self, key: str) -> float | None:
        """Unix time of the service's clock, None if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            return self._ask(self._files.modified, self._path(key)).timestamp()
        return None

    def prove(self) -> None:
        """Raises BucketTrouble at once unless objects can be written, listed, read and removed here and a second creation of
        one is refused."""
        patience_s, self.patience_s = self.patience_s, 0.0
        key = f"checks/{uuid.uuid4().hex}/proof"
        try:
            first = self.create(key, b"first")
            second = self.create(key, b"second")
            is_whole = self.read(key) == b"first" and self.keys(key.rpartition("/")[0]) == [key]
            self.remove([key])
        finally:
            self.patience_s = patience_s
        if not first or second or not is_whole:
            raise BucketTrouble(
                f"{self.url} let an object be created that was there already, so no lock can hold and no commit is safe",
                hint="The service must honour If-None-Match on PUT, as Amazon S3, MinIO and Cloudflare R2 do; or give a "
                "directory with --store.",
                is_lasting=True,
            )

    # -- asking the service

    def _ask(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        deadline, wait_s = time.monotonic() + self.patience_s, _FIRST_WAIT_S
        while True:
            try:
                return ask(*arguments)
            except Exception as error:
                trouble = self._trouble(error)
                if trouble is None:
                    raise
                if trouble.is_lasting or time.monotonic() + wait_s > deadline:
                    raise trouble from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _trouble(self, error: Exception) -> BucketTrouble | None:
        """What `error` means; None if it is an answer (there, not there), or none of the service's."""
        if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            return None  # of this machine's disk
        code = _code(error)
        is_of_service = type(error).__module__.partition(".")[0] in _SPEAKERS
        if code == "NoSuchBucket":
            return BucketTrouble(
                f"there is no bucket for {self.url}",
                hint="Create it, or name another one with --store.",
                is_lasting=True,
            )
        if isinstance(error, FileNotFoundError | FileExistsError):
            return None
        if "Credential" in type(error).__name__ and is_of_service:
            return BucketTrouble(
                f"there are no credentials for {self.url}",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine a role.",
                is_lasting=True,
            )
        said = str(error).strip().splitlines()
        reason = f"{code + ': ' if code else ''}{said[0] if said else type(error).__name__}"
        if isinstance(error, PermissionError):
            return BucketTrouble(
                f"{self.url} may not be used with these credentials ({reason})",
                hint="They must allow listing the bucket and getting, putting and deleting objects below that prefix "
                "(s3:ListBucket, GetObject, PutObject, DeleteObject).",
                is_lasting=True,
            )
        if isinstance(error, OSError) or is_of_service:
            return BucketTrouble(
                f"{self.url} does not answer as it should ({reason})",
                hint="Check the network, and AWS_ENDPOINT_URL and AWS_REGION if the service is not Amazon's. What is finished "
                "is kept: give the same command again.",
                is_lasting=False,
            )
        return None

    def _create(self, key: str, content: bytes) -> None:
        try:
            self._files.pipe_file(self._path(key), content, mode="create")
        except OSError as error:
            if _code(error) == "PreconditionFailed":  # whatever s3fs makes of it
                raise FileExistsError(key) from error
            raise

    def _list(self, directory: str) -> list[str]:
        found = self._files.find(self._path(directory))
        return [str(path).removeprefix(f"{self._root}/") for path in found]

    def _read_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        paths = {self._path(key): key for key in keys}
        found = self._files.cat(list(paths), on_error="return")
        contents = {}
        for path, content in found.items():
            if isinstance(content, FileNotFoundError) and _code(content) != "NoSuchBucket":
                continue
            if isinstance(content, Exception):
                raise content
            contents[paths[path]] = content
        return contents

    def _measure(self, key: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self._files.open(self._path(key), "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


def open_bucket(url: str) -> Bucket:
    """The place that `url` names. Nothing is asked of the service yet.

    Raises StudyError for an address that can be no store, EnvironmentProblem where a package is missing.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _LIBRARIES:
        raise StudyError(
            f"--store {url}: object storage is reached as s3://BUCKET/PREFIX; {scheme}:// cannot be a store",
            hint="Of fsspec's file systems only those are taken whose service itself refuses to create an object that is "
            "there. A directory is named by its path alone.",
        )
    if not rest.strip("/") or "?" in rest or "#" in rest:
        raise StudyError(f"--store {url} names no bucket", hint=f"{scheme}://BUCKET/PREFIX")
    try:
        __import__(_LIBRARIES[scheme])
    except ModuleNotFoundError as error:
        if error.name != _LIBRARIES[scheme]:
            raise
        raise EnvironmentProblem(
            f"--store {url} needs the package `{_LIBRARIES[scheme]}`, which is not installed",
            hint=f'pip install "lorascope[{scheme}]"',
        ) from None
    import fsspec

    # What others write is to be seen at once, and so is an endpoint or a key that was changed in the environment.
    file_system = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    return Bucket(file_system, os.path.normpath(rest), url=f"{scheme}://{os.path.normpath(rest)}")


def _code(error: BaseException | None) -> str:
    """What the service called it, "" if it did not say."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
