"""Classification of one text or a pair of texts: the task behind GLUE, docstrings and a user's own files.

A subclass only says where examples come from (`describe`, `read`); `class_examples` wraps what it read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorascope.data.raw import RawExamples, Strata
from lorascope.models.heads import classification_head
from lorascope.tasks.class_scoring import ClassScoring
from lorascope.tasks.inputs import TextInputs
from lorascope.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd


class Classification(Task):
    """label_names: one a class, by index. text_columns: one, or two for a pair. metrics: the primary one first."""

    metric_choices = ("accuracy", "f1", "mcc", "loss")

    def __init__(
        self, name: str, *, label_names: Sequence[str], text_columns: Sequence[str], metrics: Sequence[str]
    ) -> None:
        super().__init__(
            name,
            inputs=TextInputs(text_columns),
            head=classification_head(
                tuple(label_names), auto_class="AutoModelForSequenceClassification", peft_task="SEQ_CLS"
            ),
            scoring=ClassScoring(label_names, metrics=metrics),
        )

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Classification:
        return cls(
            description["name"],
            label_names=description["label_names"],
            text_columns=description["text_columns"],
            metrics=description["metrics"],
        )


def class_examples(
    splits: Mapping[str, pd.DataFrame],
    *,
    label_names: Sequence[str],
    text_columns: Sequence[str],
    metrics: Sequence[str],
    source: str,
    duplicates_are_errors: bool = False,
    disjoint: bool = True,
) -> RawExamples:
    """Texts with classes as `Classification` reads them. splits: example_id, label (index of the class) and the texts."""
    description = {
        "num_labels": len(label_names),
        "label_names": list(label_names),
        "text_columns": list(text_columns),
        "metrics": list(metrics),
    }
    return RawExamples(
        splits,
        description,
        content=tuple(text_columns),
        source=source,
        strata=Strata("label", tuple(label_names)),
        duplicates_are_errors=duplicates_are_errors,
        disjoint=disjoint,
    )
