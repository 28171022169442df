"""Files that survive a power cut, and how to recognise them again: flushing, sizes, checksums."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path


def seal_files(directory: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Flush all that is under `directory` to the disk; the files' sizes in bytes and SHA-256 checksums by name."""
    sizes, checksums = {}, {}
    links = [file for file in directory.rglob("*") if file.is_symlink()]
    assert not links, f"an artifact holds files, not links: {', '.join(name_in(directory, link) for link in links)}"
    for file in files_under(directory):
        name = name_in(directory, file)
        checksums[name] = sha256_of(file)
        sizes[name] = file.stat().st_size
        sync_file(file)
    for parent, names, _ in os.walk(directory):
        for name in names:
            sync_directory(Path(parent, name))
    return sizes, checksums


def files_under(directory: Path) -> list[Path]:
    """Every file under a directory."""
    return sorted(Path(parent, name) for parent, _, names in os.walk(directory) for name in names)


def name_in(directory: Path, file: Path) -> str:
    """A file's path within the directory."""
    return file.relative_to(directory).as_posix()


def sha256_of(file: Path) -> str:
    """The checksum of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, text: str, *, flush: bool) -> None:
    """flush: also to the disk, so that a power cut cannot empty the file."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())


def sync_file(path: Path) -> None:
    """Make sure that a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries. Some network file systems refuse this for directories and flush on their own."""
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
