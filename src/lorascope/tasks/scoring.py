"""How a model's output on a task is judged: loss, predictions, scores, baselines, and how far two outputs agree.

The one rule: an example's loss and prediction belong to the example. They may not depend on its batch, its padding or
its neighbours, or paired statistics would compare batches instead of methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Batch, Columns
from lorascope.metrics.quality import quality
from lorascope.stats.quality.scores import score_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from lorascope.data.raw import RawExamples

Baselines = dict[tuple[str, str], "pd.DataFrame"]
"""(name, seed or "") -> prediction rows of the test examples, with example_id."""


@dataclass(frozen=True)
class Agreement:
    """How far two outputs of the same rows are apart. difference: the largest, 0 where they agree. of: what it is a
    difference of, for people ("a probability")."""

    difference: float
    of: str


class Scoring(ABC):
    """metric_names: of `metrics.quality`, the primary one first. targets: the columns that are for the loss and not for
    the model. weight_column: a column of one number a row, above 0: what the row's loss counts in a mean (response
    tokens, where the loss is a mean over them); None: all count alike."""

    metric_names: tuple[str, ...]
    targets: tuple[ColumnUse, ...]
    weight_column: str | None = None

    # ------------------------------------------------------------------------------------------------------- training

    @abstractmethod
    def encode(self, examples: Sequence[Mapping[str, Any]], columns: Columns, processor: Any) -> Columns:
        """The target columns of these examples. columns: what the task's inputs made of them, one array a row."""

    @abstractmethod
    def loss_per_example(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float32 [rows], unreduced. outputs: what the model's head returns, [rows, ...]. batch: what the model was given
        (with the attention mask) and the targets."""

    # ----------------------------------------------------------------------------------------------------- predictions

    @abstractmethod
    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """Columns of one value a row, "loss" among them. outputs: float32."""

    def by_example(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """One row an example, from one a row of the columns (example_id says whose): windows of an example joined, in the
        order in which the examples come. What is not finite, of a run that diverged, must not raise."""
        return predictions

    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        """Every metric of `metric_names`, from rows of `by_example`: what their rows in the table of metrics make of
        `example_scores`. A task that computes one itself gets the same number."""
        columns = self.example_scores(predictions)
        return {name: score_of(quality(name), columns) for name in self.metric_names}

    def mean_loss(self, predictions: pd.DataFrame) -> float:
        """The loss of a set of predictions, as training means it (over rows, where an example has several)."""
        return float(predictions["loss"].to_numpy().mean())

    @abstractmethod
    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """Per-example columns that metrics are made of, float64 [examples], as the table of measurements holds them."""

    @abstractmethod
    def right(self, predictions: pd.DataFrame) -> np.ndarray:
        """float64 [examples], 0-1: how far the prediction of each example is the one wanted. For the gate that a model
        can learn ten examples by heart, which wants exactly 1 of each and a mean loss below 0.1: a task of numbers counts a
        prediction that is near enough as 1, and scales its loss."""

    # ------------------------------------------------------------------------------------------------------ comparisons

    @abstractmethod
    def signature(self, outputs: torch.Tensor, batch: Batch) -> np.ndarray:
        """float32 [rows, ...], of one shape for every batch: what of the outputs two models are compared by."""

    @abstractmethod
    def agreement(self, first: np.ndarray, second: np.ndarray) -> Agreement:
        """How far two signatures of the same rows are apart, in a unit in which rounding in fp32 is far below 1e-3."""

    def change(self, reference: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
        """How differently two runs decide the same examples: one row an example, example_id and columns of
        `tasks.change.UNITS`. Without any for a task that has no such measure."""
        import pandas as pd

        del run
        return pd.DataFrame({"example_id": reference["example_id"].to_numpy()})

    # -------------------------------------------------------------------------------------------------------- baselines

    def baselines(self, frames: Mapping[str, pd.DataFrame], *, seeds: Sequence[int]) -> Baselines:
        """What needs no model: majority, random, ... frames: split -> the prepared examples. seeds: of those that draw.

        Rows are those of `by_example`; columns of which only a model knows the value, "loss" among them, may be absent.
        """
        del frames, seeds
        return {}

    def linear_probe(
        self, features: Callable[[str], np.ndarray], frames: Mapping[str, pd.DataFrame]
    ) -> pd.DataFrame | None:
        """The linear probe's prediction rows of the test examples, or None for a task that has no such baseline.

        features: split -> float32 [examples, hidden], the frozen base's, computed when they are asked for. Fitted on train,
        chosen on validation.
        """
        del features, frames
        return None

    # ---------------------------------------------------------------------------------------------------------- reading

    def describe(self, raw: RawExamples, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """Literals that the record of the data keeps for the report, besides sizes and checksums."""
        del raw, frames
        return {}
