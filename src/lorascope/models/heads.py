"""The head of a task: which transformers class carries the output, and whether its weights are new.

A head that is new for the task ("score", "classifier") is drawn from each run's initialisation seed, and every method
trains it. A head that is the checkpoint's own (a language model's) is part of the base: it is never drawn anew, a
method that freezes the base freezes it too, and where it is tied to the embeddings it stays tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Head:
    """auto_class: of transformers, by name. config: fields of the model's config (num_labels, id2label, ...). peft_task:
    what PEFT calls such a task; None where it has no word. is_new: drawn anew for every run. output: the field of the
    model's output that holds the prediction, [rows, ...]."""

    auto_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    peft_task: str | None = None
    is_new: bool = True
    output: str = "logits"

    @property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """What two heads must share for one model to serve both: everything but the names of classes."""
        fields = {name: value for name, value in self.config.items() if name not in ("id2label", "label2id")}
        return (
            ("auto_class", self.auto_class),
            ("output", self.output),
            *sorted((k, repr(v)) for k, v in fields.items()),
        )


def classification_head(names: tuple[str, ...], *, auto_class: str, peft_task: str | None) -> Head:
    """A new head with one output a class. names: of the classes, by index."""
    config = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    return Head(auto_class, config, peft_task)
