"""Responses to prompts, predicted token by token by the checkpoint's own language-model head.

The loss of an example is the mean over its response's tokens and an end token, and it counts as many times as it has
tokens, so the loss of a run is the mean over tokens, of which perplexity is the exponential.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from toy_tokens.settings import TokensTask

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Batch, Columns
from lorascope.data.raw import RawExamples
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.errors import DataError
from lorascope.models.heads import Head
from lorascope.study.tasks.base import TaskSettings
from lorascope.tasks.inputs import SIZE_BEFORE, TextInputs
from lorascope.tasks.scoring import Agreement, Scoring
from lorascope.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch

NOT_PREDICTED = -100
"""The label of a token that is no part of the loss."""


class ResponseInputs(TextInputs):
    """The prompt's tokens, the response's, an end token. A column "begin" says where the response begins."""

    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        prompts, responses = (
            processor([example[name] for example in examples], add_special_tokens=False)["input_ids"]
            for name in self.text_columns
        )
        whole = [[*p, *r, processor.eos_token_id] for p, r in zip(prompts, responses, strict=True)]
        return {
            "input_ids": [np.asarray(ids[:max_length], dtype=np.int32) for ids in whole],
            "begin": [np.asarray(len(prompt), dtype=np.int64) for prompt in prompts],
            SIZE_BEFORE: [np.asarray(len(ids), dtype=np.int64) for ids in whole],
        }

    def refuse(self, columns: Columns, ids: Sequence[str], processor: Any, *, split: str) -> None:
        """A row whose response was cut away wholly has no loss."""
        pairs = zip(columns["begin"], columns["input_ids"], strict=True)
        cut = [row for row, (begin, tokens) in enumerate(pairs) if int(begin) >= len(tokens)]
        if cut:
            raise DataError(
                f"{len(cut)} {split} prompts leave no room for a response: {', '.join(ids[row] for row in cut[:5])}",
                hint="raise train.max_length, or shorten these prompts",
            )


class ResponseScoring(Scoring):
    """The cross-entropy of the response's tokens, each given all before it."""

    metric_names = ("perplexity",)
    targets = (ColumnUse("labels", "labels", fill=NOT_PREDICTED),)
    weight_column = "response_tokens"

    def encode(self, examples: Sequence[Mapping[str, Any]], columns: Columns, processor: Any) -> Columns:
        """labels: the row's tokens, those of the prompt not to be predicted. response_tokens: how many others there are."""
        labels = []
        for tokens, begin in zip(columns["input_ids"], columns["begin"], strict=True):
            labels.append(np.where(np.arange(len(tokens)) < begin, NOT_PREDICTED, tokens).astype(np.int64))
        counts = [np.asarray((row != NOT_PREDICTED).sum(), dtype=np.int64) for row in labels]
        return {"labels": labels, "response_tokens": counts}

    def loss_per_example(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean over the response. outputs: logits [rows, tokens, vocabulary]."""
        losses, is_response = _token_losses(outputs, batch)
        return losses.sum(dim=1) / is_response.sum(dim=1)

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """ "loss"; "tokens" of the response; "right", the share of them that is the likeliest."""
        losses, is_response = _token_losses(outputs, batch)
        likeliest = outputs[:, :-1].argmax(dim=-1) == _labels(outputs, batch)
        tokens = is_response.sum(dim=1)
        found = {
            "loss": losses.double().sum(dim=1) / tokens,
            "tokens": tokens,
            "right": (likeliest & is_response).sum(dim=1) / tokens.double(),
        }
        return {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}

    def mean_loss(self, predictions: pd.DataFrame) -> float:
        """Over tokens."""
        return float(np.average(predictions["loss"], weights=predictions["tokens"]))

    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        return {"perplexity": float(np.exp(self.mean_loss(predictions)))}

    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """ "loss", a token's; "total_loss" and "tokens", whose sums perplexity is made of."""
        loss, tokens = (predictions[name].to_numpy(dtype=np.float64) for name in ("loss", "tokens"))
        return {"loss": loss, "total_loss": loss * tokens, "tokens": tokens}

    def right(self, predictions: pd.DataFrame) -> np.ndarray:
        return predictions["right"].to_numpy(dtype=np.float64)

    def signature(self, outputs: torch.Tensor, batch: Batch) -> np.ndarray:
        """Log-probabilities, the mean over the response and that of its first token: [rows, 2]."""
        import torch

        losses, is_response = _token_losses(outputs, batch)
        first = losses.gather(1, is_response.int().argmax(dim=1, keepdim=True))[:, 0]
        return -torch.stack([losses.sum(dim=1) / is_response.sum(dim=1), first], dim=1).detach().cpu().numpy()

    def agreement(self, first: np.ndarray, second: np.ndarray) -> Agreement:
        return Agreement(float(np.abs(first - second).max()), "a log-probability (nats)")


def _labels(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[rows, tokens - 1]: what each token but the last is followed by."""
    import torch

    return torch.as_tensor(batch["labels"], device=outputs.device)[:, 1:]


def _token_losses(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [rows, tokens - 1], 0 where nothing is predicted; and where something is."""
    import torch

    labels, logits = _labels(outputs, batch), outputs[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=NOT_PREDICTED, reduction="none"
    )
    return losses.view(labels.shape), labels != NOT_PREDICTED


class ToyTokens(Task):
    """The task of a `TokensTask`."""

    settings: ClassVar[type[TaskSettings] | None] = TokensTask

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            inputs=ResponseInputs(("prompt", "response")),
            head=Head("AutoModelForCausalLM", peft_task="CAUSAL_LM", is_new=False),
            scoring=ResponseScoring(),
        )

    @classmethod
    def describe(cls, spec: TokensTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        return describe_files({"pairs": Path(spec.pairs)})

    @classmethod
    def read(cls, spec: TokensTask, *, source: SourceDescription, protocol: str) -> RawExamples:
        import pandas as pd

        path = Path(source.locations["pairs"])
        frame = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]).rename(
            columns={"id": "example_id"}
        )
        return RawExamples({"train": frame}, {}, content=("prompt", "response"), source=f"file: {path.name}")

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ToyTokens:
        return cls(description["name"])
