"""A model's predictions on a set of examples: the one forward pass that validation, test and probes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.data.batches import evaluation_batches, padded_length

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.data.columns import Examples
    from lorascope.tasks.task import Task

_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 65536, "mps": 16384}


def autocast(device: str, precision: str) -> torch.autocast:
    """bf16 means autocast for every method alike: weights and updates in fp32, matrix products in bf16."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """The batch's arrays as tensors on the device."""
    on_cuda = device.startswith("cuda")
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {
        name: (t.pin_memory().to(device, non_blocking=True) if on_cuda else t.to(device)) for name, t in tensors.items()
    }


def model_inputs(task: Task, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a batch goes to the model."""
    return {name: tensor for name, tensor in batch.items() if name not in task.targets}


def batches_in_order(
    task: Task, columns: Examples, *, pad_token_id: int, device: str, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(rows, batch on the device) over all examples (or `rows`), grouped by length, large."""
    chosen = np.arange(len(columns)) if rows is None else rows
    lengths = np.asarray(columns.lengths)[chosen]
    for positions in evaluation_batches(lengths, max_tokens=_TOKENS_A_BATCH[torch.device(device).type]):
        batch_rows = chosen[positions]
        length = padded_length(int(lengths[positions].max()))
        batch = task.collate(columns.gather(batch_rows), pad_token_id=pad_token_id, length=length)
        yield batch_rows, to_device(batch, device)


@torch.no_grad()
def predict(
    model: nn.Module, task: Task, columns: Examples, *, pad_token_id: int, device: str, precision: str
) -> pd.DataFrame:
    """One row an example, in the columns' order: example_id and the task's prediction columns. Leaves the model's mode
    (training or evaluation) as it was."""
    import pandas as pd

    was_training = model.training
    model.eval()
    parts: list[tuple[np.ndarray, dict[str, Any]]] = []
    for rows, batch in batches_in_order(task, columns, pad_token_id=pad_token_id, device=device):
        with autocast(device, precision):
            logits = model(**model_inputs(task, batch)).logits
        parts.append((rows, task.predictions(logits.float(), batch)))
    model.train(was_training)
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    frame = pd.DataFrame({name: np.concatenate([p[name] for _, p in parts])[order] for name in parts[0][1]})
    frame.insert(0, "example_id", list(columns.ids))
    return frame


def scores(task: Task, predictions: pd.DataFrame) -> dict[str, float]:
    """The task's metrics and the mean loss of a set of predictions."""
    return {**task.metrics(predictions), "loss": float(predictions["loss"].to_numpy().mean())}


@torch.no_grad()
def logits_of(
    model: nn.Module,
    task: Task,
    columns: Examples,
    *,
    rows: np.ndarray,
    pad_token_id: int,
    device: str,
    precision: str,
) -> np.ndarray:
    """float32 logits [len(rows), ...] in the order of `rows`, the model in evaluation mode."""
    was_training = model.training
    model.eval()
    found: dict[int, np.ndarray] = {}
    for batch_rows, batch in batches_in_order(task, columns, pad_token_id=pad_token_id, device=device, rows=rows):
        with autocast(device, precision):
            logits = model(**model_inputs(task, batch)).logits.float().cpu().numpy()
        found |= dict(zip(batch_rows.tolist(), logits, strict=True))
    model.train(was_training)
    return np.stack([found[int(row)] for row in rows])
