"""How examples of a task are read on a device: the one forward pass that training, validation, test and drift share.

A `Reading` holds what such a pass needs (task, pad token, device, precision), so that nobody else carries these around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.data.batches import MASK, evaluation_batches, padded_batch, padded_length
from lorascope.data.columns import Batch

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.data.columns import Columns, Examples
    from lorascope.tasks.task import Task

Read = Callable[[nn.Module, "dict[str, Tensor]"], Tensor]


def autocast(device: str, precision: str) -> torch.autocast:
    """bf16 means autocast for every method alike: weights and updates in fp32, matrix products in bf16."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Reading:
    """task: whose examples. pad_token_id: of the model's processor; None for inputs that are never padded. device: such
    as "cuda:0". precision: "fp32", or "bf16" for autocast."""

    task: Task
    pad_token_id: int | None
    device: str
    precision: str

    def to(self, precision: str) -> Reading:
        """The same in another precision."""
        return replace(self, precision=precision)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    # ------------------------------------------------------------------------------------------------------- batches

    def padded(self, longest: int) -> int:
        """The size that a batch with this longest row is padded to."""
        return padded_length(longest, self.task.inputs.multiple)

    def collate(self, columns: Columns, *, length: int) -> Batch:
        """The task's arrays for these rows, [rows, ...], on the host."""
        return padded_batch(columns, self.task.uses, pad_token_id=self.pad_token_id, length=length)

    def batch(self, examples: Examples, rows: np.ndarray, *, length: int) -> dict[str, Tensor]:
        """These rows as tensors on the device."""
        arrays = self.collate(examples.gather(rows), length=length)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not self.device.startswith("cuda"):
            return {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def batches(self, examples: Examples, *, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, dict]]:
        """(rows, batch on the device) over all examples (or `rows`), grouped by length, large."""
        inputs = self.task.inputs
        chosen = np.arange(len(examples)) if rows is None else rows
        lengths = np.asarray(examples.lengths)[chosen]
        limit = inputs.largest_batch[torch.device(self.device).type]
        for positions in evaluation_batches(lengths, max_tokens=limit, multiple=inputs.multiple):
            batch_rows = chosen[positions]
            yield batch_rows, self.batch(examples, batch_rows, length=self.padded(int(lengths[positions].max())))

    # --------------------------------------------------------------------------------------------------- forward passes

    def model_inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What of a batch goes to the model."""
        targets = self.task.target_keys
        return {name: tensor for name, tensor in batch.items() if name not in targets}

    def outputs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The model's prediction for these inputs, [rows, ...], float32."""
        with self.autocast():
            found = getattr(model(**inputs), self.task.head.output)
        return found.float()

    @torch.no_grad()
    def predict(self, model: nn.Module, examples: Examples) -> pd.DataFrame:
        """One row an example, in the examples' order: example_id and the task's prediction columns. Leaves the model's
        mode (training or evaluation) as it was."""
        import pandas as pd

        parts = list(self._read(model, examples, None, self.task.scoring.predictions))
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        frame = pd.DataFrame({name: np.concatenate([p[name] for _, p in parts])[order] for name in parts[0][1]})
        frame.insert(0, "example_id", list(examples.ids))
        return self.task.scoring.by_example(frame)

    @torch.no_grad()
    def signatures(self, model: nn.Module, examples: Examples, *, rows: np.ndarray) -> np.ndarray:
        """What two models are compared by (`Scoring.signature`), float32 [len(rows), ...] in the order of `rows`; the
        model reads in evaluation mode."""
        found: dict[int, np.ndarray] = {}
        for batch_rows, signature in self._read(model, examples, rows, self.task.scoring.signature):
            found |= dict(zip(batch_rows.tolist(), signature, strict=True))
        return np.stack([found[int(row)] for row in rows])

    def _read(
        self, model: nn.Module, examples: Examples, rows: np.ndarray | None, take: Callable[[Tensor, Batch], Any]
    ) -> Iterator[tuple[np.ndarray, Any]]:
        was_training = model.training
        model.eval()
        for batch_rows, batch in self.batches(examples, rows=rows):
            yield batch_rows, take(self.outputs(model, self.model_inputs(batch)), batch)
        model.train(was_training)

    def scores(self, predictions: pd.DataFrame) -> dict[str, float]:
        """The task's metrics and the mean loss of a set of predictions."""
        scoring = self.task.scoring
        return {**scoring.metrics(predictions), "loss": scoring.mean_loss(predictions)}


def real_positions(batch: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """bool [rows, positions]: which positions of the hidden states [rows, positions, hidden] are no padding."""
    mask = batch.get(MASK)
    if mask is None:
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    return mask.bool()
