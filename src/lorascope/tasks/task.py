"""A task: what an example is, how it becomes a batch, what is predicted and how it is scored.

The one contract between data and everything above it. The training loop, gangs, evaluation, drift and serving know a
task only through this class: columns of tokenised examples, batches, a loss per example, predictions per example, and
metrics of those predictions. Nothing outside `data/` may ask which task it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.data.columns import Batch, Columns

if TYPE_CHECKING:
    import pandas as pd
    import torch


class Task(ABC):
    """One task with known classes. Built from the `data` artifact's result, so it is the same in every step.

    head: which transformers auto class carries the output ("sequence-classification").
    metric_names: the metrics it reports, the primary one first; all in 0-1 units (mcc: -1 to 1), higher is better.
    targets: the keys of a batch that are for the loss and not for the model.
    """

    head: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    metric_names: tuple[str, ...]

    @property
    def primary_metric(self) -> str:
        return self.metric_names[0]

    @abstractmethod
    def head_config(self) -> dict[str, Any]:
        """Fields for the model's config: num_labels, id2label, label2id, problem_type ..."""

    @abstractmethod
    def tokenise(self, examples: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int) -> Columns:
        """Columns of one array an example: "input_ids" (int32), tokenizer extras ("token_type_ids"), "label" (int64
        scalar arrays), and "num_tokens_before_truncation" (scalar). Special tokens included, no padding."""

    @abstractmethod
    def collate(self, columns: Mapping[str, Sequence[np.ndarray]], *, pad_token_id: int, length: int) -> Batch:
        """Right-padded numpy arrays: "input_ids" and "attention_mask" int64 [examples, length], extras, "labels"
        int64 [examples]. length: padded length, at least the longest example."""

    @abstractmethod
    def loss_per_example(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float32 [examples], unreduced. logits: what the model's head returns, [examples, ...]."""

    @abstractmethod
    def predictions(self, logits: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """One row an example: "label", "prediction", "loss" and "probability_<class index>"."""

    @abstractmethod
    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        """Every metric of `metric_names`, from the rows of `predictions`."""

    @abstractmethod
    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """Per-example columns that metrics are made of, float64 [examples]: {"correct": 0/1, "loss": ...}."""

    @abstractmethod
    def majority_predictions(self, train_labels: np.ndarray, test: pd.DataFrame) -> pd.DataFrame:
        """The majority baseline's prediction rows for the test examples (columns as `predictions`, with example_id)."""

    @abstractmethod
    def random_predictions(
        self, train_labels: np.ndarray, test: pd.DataFrame, *, generator: np.random.Generator
    ) -> pd.DataFrame:
        """The stratified-random baseline's rows: classes drawn with the training frequencies."""

    def linear_probe(
        self, features: Mapping[str, np.ndarray], frames: Mapping[str, pd.DataFrame]
    ) -> pd.DataFrame | None:
        """The linear probe's prediction rows for the test examples, or None for a task that has no such baseline.

        features: split -> float32 [examples, hidden], the frozen base's; frames: split -> the prepared examples. Chosen
        on validation, fitted on train.
        """
        del features, frames
        return None

    def published(self) -> list[dict[str, Any]]:
        """Figures from the literature: {"model", "method", "metric", "value", "citation", "setting"}; may be empty."""
        return []
