"""Your own classification data: csv, tsv, jsonl or parquet files, named with their columns in the study.

Classes come from `labels` in the study, which fixes their order, or else from the training file. Protocols `strict` and
`paper` are the same here: such a task has a test set of its own, given or carved out of train.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.errors import DataError
from lorascope.study.tasks.base import TaskSettings
from lorascope.study.tasks.classification import FileTask, positive_problem
from lorascope.study.tasks.labels import class_name, label_order, with_positive
from lorascope.tasks.classification import Classification, class_examples

ROLES = ("train", "validation", "test")
# Raised when the same files give other examples or other classes: part of the task's identity.
READER = 2


class ClassificationFiles(Classification):
    """The task of a `FileTask`."""

    settings: ClassVar[type[TaskSettings] | None] = FileTask

    @classmethod
    def describe(cls, spec: FileTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        found = describe_files({role: Path(path) for role in ROLES if (path := getattr(spec, role)) is not None})
        return SourceDescription({**found.fingerprint, "reader": READER}, found.locations)

    @classmethod
    def read(cls, spec: FileTask, *, source: SourceDescription, protocol: str) -> RawExamples:
        from lorascope.data.tables import content_ids, number_labels, read_table, select_examples

        paths = {role: Path(source.locations[role]) for role in ROLES if role in source.locations}
        found = {
            role: select_examples(read_table(path), path=path, text=spec.text, label=spec.label)
            for role, path in paths.items()
        }
        labels = _classes(spec, found["train"]["label"])
        declared = "declared by `labels`" if spec.labels else "of the training examples"
        splits = {}
        for role, examples in found.items():
            examples = number_labels(examples, path=paths[role], labels=labels, declared=declared)
            examples.insert(0, "example_id", content_ids(examples, text=spec.text))
            splits[role] = examples.assign(file_row=[f"row {row + 1} of the {role} file" for row in examples.index])
        names = ", ".join(path.name for path in paths.values())
        raw = class_examples(
            splits,
            label_names=labels,
            text_columns=spec.text,
            metrics=spec.metrics,
            source=f"files: {names}",
            duplicates_are_errors=spec.duplicates == "refuse",
        )
        return replace(raw, keeps_some=spec.duplicates == "refuse")


def _classes(spec: FileTask, found: Iterable[str]) -> tuple[str, ...]:
    """The classes in their order, the one that F1 looks for as the second of two. found: labels of the training file.

    Raises DataError where F1 is wanted and nothing says which of two classes it is about.
    """
    labels = spec.class_names or label_order(found)
    if spec.positive is None and "f1" not in spec.metrics:
        return labels
    problem = positive_problem(spec, labels)
    if problem is not None:
        raise DataError(problem[0], hint=problem[1], where=f"tasks: {spec.name}")
    return labels if spec.positive is None else with_positive(labels, class_name(spec.positive))
