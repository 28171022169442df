"""What every task of a study has, named or described: how it is split, and what it sets for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lorascope.study.base import Name, Spec
from lorascope.study.train import TrainOverrides

Protocol = Literal["strict", "paper", "resplit"]


class TaskTrain(TrainOverrides):
    """The fields of `train` that a task may set for itself; what is absent stays the method's, or the study's.

    The others are the same for a whole study: its runs share one base in one precision, and are compared over tasks.
    """

    max_length: Annotated[int, Field(ge=8)] | None = None
    evaluations_per_epoch: Annotated[int, Field(ge=1)] | None = None


class TaskBase(Spec):
    """name: how the study calls the task. protocol: None: the study's; "resplit" pools the labelled files and carves
    test_rows of them as the test set. settings: of training. methods: method -> settings of it, for this task alone.

    sentences: what each field is, for people.
    """

    sentences: ClassVar[Mapping[str, str]] = {
        "protocol": "As `protocol` of the study, for this task alone; or `resplit`: the labelled files are pooled, and a test "
        "set of `test_rows` is carved out of them. Its scores are not comparable with published ones.",
        "test_rows": "Examples of the test set under `protocol: resplit`.",
        "settings": "Settings of training for this task alone, such as `{max_length: 128, epochs: 2}`. They take precedence "
        "over those of methods and of the study.",
        "methods": "Settings of single methods for this task alone, such as `{lora: {learning_rate: 3e-4}}`. They take "
        "precedence over `settings`.",
    }

    name: Name
    protocol: Protocol | None = None
    test_rows: Annotated[int, Field(ge=4)] | None = None
    settings: TaskTrain = TaskTrain()
    methods: dict[Name, dict[str, Any]] = Field(default={})


PER_TASK = frozenset(TaskBase.model_fields)
"""What can be said of any task; further keys make a task of a kind."""


class TaskSettings(TaskBase):
    """Settings of a task of some kind. name: how the study calls it. kind: a name of `registry.TASKS`.

    files: the fields that name files, relative to the study's file.
    """

    files: ClassVar[tuple[str, ...]] = ()

    kind: str
