"""Settings of `kind: classification`: texts with classes, from files of the study's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lorascope.registry import nearest
from lorascope.study.tasks.base import TaskSettings
from lorascope.study.tasks.labels import class_name, says_positive


class FileTask(TaskSettings):
    """A classification task of your own, from csv, tsv, jsonl or parquet files.

    text: the column, or the two columns of a pair. label: the column of classes. Files not given are carved out of train,
    stratified. metrics: the first is the primary one. positive: the class that F1 looks for.
    """

    files: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    sentences: ClassVar[Mapping[str, str]] = {
        "name": "How the study and its report call the task; not the name of a registered one.",
        "kind": "`classification`.",
        "train": "csv, tsv, jsonl or parquet file, also compressed (`.csv.gz`), relative to the study file.",
        "validation": "As `train`. Default: carved out of `train`, stratified.",
        "test": "As `train`. Default: carved out of `train`, stratified.",
        "text": "The column that holds the text, or a list of the two columns of a pair.",
        "label": "The column that holds the class, as a whole number or as text.",
        "labels": 'The classes in order. Default: those found in `train`, sorted. `1`, `1.0` and `"1"` are one class in '
        "every format, and so are `true` and `True`.",
        "positive": "Of two classes, the one that F1 looks for; it becomes the second. Needed with `f1` unless the names say "
        "it (`no` and `yes`, 0 and 1).",
        "duplicates": "What to do with examples that stand in two of the files: `refuse` them (default), or `drop` them from "
        "the earlier split, counted in the report.",
        "metrics": "What is reported; the first is the primary one, on which hypotheses rest. Default: accuracy.",
        **TaskSettings.sentences,
    }

    kind: Literal["classification"]  # type: ignore[assignment] - one of the kinds
    train: str
    validation: str | None = None
    test: str | None = None
    text: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    label: str
    labels: tuple[str | bool | int, ...] | None = None
    positive: str | bool | int | None = None
    duplicates: Literal["refuse", "drop"] = "refuse"
    metrics: tuple[Literal["accuracy", "f1", "mcc"], ...] = ("accuracy",)

    @model_validator(mode="before")
    @classmethod
    def _one_column(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            return {**value, "text": [value["text"]]}
        return value

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The declared classes, as every file spells them; None where they are those of the training file."""
        return None if self.labels is None else tuple(class_name(label) for label in self.labels)

    @model_validator(mode="after")
    def _distinct_classes(self) -> FileTask:
        for value in (*(self.labels or ()), *(() if self.positive is None else (self.positive,))):
            try:
                class_name(value)
            except ValueError:
                raise ValueError(
                    f"{value!r} is not a class: a class is a whole number, a truth value or a word"
                ) from None
        names = self.class_names
        if names is not None and (len(set(names)) < len(names) or len(names) < 2):
            found = ", ".join(f"`{name}`" for name in names)
            raise ValueError(f"`labels` must be at least two different classes; found {found}")
        return self


def positive_problem(task: FileTask, labels: Sequence[str]) -> tuple[str, str] | None:
    """Why F1 has no class to look for among these, and what to do about it; None where it has one."""
    names = ", ".join(f"`{label}`" for label in labels)
    if task.positive is None:
        if len(labels) != 2 or says_positive(labels):
            return None
        either = " or ".join(f"`positive: {label}`" for label in labels)
        return f"F1 looks for one of two classes, and nothing says which of {names}", f"add {either} to the task"
    if len(labels) != 2:
        text = f"`positive` has no effect: F1 of {len(labels)} classes is the mean over all of them"
        return text, "remove it"
    positive = class_name(task.positive)
    if positive not in labels:
        match = nearest(positive, labels)
        meant = f": did you mean `{match}`?" if match else ""
        return f"`positive: {positive}` is not one of the classes{meant}", f"they are {names}"
    return None
