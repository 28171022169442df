"""Settings of `kind: toy-images`: images with classes, from a parquet file of the study's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lorascope.study.tasks.base import TaskSettings


class ImagesTask(TaskSettings):
    """images: parquet with `image`, a struct of an encoded file's bytes and its path, and `label`, a class by name."""

    files: ClassVar[tuple[str, ...]] = ("images",)
    sentences: ClassVar[Mapping[str, str]] = {
        "name": "How the study and its report call the task.",
        "kind": "`toy-images`.",
        "images": "A parquet file with the columns image and label, relative to the study file.",
    }

    kind: Literal["toy-images"]  # type: ignore[assignment] - one of the kinds
    images: str
