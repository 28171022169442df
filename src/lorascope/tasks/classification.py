"""Classification of one text or a pair of texts: the task behind GLUE, docstrings and a user's own files.

A subclass only says where examples come from (`describe`, `read`); batches, loss, predictions and metrics are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.data.columns import Batch, Columns
from lorascope.tasks.task import Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from lorascope.data.raw import RawExamples
    from lorascope.data.sources import SourceDescription

PROBE_PENALTIES = (0.001, 0.01, 0.1, 1.0)


class Classification(Task):
    """name: as the study calls it. label_names: one a class, by index. text_columns: one, or two for a pair."""

    head: ClassVar[str] = "sequence-classification"
    needs_files: ClassVar[bool] = False

    def __init__(
        self, name: str, *, label_names: Sequence[str], text_columns: Sequence[str], metrics: Sequence[str]
    ) -> None:
        self.name = name
        self.label_names = tuple(label_names)
        self.text_columns = tuple(text_columns)
        self.metric_names = tuple(metrics)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Classification:
        """The task that `prepare_data` described in its result["task"]."""
        return cls(
            description["name"],
            label_names=description["label_names"],
            text_columns=description["text_columns"],
            metrics=description["metrics"],
        )

    @classmethod
    def describe(cls, spec: Any, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        """The source's fingerprint and locations. Cheap: no examples are read."""
        raise NotImplementedError

    @classmethod
    def read(cls, spec: Any, *, source: SourceDescription, protocol: str) -> RawExamples:
        """The examples of a source that `describe` described."""
        raise NotImplementedError

    @property
    def num_labels(self) -> int:
        return len(self.label_names)

    def head_config(self) -> dict[str, Any]:
        return {
            "num_labels": self.num_labels,
            "id2label": dict(enumerate(self.label_names)),
            "label2id": {label: index for index, label in enumerate(self.label_names)},
            "problem_type": "single_label_classification",
        }

    def tokenise(self, examples: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int) -> Columns:
        """Pairs are cut longest text first. Only examples that are too long are encoded twice."""
        texts = self._texts_for(examples, tokenizer)
        whole = tokenizer(*texts, truncation=False, padding=False, verbose=False)
        lengths = [len(ids) for ids in whole["input_ids"]]
        encoded = {name: list(whole[name]) for name in ("input_ids", "token_type_ids") if name in whole}
        if too_long := [row for row, length in enumerate(lengths) if length > max_length]:
            cut = tokenizer(
                *([column[row] for row in too_long] for column in texts),
                truncation=True,
                max_length=max_length,
                padding=False,
            )
            for name, rows in encoded.items():
                for position, row in enumerate(too_long):
                    rows[row] = cut[name][position]
        return {
            **{name: [np.asarray(row, dtype=np.int32) for row in rows] for name, rows in encoded.items()},
            "label": [np.asarray(example["label"], dtype=np.int64) for example in examples],
            "num_tokens_before_truncation": [np.asarray(length, dtype=np.int64) for length in lengths],
        }

    def _texts_for(self, examples: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[list[str]]:
        texts = [[example[column] for example in examples] for column in self.text_columns]
        # A decoder's tokenizer may join a pair with nothing in between; then a line break keeps the texts apart.
        if len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == tokenizer.num_special_tokens_to_add():
            texts[0] = [text + "\n" for text in texts[0]]
        return texts

    def collate(self, columns: Mapping[str, Sequence[np.ndarray]], *, pad_token_id: int, length: int) -> Batch:
        lengths = np.array([len(row) for row in columns["input_ids"]])
        assert lengths.max(initial=0) <= length, f"padded length {length} is below the longest example"
        batch = {
            name: pad_right(columns[name], length=length, fill=fill)
            for name, fill in (("input_ids", pad_token_id), ("token_type_ids", 0))
            if name in columns
        }
        batch["attention_mask"] = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
        batch["labels"] = np.array([int(label) for label in columns["label"]], dtype=np.int64)
        return batch

    def loss_per_example(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy in float32 whatever the precision of the logits."""
        import torch

        labels = torch.as_tensor(batch["labels"], device=logits.device)
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def predictions(self, logits: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        import torch

        scores = logits.detach().float().cpu().double()
        labels = torch.as_tensor(batch["labels"]).cpu()
        log_probabilities = torch.log_softmax(scores, dim=-1)
        probabilities = log_probabilities.exp().numpy()
        return {
            "label": labels.numpy().astype(np.int64),
            "prediction": scores.argmax(dim=-1).numpy().astype(np.int64),
            "loss": -log_probabilities.gather(1, labels[:, None])[:, 0].numpy(),
            **{f"probability_{index}": probabilities[:, index] for index in range(self.num_labels)},
        }

    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        """accuracy; f1 of class 1, or the macro average over more than two classes; mcc (Matthews 1975)."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        label, predicted = predictions["label"], predictions["prediction"]
        averaging = (
            {"pos_label": 1} if self.num_labels == 2 else {"labels": list(range(self.num_labels)), "average": "macro"}
        )
        options: dict[str, Any] = {"zero_division": 0, **averaging}
        compute = {
            "accuracy": lambda: accuracy_score(label, predicted),
            "f1": lambda: f1_score(label, predicted, **options),
            "mcc": lambda: matthews_corrcoef(label, predicted),
        }
        return {name: float(compute[name]()) for name in self.metric_names}

    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        correct = predictions["label"].to_numpy() == predictions["prediction"].to_numpy()
        return {"correct": correct.astype(np.float64), "loss": predictions["loss"].to_numpy(dtype=np.float64)}

    def majority_predictions(self, train_labels: np.ndarray, test: pd.DataFrame) -> pd.DataFrame:
        """Ties go to the lower class. Probabilities are the training frequencies."""
        frequencies = self._frequencies(train_labels)
        probabilities = np.tile(frequencies, (len(test), 1))
        return self._prediction_rows(np.full(len(test), frequencies.argmax()), test, probabilities)

    def random_predictions(
        self, train_labels: np.ndarray, test: pd.DataFrame, *, generator: np.random.Generator
    ) -> pd.DataFrame:
        frequencies = self._frequencies(train_labels)
        drawn = generator.choice(self.num_labels, size=len(test), p=frequencies)
        return self._prediction_rows(drawn, test, np.tile(frequencies, (len(test), 1)))

    def linear_probe(self, features: Mapping[str, np.ndarray], frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Logistic regression on standardised features; its penalty is chosen by validation accuracy."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels = {split: frame["label"].to_numpy() for split, frame in frames.items()}
        probes = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(
                features["train"], labels["train"]
            )
            for c in PROBE_PENALTIES
        ]
        best = max(probes, key=lambda probe: probe.score(features["validation"], labels["validation"]))
        probabilities = np.zeros((len(labels["test"]), self.num_labels))
        probabilities[:, best.classes_] = best.predict_proba(features["test"])
        return self._prediction_rows(probabilities.argmax(axis=1), frames["test"], probabilities)

    def _frequencies(self, train_labels: np.ndarray) -> np.ndarray:
        return np.bincount(np.asarray(train_labels), minlength=self.num_labels) / len(train_labels)

    def _prediction_rows(self, predicted: np.ndarray, test: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
        import pandas as pd

        labels = test["label"].to_numpy(dtype=np.int64)
        likelihoods = probabilities[np.arange(len(labels)), labels]
        # A class that training never saw, or a saturated probe, has probability 0: its loss stays large but finite.
        loss = -np.log(np.maximum(likelihoods, np.finfo(np.float64).tiny))
        return pd.DataFrame(
            {
                "example_id": test["example_id"].to_numpy(),
                "label": labels,
                "prediction": predicted.astype(np.int64),
                "loss": loss,
                **{f"probability_{index}": probabilities[:, index] for index in range(self.num_labels)},
            }
        )


def pad_right(rows: Sequence[np.ndarray], *, length: int, fill: int) -> np.ndarray:
    """int64 [examples, length]: each row, then `fill`."""
    padded = np.full((len(rows), length), fill, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
