"""Notes that processes leave for each other in a store, which prove that it is one store to both and can be written."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

from lorascope.engine.store.bucket import Bucket
from lorascope.engine.store.directory import Store
from lorascope.engine.store.remote import RemoteStore

_VISIBLE_WITHIN_S = 5.0  # network file systems show others a new file after a moment


class Notes(Protocol):
    """Those of one occasion. Trouble with the store is an OSError."""

    def leave(self, name: str) -> None:
        """Leave a note of this name."""
        ...

    def is_there(self, name: str) -> bool:
        """Whether a note of this name has arrived."""
        ...

    def is_refused(self, name: str) -> bool:
        """Whether the store refuses to create a note that is there."""
        ...

    def forget(self) -> None:
        """Remove all of them."""
        ...


def notes_in(store: Store, occasion: str) -> Notes:
    """The notes of one check in this store."""
    if isinstance(store, RemoteStore):
        return _BucketNotes(store.bucket, f"checks/{occasion}")
    return _DirectoryNotes(store.root / "checks" / occasion)


class _DirectoryNotes:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def leave(self, name: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        draft = self._directory / f"{name}.draft"
        draft.write_text(name)
        os.replace(draft, self._directory / name)

    def is_there(self, name: str) -> bool:
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while not (self._directory / name).exists():
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(OSError):
                os.listdir(self._directory)  # makes a network file system ask its server again
            time.sleep(0.1)
        return True

    def is_refused(self, name: str) -> bool:
        try:
            os.close(os.open(self._directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return True
        return False

    def forget(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._directory.parent.rmdir()


class _BucketNotes:
    def __init__(self, bucket: Bucket, place: str) -> None:
        self._bucket, self._place = bucket, place

    def leave(self, name: str) -> None:
        self._bucket.write(f"{self._place}/{name}", name.encode())

    def is_there(self, name: str) -> bool:
        return f"{self._place}/{name}" in self._bucket.keys(self._place)

    def is_refused(self, name: str) -> bool:
        return not self._bucket.create(f"{self._place}/{name}", b"another")

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._bucket.remove(self._bucket.keys(self._place))
