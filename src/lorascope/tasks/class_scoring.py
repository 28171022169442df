"""Scoring of classification, whatever is classified: one class an example, cross-entropy, accuracy, F1, MCC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Batch, Columns
from lorascope.metrics.quality import quality
from lorascope.stats.quality.scores import score_of
from lorascope.tasks.scoring import Agreement, Baselines, Scoring

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from lorascope.data.raw import RawExamples

PROBE_PENALTIES = (0.001, 0.01, 0.1, 1.0)


class ClassScoring(Scoring):
    """names: of the classes, by index. Examples have their class as `label`."""

    targets = (ColumnUse("label", "labels"),)

    def __init__(self, names: Sequence[str], *, metrics: Sequence[str]) -> None:
        self.names = tuple(names)
        self.metric_names = tuple(metrics)

    def encode(self, examples: Sequence[Mapping[str, Any]], columns: Columns, processor: Any) -> Columns:
        del columns, processor
        return {"label": [np.asarray(example["label"], dtype=np.int64) for example in examples]}

    def loss_per_example(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy in float32 whatever the precision of the outputs, logits [rows, classes]."""
        import torch

        labels = torch.as_tensor(batch["labels"], device=outputs.device)
        return torch.nn.functional.cross_entropy(outputs.float(), labels, reduction="none")

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """ "label", "prediction", "loss" and "probability_<class index>"."""
        import torch

        scores = outputs.detach().float().cpu().double()
        labels = torch.as_tensor(batch["labels"]).cpu()
        log_probabilities = torch.log_softmax(scores, dim=-1)
        probabilities = log_probabilities.exp().numpy()
        return {
            "label": labels.numpy().astype(np.int64),
            "prediction": scores.argmax(dim=-1).numpy().astype(np.int64),
            "loss": -log_probabilities.gather(1, labels[:, None])[:, 0].numpy(),
            **{f"probability_{index}": probabilities[:, index] for index in range(len(self.names))},
        }

    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        """accuracy; f1 of class 1, or the macro average over more than two classes; mcc (Matthews 1975); others as their
        rows say."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        label, predicted = predictions["label"], predictions["prediction"]
        averaging = (
            {"pos_label": 1} if len(self.names) == 2 else {"labels": list(range(len(self.names))), "average": "macro"}
        )
        options: dict[str, Any] = {"zero_division": 0, **averaging}
        compute = {
            "accuracy": lambda: accuracy_score(label, predicted),
            "f1": lambda: f1_score(label, predicted, **options),
            "mcc": lambda: matthews_corrcoef(label, predicted),
        }
        columns = self.example_scores(predictions) if not compute.keys() >= {*self.metric_names} else {}
        return {
            name: float(compute[name]()) if name in compute else score_of(quality(name), columns)
            for name in self.metric_names
        }

    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """ "correct" (0 or 1), "loss", and "label" and "prediction" as indices, from which confusions are counted."""
        return {
            "correct": self.right(predictions),
            "loss": predictions["loss"].to_numpy(dtype=np.float64),
            "label": predictions["label"].to_numpy(dtype=np.float64),
            "prediction": predictions["prediction"].to_numpy(dtype=np.float64),
        }

    def right(self, predictions: pd.DataFrame) -> np.ndarray:
        return (predictions["label"].to_numpy() == predictions["prediction"].to_numpy()).astype(np.float64)

    # ------------------------------------------------------------------------------------------------------ comparisons

    def signature(self, outputs: torch.Tensor, batch: Batch) -> np.ndarray:
        """The logits, [rows, classes]."""
        del batch
        return outputs.float().cpu().numpy()

    def agreement(self, first: np.ndarray, second: np.ndarray) -> Agreement:
        return Agreement(float(np.abs(_softmax(first) - _softmax(second)).max()), "a probability")

    def change(self, reference: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
        from lorascope.tasks.change import prediction_change

        return prediction_change(reference, run)

    def describe(self, raw: RawExamples, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """How many examples each class has, by split."""
        counts = {
            name: {label: int(np.sum(frame["label"].to_numpy() == index)) for index, label in enumerate(self.names)}
            for name, frame in frames.items()
        }
        return {"label_counts": counts}

    # -------------------------------------------------------------------------------------------------------- baselines

    def baselines(self, frames: Mapping[str, pd.DataFrame], *, seeds: Sequence[int]) -> Baselines:
        """The majority class (ties go to the lower one), and classes drawn with the training frequencies, one a seed."""
        frequencies = self._frequencies(frames["train"]["label"].to_numpy())
        test = frames["test"]
        probabilities = np.tile(frequencies, (len(test), 1))
        found: Baselines = {
            ("majority", ""): self._prediction_rows(np.full(len(test), frequencies.argmax()), test, probabilities)
        }
        for seed in seeds:
            drawn = np.random.default_rng(seed).choice(len(self.names), size=len(test), p=frequencies)
            found["random", str(seed)] = self._prediction_rows(drawn, test, probabilities)
        return found

    def linear_probe(self, features: Callable[[str], np.ndarray], frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Logistic regression on standardised features; its penalty is chosen by validation accuracy."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels = {split: frame["label"].to_numpy() for split, frame in frames.items()}
        known = {split: features(split) for split in frames}
        probes = [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(known["train"], labels["train"])
            for c in PROBE_PENALTIES
        ]
        best = max(probes, key=lambda probe: probe.score(known["validation"], labels["validation"]))
        probabilities = np.zeros((len(labels["test"]), len(self.names)))
        probabilities[:, best.classes_] = best.predict_proba(known["test"])
        return self._prediction_rows(probabilities.argmax(axis=1), frames["test"], probabilities)

    def _frequencies(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(np.asarray(labels), minlength=len(self.names)) / len(labels)

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
                **{f"probability_{index}": probabilities[:, index] for index in range(len(self.names))},
            }
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(logits).double().softmax(-1).numpy()
