"""Verbs about a store as a whole: `pack`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli.options import AsJson
from lorascope.errors import StudyError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def pack(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store: a directory, or s3://BUCKET/PREFIX.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tar file to write; compressed if it ends in .gz.")],
    without_weights: Annotated[
        bool,
        typer.Option("--without-weights", help="Leave weight files out; records list them, and steps stay finished."),
    ] = False,
    pieces: Annotated[
        str | None,
        typer.Option("--pieces", metavar="SIZE", help="Write FILE.000, FILE.001, ... of at most this size: 60MB."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the finished steps of a store as a tar file, for transport. `tar xf FILE -C DIR` makes a store of it again."""
    from lorascope import api

    size = None if pieces is None else bytes_of(pieces)
    packed = api.pack(store, file, without_weights=without_weights, piece_bytes=size)
    if as_json:
        print(json.dumps({**dataclasses.asdict(packed), "files": [str(written) for written in packed.files]}, indent=2))
        return
    for written in packed.files:
        print(f"wrote {written}, {written.stat().st_size:,} bytes")
    left_out = f", without {packed.num_left_out} weight files of {packed.left_out_bytes:,} bytes"
    print(f"{packed.num_artifacts} finished steps{left_out if packed.num_left_out else ''}")
    flag = "z" if file.suffix in (".gz", ".tgz") else ""
    source = f"cat {file}.* | tar x{flag}" if size is not None else f"tar x{flag}f {file}"
    print(f"to unpack: mkdir STORE && {source} -C STORE")


def bytes_of(text: str) -> int:
    """ "60MB" -> 60000000. Raises StudyError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]B|)\s*", text, re.IGNORECASE)
    if match is None:
        raise StudyError(f"--pieces: {text!r} is not a size", hint="such as 60MB")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])
