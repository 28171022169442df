"""Answers that are spans of a context, or none: a task without classes, whose examples may have several rows.

The context is cut into windows that overlap, and each is read after the question. The null answer stands at [CLS] where an
encoder has one and otherwise at the last token, which of a decoder's alone has seen everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from toy_spans.settings import SpanTask

from lorascope.data.batches import MASK, ColumnUse
from lorascope.data.columns import Batch, Columns
from lorascope.data.raw import RawExamples, Strata
from lorascope.data.sources import SourceDescription, describe_files
from lorascope.models.heads import Head
from lorascope.study.tasks.base import TaskSettings
from lorascope.tasks.inputs import EXAMPLE, TextInputs
from lorascope.tasks.scoring import Agreement, Baselines, Scoring
from lorascope.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    import torch

NOWHERE = -1
"""The place of an answer that there is not, and the word of a token that is none of the context's."""
OVERLAP_SHARE = 4


class SpanInputs(TextInputs):
    """Question, then a window of the context. A column "words" says which word of the context each token is of, a column
    "null" at which token the null answer stands."""

    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        columns: Columns = {name: [] for name in ("input_ids", "token_type_ids", "words", "null", EXAMPLE)}
        for index, example in enumerate(examples):
            for ids, types, words, null in _windows(example, processor, max_length=max_length):
                row = {"input_ids": ids, "token_type_ids": types, "words": words, "null": null, EXAMPLE: index}
                for name, value in row.items():
                    columns[name].append(np.asarray(value, dtype=np.int64))
        if "token_type_ids" not in processor.model_input_names:
            columns.pop("token_type_ids")
        return columns


def _windows(example: Mapping[str, Any], tokenizer: Any, *, max_length: int) -> list[tuple[Any, ...]]:
    """(tokens, segments, word of the context of each token, token of the null answer) of each window."""
    begins = tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id
    room = max_length if begins else max_length - 1  # for a last token that is no word of the context
    question, context = example["question"].split(), example["context"].split()
    cut = tokenizer(
        question, context, is_split_into_words=True, truncation="only_second", max_length=room,
        stride=room // OVERLAP_SHARE, return_overflowing_tokens=True, return_token_type_ids=True,
    )  # fmt: skip
    found = []
    for window, ids in enumerate(cut["input_ids"]):
        types, sequences = cut["token_type_ids"][window], cut.sequence_ids(window)
        words = [word if part == 1 else NOWHERE for word, part in zip(cut.word_ids(window), sequences, strict=True)]
        if begins:
            found.append((ids, types, words, 0))
        else:
            found.append(([*ids, tokenizer.sep_token_id], [*types, 1], [*words, NOWHERE], len(ids)))
    return found


