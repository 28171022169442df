"""The numbered generations of a lock, as files of a directory or as objects of a bucket.

All that a lock needs of either: the exclusive creation of a number that nobody has, and a note that its holder renews.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Protocol

from lorascope.engine.store.bucket import Bucket

_NUMBER = re.compile(r"[0-9]{8}")
"""As both spell a generation; another name is nobody's."""


class Generations(Protocol):
    """Trouble with the place itself is an OSError everywhere."""

    @property
    def name(self) -> str:
        """Of the lock, for people."""
        ...

    def numbers(self) -> list[int]:
        """Those there are, ascending."""
        ...

    def read(self, number: int) -> bytes:
        """What was created, with what its holder renewed since. Raises FileNotFoundError."""
        ...

    def create(self, number: int, content: bytes) -> bool:
        """False if the number exists: the one atomic act every change of hands consists of."""
        ...

    def renew(self, number: int, content: bytes) -> None:
        """Let others read `content`, which is as long as what was created."""
        ...

    def remove(self, number: int) -> None:
        """Harmless if it is gone."""
        ...

    def remove_place(self) -> None:
        """After the last number: what is left of the lock."""
        ...

    def changed_hands_at(self) -> float | None:
        """When the last number was created: Unix time of the store's clock, None if there is none."""
        ...


class DirectoryGenerations:
    """One file a number, rewritten in place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def name(self) -> str:
        return self._directory.name

    def numbers(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self._directory) if _NUMBER.fullmatch(name))
        except FileNotFoundError:
            return []

    def read(self, number: int) -> bytes:
        return self._path(number).read_bytes()

    def create(self, number: int, content: bytes) -> bool:
        while True:
            try:
                handle = os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            except FileNotFoundError:  # no directory yet, or its last holder just removed it
                self._directory.mkdir(parents=True, exist_ok=True)
                continue
            try:
                os.write(handle, content)
            except BaseException:  # a full disk, or a signal: half a lock would be held until the timeout
                self.remove(number)
                raise
            finally:
                os.close(handle)
            return True

    def renew(self, number: int, content: bytes) -> None:
        handle = os.open(self._path(number), os.O_WRONLY)
        try:
            os.write(handle, content)
            os.fsync(handle)  # a network file system shows others only what is flushed
        finally:
            with contextlib.suppress(OSError):
                os.close(handle)

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def remove_place(self) -> None:
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    def changed_hands_at(self) -> float | None:
        try:
            return self._directory.stat().st_mtime  # changes with its entries, not when a holder renews its note
        except FileNotFoundError:
            return None

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}"


class BucketGenerations:
    """One object a number, never rewritten, and beside it the note that its holder renews: an object that is written anew
    after all was removed must not bring a generation back.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._place = bucket, key

    @property
    def name(self) -> str:
        return self._place.rpartition("/")[2]

    def numbers(self) -> list[int]:
        names = (key.rpartition("/")[2] for key in self._bucket.keys(self._place))
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def read(self, number: int) -> bytes:
        created = self._bucket.read(self._key(number))
        try:
            return created + self._bucket.read(self._note(number))
        except FileNotFoundError:
            return created

    def create(self, number: int, content: bytes) -> bool:
        return self._bucket.create(self._key(number), content)

    def renew(self, number: int, content: bytes) -> None:
        self._bucket.write(self._note(number), content)

    def remove(self, number: int) -> None:
        self._bucket.remove([self._key(number), self._note(number)])

    def remove_place(self) -> None:
        """There is none: whoever takes the lock meanwhile must find what he created."""

    def changed_hands_at(self) -> float | None:
        numbers = self.numbers()
        return self._bucket.written_at(self._key(numbers[-1])) if numbers else None

    def _key(self, number: int) -> str:
        return f"{self._place}/{number:08d}"

    def _note(self, number: int) -> str:
        return f"{self._place}/{number:08d}.note"
