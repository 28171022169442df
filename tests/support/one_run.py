"""One run through the training loop, with its parts in reach: what tests of a single run hold on to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tiny import tiny_reading
from torch import Tensor, nn

from lorascope.data.columns import Examples
from lorascope.methods.base import Method
from lorascope.models.loading import BaseModel
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Gang
from lorascope.training.member import Callbacks, Member, Progress, Recipe
from lorascope.training.preparation import prepared_model


class OneRun:
    """A gang of one. silence: what is done to the prepared model before it is used. After `run`, `model` and `trained`
    are those of the best checkpoint."""

    def __init__(
        self,
        base: BaseModel,
        method: Method,
        *,
        seeds: Seeds,
        validate: Callable[[Any], dict[str, float]],
        silence: Callable[[nn.Module], None] = lambda model: None,
        columns: Examples,
        train: TrainSpec,
        learning_rate: float,
        **callbacks: Any,
    ) -> None:
        self.member = Member(
            method=method, reading=tiny_reading(), columns=columns,
            recipe=Recipe(train, learning_rate, seeds), callbacks=Callbacks(validate, **callbacks),
        )  # fmt: skip

        def prepare(members: Any) -> Any:
            model, streams = prepared_model(base, [method], [seeds])
            silence(model)
            return model, streams

        self.gang = Gang([self.member], prepare=prepare)
        self.model: Any = self.gang.model

    @property
    def progress(self) -> Progress:
        return self.member.progress

    @property
    def trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def accumulate_gradients(self, rows: np.ndarray) -> float:
        return float(self.gang.accumulate_gradients([rows]))

    def run(self, checkpointer: Checkpointer | None = None) -> Progress:
        (departure,) = self.gang.run([checkpointer] if checkpointer is not None else None)
        if departure.problem is not None:
            raise departure.problem
        self.model = departure.model
        return self.progress