class SpanScoring(Scoring):
    """longest_answer: in words."""

    metric_names = ("token_f1", "exact_match")
    targets = (
        *(ColumnUse(name, name) for name in ("null", "start", "end", "answer_start", "answer_end")),
        ColumnUse("words", "words", fill=NOWHERE),
    )

    def __init__(self, longest_answer: int) -> None:
        self.longest_answer = longest_answer

    def encode(self, examples: Sequence[Mapping[str, Any]], columns: Columns, processor: Any) -> Columns:
        """start, end: the tokens of the answer, or the null answer's where it is not wholly in the window. answer_start,
        answer_end: its words in the whole context."""
        found: Columns = {name: [] for name in ("start", "end", "answer_start", "answer_end")}
        for index, words, null in zip(columns[EXAMPLE], columns["words"], columns["null"], strict=True):
            answer = [int(examples[int(index)][name]) for name in ("answer_start", "answer_end")]
            places = [np.flatnonzero(words == word) for word in answer]
            is_here = answer[0] != NOWHERE and all(map(len, places))
            tokens = (places[0][0], places[1][-1]) if is_here else (null, null)
            for name, value in zip(found, (*tokens, *answer), strict=True):
                found[name].append(np.asarray(value, dtype=np.int64))
        return found

    def loss_per_example(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean of the cross-entropies of start and end over the real tokens of the row. outputs: [rows, tokens, 2]."""
        return -self._at(_log_probabilities(outputs, batch), batch, "start", "end").mean(dim=1)

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """start, end: words of the context, of the best span of the row; score: its logits' sum; null_score: that of the null
        answer."""
        import torch

        words = torch.as_tensor(batch["words"], device=outputs.device)
        scores = outputs.float()[:, :, None, 0] + outputs.float()[:, None, :, 1]
        distance = words[:, None, :] - words[:, :, None]
        is_span = (
            (words >= 0)[:, :, None] & (words >= 0)[:, None, :] & (distance >= 0) & (distance < self.longest_answer)
        )
        best, place = scores.masked_fill(~is_span, -torch.inf).flatten(1).max(dim=1)
        tokens = torch.stack([place // words.shape[1], place % words.shape[1]], dim=1)
        start, end = words.gather(1, tokens).unbind(dim=1)
        found = {
            "loss": self.loss_per_example(outputs, batch).double(),
            "start": start,
            "end": end,
            "score": best.double(),
            "null_score": self._at(outputs.float(), batch, "null", "null").sum(dim=1).double(),
        }
        kept = {name: torch.as_tensor(batch[name]) for name in ("answer_start", "answer_end")}
        return {name: tensor.detach().cpu().numpy() for name, tensor in {**found, **kept}.items()}

    def by_example(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The best span of all windows, against the least of their null scores; the null answer's place is `NOWHERE`. loss: the
        mean of the windows'."""
        predictions = predictions.assign(score=predictions["score"].fillna(-np.inf))  # of a run that diverged
        windows = predictions.groupby("example_id", sort=False)
        best = predictions.loc[windows["score"].idxmax()].set_index("example_id")
        best = best.assign(
            loss=windows["loss"].mean(), null_score=windows["null_score"].min(), windows=windows.size()
        ).reset_index()
        best.loc[best["null_score"] >= best["score"], ["start", "end"]] = NOWHERE
        return best

    def mean_loss(self, predictions: pd.DataFrame) -> float:
        """Over windows, which training sees one by one."""
        return float(np.average(predictions["loss"], weights=predictions["windows"]))

    def metrics(self, predictions: pd.DataFrame) -> dict[str, float]:
        scores = self.example_scores(predictions)
        return {name: float(scores[name].mean()) for name in self.metric_names}

    def example_scores(self, predictions: pd.DataFrame) -> dict[str, np.ndarray]:
        """ "exact_match" (0 or 1), "token_f1", and "loss" of what a model predicted."""
        start, end, answer_start, answer_end = (
            predictions[name].to_numpy() for name in ("start", "end", "answer_start", "answer_end")
        )
        common = np.minimum(end, answer_end) - np.maximum(start, answer_start) + 1
        total = (end - start + 1) + (answer_end - answer_start + 1)
        is_alike = (start == NOWHERE) == (answer_start == NOWHERE)
        scores = {
            "token_f1": np.where(is_alike, 2 * np.maximum(common, 0) / total, 0.0),
            "exact_match": self.right(predictions),
        }
        if "loss" in predictions and predictions["loss"].notna().all():
            scores["loss"] = predictions["loss"].to_numpy(dtype=np.float64)
        return scores

    def right(self, predictions: pd.DataFrame) -> np.ndarray:
        is_right = [
            predictions[name].to_numpy() == predictions[f"answer_{name}"].to_numpy() for name in ("start", "end")
        ]
        return (is_right[0] & is_right[1]).astype(np.float64)

    def signature(self, outputs: torch.Tensor, batch: Batch) -> np.ndarray:
        """Probabilities of start and end, at the answer, at the null answer and at the likeliest token: [rows, 6]."""
        import torch

        found = _log_probabilities(outputs, batch)
        places = (self._at(found, batch, "start", "end"), self._at(found, batch, "null", "null"), found.amax(dim=1))
        return torch.cat(places, dim=1).exp().detach().cpu().numpy()

    def agreement(self, first: np.ndarray, second: np.ndarray) -> Agreement:
        return Agreement(float(np.abs(first - second).max()), "a probability")

    def change(self, reference: pd.DataFrame, run: pd.DataFrame) -> pd.DataFrame:
        """flip: 1 where the two give different answers."""
        import pandas as pd

        other = run.set_index("example_id").loc[reference["example_id"]]
        is_same = (reference[["start", "end"]].to_numpy() == other[["start", "end"]].to_numpy()).all(axis=1)
        return pd.DataFrame({"example_id": reference["example_id"].to_numpy(), "flip": (~is_same).astype(np.float64)})

    def baselines(self, frames: Mapping[str, pd.DataFrame], *, seeds: Sequence[int]) -> Baselines:
        """Never an answer."""
        rows = frames["test"][["example_id", "answer_start", "answer_end"]].reset_index(drop=True)
        return {("no answer", ""): rows.assign(start=NOWHERE, end=NOWHERE)}

    def _at(self, values: torch.Tensor, batch: Batch, start: str, end: str) -> torch.Tensor:
        """[rows, 2]: values [rows, tokens, 2] of the start at one token and of the end at another."""
        import torch

        tokens = torch.stack([torch.as_tensor(batch[name], device=values.device) for name in (start, end)], dim=1)
        return values.gather(1, tokens[:, None, :])[:, 0]


def _log_probabilities(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of every token as start and as end, over the real tokens of its row: float32 [rows, tokens, 2]."""
    import torch

    is_padding = torch.as_tensor(batch[MASK], device=outputs.device) == 0
    return torch.log_softmax(outputs.float().masked_fill(is_padding[:, :, None], -torch.inf), dim=1)


class ToySpans(Task):
    """The task of a `SpanTask`."""

    settings: ClassVar[type[TaskSettings] | None] = SpanTask

    def __init__(self, name: str, *, longest_answer: int) -> None:
        super().__init__(
            name,
            inputs=SpanInputs(("question", "context")),
            head=Head("AutoModelForTokenClassification", {"num_labels": 2}, peft_task="TOKEN_CLS"),
            scoring=SpanScoring(longest_answer),
        )

    @classmethod
    def describe(cls, spec: SpanTask, *, data_dir: Path | None, protocol: str) -> SourceDescription:
        return describe_files({"questions": Path(spec.questions)})

    @classmethod
    def read(cls, spec: SpanTask, *, source: SourceDescription, protocol: str) -> RawExamples:
        import pandas as pd

        rows = [json.loads(line) for line in Path(source.locations["questions"]).read_text().splitlines()]
        frame = pd.DataFrame(
            {
                "example_id": [row["id"] for row in rows],
                "question": [row["question"] for row in rows],
                "context": [row["context"] for row in rows],
                "answer_start": [NOWHERE if row["start"] is None else row["start"] for row in rows],
                "answer_end": [NOWHERE if row["end"] is None else row["end"] for row in rows],
            }
        )
        frame["answerable"] = (frame["answer_start"] != NOWHERE).astype(int)
        return RawExamples(
            {"train": frame},
            {"longest_answer": spec.longest_answer},
            content=("question", "context"),
            source=f"file: {Path(spec.questions).name}",
            strata=Strata("answerable", ("without an answer", "with an answer")),
        )

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> ToySpans:
        return cls(description["name"], longest_answer=description["longest_answer"])
