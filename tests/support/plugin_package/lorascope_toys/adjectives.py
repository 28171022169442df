"""A task of this package: whether the adjective of a sentence is kind. Its examples are a CSV file in the data directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.errors import DataError
from lorascope.tasks.classification import Classification, class_examples


class Adjectives(Classification):
    """Read from `adjectives_train.csv`."""

    version = 3

    @classmethod
    def describe(cls, spec: Any, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        if data_dir is None:
            raise DataError("the task `adjectives` is read from a data directory", hint="Name it with --data.")
        return describe_files({"train": data_dir / "adjectives_train.csv"})

    @classmethod
    def read(cls, spec: Any, *, source: SourceDescription, protocol: str) -> RawExamples:
        from lorascope.data.tables import content_ids, number_labels, read_table, select_examples

        path, labels = Path(source.locations["train"]), ("bad", "good")
        examples = select_examples(read_table(path), path=path, text=("text",), label="label")
        examples = number_labels(examples, path=path, labels=labels, declared="of the task")
        examples.insert(0, "example_id", content_ids(examples, text=("text",)))
        return class_examples(
            {"train": examples}, label_names=labels, text_columns=("text",), metrics=("accuracy",), source=path.name
        )
