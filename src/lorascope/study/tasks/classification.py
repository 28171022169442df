"""Settings of `kind: classification`: texts with classes, from files of the study's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lorascope.study.tasks.base import TaskSettings


class FileTask(TaskSettings):
    """A classification task of your own, from csv, jsonl or parquet files.

    text: the column, or the two columns of a pair. label: the column of integers or strings. Files not given are carved
    out of train, stratified. metrics: the first is the primary one.
    """

    files: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    sentences: ClassVar[Mapping[str, str]] = {
        "name": "How the study and its report call the task; not the name of a registered one.",
        "kind": "`classification`.",
        "train": "csv, jsonl or parquet file, relative to the study file.",
        "validation": "As `train`. Default: carved out of `train`, stratified.",
        "test": "As `train`. Default: carved out of `train`, stratified.",
        "text": "The column that holds the text, or a list of the two columns of a pair.",
        "label": "The column that holds the class, as a whole number or as text.",
        "labels": "The classes in order. Default: those found in `train`, sorted.",
        "metrics": "What is reported; the first is the primary one, on which hypotheses rest. Default: accuracy.",
    }

    kind: Literal["classification"]  # type: ignore[assignment] - one of the kinds
    train: str
    validation: str | None = None
    test: str | None = None
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    label: str
    labels: tuple[str | int, ...] | None = None
    metrics: tuple[Literal["accuracy", "f1", "mcc"], ...] = ("accuracy",)

    @model_validator(mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            return {**value, "text": [value["text"]]}
        return value
