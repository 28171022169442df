"""A store as one tar file, or as pieces of it, for transport to another machine; with or without the weights of its runs.

What is packed unpacks with `tar` into a directory that is a store again. Weights are most of a store's bytes, and a report, a
table or a new analysis needs none of them: without them, each record lists what was left out, and is sealed anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lorascope.engine.store.artifact import RECORD, Artifact
from lorascope.engine.store.integrity import LEFT_OUT, sealed, spelled
from lorascope.errors import EnvironmentProblem, StudyError

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
"""How the names of weight files end."""
_FEWEST_BYTES = 10_000
_COMPRESSED = (".gz", ".tgz")


@dataclass(frozen=True)
class Packed:
    """files: what was written, in order. num_left_out: files; left_out_bytes: their size."""

    files: tuple[Path, ...]
    num_artifacts: int
    num_left_out: int
    left_out_bytes: int


def pack_store(store: Store, to: Path, *, without_weights: bool, piece_bytes: int | None) -> Packed:
    """The store's finished steps, the steps it knows and what it remembers of machines. to: the file, or what the names of
    its pieces begin with; one that ends in .gz or .tgz is compressed. piece_bytes: the most in a piece (None: one file).

    Raises StudyError where there is nothing to pack, or something of that name is there; EnvironmentProblem where it cannot
    be written; CorruptArtifact for a step that is not what was committed.
    """
    if piece_bytes is not None and piece_bytes < _FEWEST_BYTES:
        raise StudyError(f"pieces of {piece_bytes} bytes are too small", hint=f"give at least {_FEWEST_BYTES:,}")
    ids = store.ids()
    if not ids:
        raise StudyError(
            f"{store.place} holds no finished step, so there is nothing to pack", hint="give another store"
        )
    there = sorted(to.parent.glob(f"{to.name}*")) if piece_bytes is not None else [to] if to.exists() else []
    if there:
        raise StudyError(f"{there[0]} is there already", hint="give another name, or remove it")
    num_left_out = left_out_bytes = 0
    pieces = _Pieces(to, piece_bytes)
    try:
        with pieces, tarfile.open(fileobj=pieces, mode=_mode(to), format=tarfile.PAX_FORMAT) as tar:
            for step_id in ids:
                record = _add_artifact(tar, store.artifact(step_id), without_weights=without_weights)
                num_left_out += len(record.get(LEFT_OUT, ()))
                left_out_bytes += sum(record["files"][name] for name in record.get(LEFT_OUT, ()))
            _add_text(tar, "remembered/engines.json", json.dumps(store.recall("engines"), indent=1))
    except OSError as error:
        raise EnvironmentProblem(
            f"{to} cannot be written: {error.strerror or error}", hint="choose another FILE"
        ) from None
    return Packed(tuple(pieces.files), len(ids), num_left_out, left_out_bytes)


def _mode(to: Path) -> Any:
    return "w|gz" if to.suffix in _COMPRESSED else "w|"


def _add_artifact(tar: tarfile.TarFile, artifact: Artifact, *, without_weights: bool) -> dict[str, Any]:
    """The artifact's files, each checked, its record last."""
    record, place = dict(artifact.record), PurePosixPath("artifacts", artifact.step.kind, artifact.id)
    weights = {name for name in record["files"] if without_weights and name.endswith(WEIGHTS)}
    if left_out := sorted(weights | set(artifact.left_out)):
        record[LEFT_OUT] = left_out
        record = sealed(record)
    for name in record["files"]:
        if name not in left_out:
            tar.add(artifact.file(name), str(place / name), filter=_anonymous)
    _add_text(tar, str(place / RECORD), spelled(record))
    return record


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names and numbers of this machine's users."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


class _Pieces(io.RawIOBase):
    """A stream that is written on to the next file whenever one is full. The files get their names at the end, so that a
    pack that was interrupted is not taken for a whole one."""

    def __init__(self, to: Path, most_bytes: int | None) -> None:
        super().__init__()
        self._to, self._most_bytes = to, most_bytes
        self._drafts: list[Path] = []
        self._open: io.BufferedWriter | None = None
        self._room = 0
        self.files: list[Path] = []

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        while view:
            if self._open is None or not self._room:
                self._begin()
            assert self._open is not None
            part = view[: self._room]
            self._open.write(part)
            self._room -= len(part)
            view = view[len(part) :]
        return len(memoryview(data))

    def writable(self) -> bool:
        return True

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._open is not None:
            self._open.close()
        for number, draft in enumerate(self._drafts):
            if kind is not None:
                with contextlib.suppress(OSError):
                    draft.unlink()
                continue
            name = self._to.name if self._most_bytes is None else f"{self._to.name}.{number:03d}"
            draft.rename(draft.with_name(name))
            self.files.append(draft.with_name(name))
        super().__exit__(kind, error, trace)

    def _begin(self) -> None:
        if self._open is not None:
            self._open.close()
        draft = self._to.with_name(f".{self._to.name}.{len(self._drafts):03d}.draft")
        self._drafts.append(draft)
        self._open = draft.open("wb")
        self._room = self._most_bytes if self._most_bytes is not None else 2**62
