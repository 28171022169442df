"""Your own classification data: csv, jsonl or parquet files, named with their columns in the study.

Classes come from `labels` in the study, which fixes their order, or else from the training file. The protocol changes
nothing here: such a task has a test set of its own, given or carved out of train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.errors import DataError
from lorascope.study.tasks.base import TaskSettings
from lorascope.study.tasks.classification import FileTask
from lorascope.tasks.classification import Classification, class_examples

ROLES = ("train", "validation", "test")


class ClassificationFiles(Classification):
    """The task of a `FileTask`."""

    settings: ClassVar[type[TaskSettings] | None] = FileTask

    @classmethod
    def describe(cls, spec: FileTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        return describe_files({role: Path(path) for role in ROLES if (path := getattr(spec, role)) is not None})

    @classmethod
    def read(cls, spec: FileTask, *, source: SourceDescription, protocol: str) -> RawExamples:
        from lorascope.data.tables import content_ids, label_order, number_labels, read_table, select_examples

        paths = {role: Path(source.locations[role]) for role in ROLES if role in source.locations}
        found = {
            role: select_examples(read_table(path), path=path, text=spec.text, label=spec.label)
            for role, path in paths.items()
        }
        labels = _declared_labels(spec) or label_order(found["train"]["label"])
        declared = "declared by `labels`" if spec.labels else "of the training examples"
        splits = {}
        for role, examples in found.items():
            examples = number_labels(examples, path=paths[role], labels=labels, declared=declared)
            examples.insert(0, "example_id", content_ids(examples, text=spec.text))
            splits[role] = examples
        names = ", ".join(path.name for path in paths.values())
        return class_examples(
            splits,
            label_names=labels,
            text_columns=spec.text,
            metrics=spec.metrics,
            source=f"files: {names}",
            duplicates_are_errors=True,
        )


def _declared_labels(spec: Any) -> tuple[str, ...] | None:
    if spec.labels is None:
        return None
    labels = tuple(str(label).strip() for label in spec.labels)
    if len(set(labels)) < len(labels) or len(labels) < 2:
        raise DataError(
            f"`labels` must be at least two different classes; found {', '.join(f'`{label}`' for label in labels)}",
            hint="List every class once, in the order of the class indices.",
            where=f"tasks: {spec.name}",
        )
    return labels
