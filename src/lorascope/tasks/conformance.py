"""What every task must do, as tests: derive a class from `TaskConformance`, say which task, run pytest.

    class TestMyTask(TaskConformance):
        @pytest.fixture
        def case(self) -> TaskCase:
            return TaskCase(result=..., examples=[...], outputs=...)

A classification task derives from `ClassConformance`, which knows its outputs. The one idea: an example's loss and
prediction belong to the example. They may not depend on its batch, its padding or its neighbours, or paired statistics
would compare batches instead of methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.data.batches import padded_batch
from lorascope.data.columns import Batch, Columns
from lorascope.metrics.quality import quality
from lorascope.stats.quality.scores import score_of
from lorascope.tasks.description import task_from_result
from lorascope.tasks.inputs import EXAMPLE
from lorascope.tasks.task import Task

MAX_LENGTH = 48


def class_outputs(case: TaskCase, batch: Batch, generator: Any) -> Any:
    """Logits of random models of classes: float32 [rows, classes]."""
    import torch

    shape = (len(next(iter(batch.values()))), case.task.head.config["num_labels"])
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class TaskCase:
    """result: of the task's `data` artifact. examples: at least 8 of its rows, not all alike. outputs: what an untrained
    model could say to a batch, drawn from a generator. processor: what encodes them; None: a tokenizer of bytes."""

    result: Mapping[str, Any]
    examples: Sequence[Mapping[str, Any]]
    outputs: Callable[[TaskCase, Batch, Any], Any] = class_outputs
    processor: Any = None

    @cached_property
    def task(self) -> Task:
        return task_from_result(json.loads(json.dumps(self.result)))

    @cached_property
    def reader(self) -> Any:
        return byte_tokenizer() if self.processor is None else self.processor

    def columns(self, examples: Sequence[Mapping[str, Any]] | None = None, *, max_length: int = MAX_LENGTH) -> Columns:
        return self.task.encode(self.examples if examples is None else examples, self.reader, max_length=max_length)

    @cached_property
    def longest(self) -> int:
        """The size of the longest row."""
        return max((len(row) for rows in self.columns().values() for row in rows if row.ndim == 1), default=1)

    def batch(self, *, length: int | None = None, rows: Sequence[int] | None = None) -> Batch:
        columns = self.columns()
        if rows is not None:
            columns = {name: [values[row] for row in rows] for name, values in columns.items()}
        pad = self.task.inputs.pad_token_id(self.reader)
        return padded_batch(columns, self.task.uses, pad_token_id=pad, length=length or self.longest)

    def drawn(self, batch: Batch, *, seed: int = 0) -> Any:
        """Outputs for a batch of all rows, drawn from a seed."""
        import torch

        return self.outputs(self, batch, torch.Generator().manual_seed(seed))

    def rows(self, *, seed: int = 0) -> Any:
        """Prediction rows, one a row of the columns, with example_id."""
        import pandas as pd

        batch = self.batch()
        frame = pd.DataFrame(self.task.scoring.predictions(self.drawn(batch, seed=seed), batch))
        ids = [self.examples[int(index)]["example_id"] for index in self.columns()[EXAMPLE]]
        frame.insert(0, "example_id", ids)
        return frame

    def predictions(self, *, seed: int = 0) -> Any:
        """Prediction rows, one an example."""
        return self.task.scoring.by_example(self.rows(seed=seed))

    def frames(self) -> dict[str, Any]:
        """The examples as every split."""
        import pandas as pd

        return dict.fromkeys(("train", "validation", "test"), pd.DataFrame(self.examples))


class TaskConformance:
    """Derive, and give a pytest fixture `case` that returns a `TaskCase`."""

    def test_head_and_columns_are_literals(self, case: TaskCase) -> None:
        json.dumps(dict(case.task.head.config))
        keys = [use.key for use in case.task.uses]
        assert len(set(keys)) == len(keys)
        assert case.task.target_keys
        assert isinstance(case.task.inputs, case.task.reads)

    def test_encoded_columns_agree_in_rows_and_name_their_example(self, case: TaskCase) -> None:
        columns = case.columns()
        assert len({len(rows) for rows in columns.values()}) == 1
        examples = [int(index) for index in columns[EXAMPLE]]
        assert examples == sorted(examples)
        assert set(examples) == set(range(len(case.examples)))

    def test_text_is_cut_to_max_length(self, case: TaskCase) -> None:
        ragged = [rows for rows in case.columns().values() if rows[0].ndim == 1]
        assert all(len(row) <= MAX_LENGTH for rows in ragged for row in rows)

    def test_rows_of_an_example_do_not_depend_on_the_others(self, case: TaskCase) -> None:
        together = case.columns()
        owners = np.array([int(index) for index in together[EXAMPLE]])
        for place, example in enumerate(case.examples):
            alone = case.columns([example])
            for name, rows in together.items():
                if name == EXAMPLE:
                    continue
                own = [rows[row] for row in np.flatnonzero(owners == place)]
                assert len(own) == len(alone[name])
                for found, expected in zip(own, alone[name], strict=True):
                    np.testing.assert_array_equal(found, expected)

    def test_loss_of_a_row_does_not_depend_on_the_others(self, case: TaskCase) -> None:
        import torch

        batch = case.batch()
        outputs = case.drawn(batch)
        together = case.task.scoring.loss_per_example(outputs, batch)
        assert together.dtype == torch.float32
        assert together.shape == (len(outputs),)
        for row in range(len(outputs)):
            alone = case.task.scoring.loss_per_example(outputs[row : row + 1], case.batch(rows=[row]))
            torch.testing.assert_close(alone[0], together[row])

    def test_gradient_of_a_rows_loss_reaches_its_own_outputs_only(self, case: TaskCase) -> None:
        batch = case.batch()
        outputs = case.drawn(batch).requires_grad_()
        case.task.scoring.loss_per_example(outputs, batch)[0].backward()
        assert outputs.grad is not None
        assert outputs.grad[0].abs().sum() > 0
        assert outputs.grad[1:].abs().sum() == 0

    def test_loss_of_low_precision_outputs_is_float32(self, case: TaskCase) -> None:
        import torch

        batch = case.batch()
        outputs, scoring = case.drawn(batch).bfloat16(), case.task.scoring
        torch.testing.assert_close(
            scoring.loss_per_example(outputs, batch), scoring.loss_per_example(outputs.float(), batch)
        )

    def test_predictions_have_one_row_an_example_in_order(self, case: TaskCase) -> None:
        predictions = case.predictions()
        assert predictions["example_id"].tolist() == [example["example_id"] for example in case.examples]

    def test_predicted_losses_are_those_of_training(self, case: TaskCase) -> None:
        batch = case.batch()
        loss = case.task.scoring.loss_per_example(case.drawn(batch), batch).numpy()
        np.testing.assert_allclose(case.rows()["loss"], loss, rtol=1e-5)

    def test_metrics_are_those_announced_in_any_order_of_examples(self, case: TaskCase) -> None:
        predictions = case.predictions()
        metrics = case.task.scoring.metrics(predictions)
        assert tuple(metrics) == case.task.metric_names
        again = case.task.scoring.metrics(predictions.iloc[::-1])
        np.testing.assert_allclose([*again.values()], [*metrics.values()], rtol=1e-12)

    def test_example_scores_have_one_float_an_example(self, case: TaskCase) -> None:
        predictions = case.predictions()
        scores = case.task.scoring.example_scores(predictions)
        assert scores
        for values in (*scores.values(), case.task.scoring.right(predictions)):
            assert values.dtype == np.float64
            assert values.shape == (len(predictions),)

    def test_metrics_are_what_their_rows_make_of_example_scores(self, case: TaskCase) -> None:
        predictions = case.predictions()
        columns = case.task.scoring.example_scores(predictions)
        for name, value in case.task.scoring.metrics(predictions).items():
            np.testing.assert_allclose(value, score_of(quality(name), columns), rtol=1e-6, err_msg=name)

    def test_a_model_agrees_with_itself_and_not_with_another(self, case: TaskCase) -> None:
        batch, scoring = case.batch(), case.task.scoring
        first, second = (scoring.signature(case.drawn(batch, seed=seed), batch) for seed in (0, 1))
        assert first.dtype == np.float32
        assert scoring.agreement(first, first).difference == 0
        assert scoring.agreement(first, second).difference > 1e-3

    def test_change_is_zero_between_equal_predictions(self, case: TaskCase) -> None:
        predictions = case.predictions()
        change = case.task.scoring.change(predictions, predictions)
        assert change["example_id"].tolist() == predictions["example_id"].tolist()
        assert (change.drop(columns="example_id").to_numpy() == 0).all()

    def test_baselines_are_scored_as_predictions_are(self, case: TaskCase) -> None:
        for rows in case.task.scoring.baselines(case.frames(), seeds=(1, 2)).values():
            assert rows["example_id"].tolist() == [example["example_id"] for example in case.examples]
            assert tuple(case.task.scoring.metrics(rows)) == case.task.metric_names

    def test_published_figures_are_possible_with_citation_and_setting(self, case: TaskCase) -> None:
        for figure in case.task.published():
            assert set(figure) == {"model", "method", "metric", "value", "citation", "setting"}
            assert figure["metric"] in case.task.metric_names
            row = quality(figure["metric"])
            assert row.low is None or row.low <= figure["value"]
            assert row.high is None or figure["value"] <= row.high
            assert figure["citation"]
            assert figure["setting"]

    def test_what_encodes_examples_can_be_saved(self, case: TaskCase, tmp_path: Path) -> None:
        case.reader.save_pretrained(tmp_path)
        assert list(tmp_path.iterdir())


class ClassConformance(TaskConformance):
    """The same for classification of texts, with what follows from its classes."""

    def test_every_class_has_a_name(self, case: TaskCase) -> None:
        config = case.task.head.config
        assert len(config["id2label"]) == len(config["label2id"]) == config["num_labels"]

    def test_batches_are_right_padded_and_masked(self, case: TaskCase) -> None:
        columns, batch = case.columns(), case.batch(length=MAX_LENGTH + 8)
        assert batch["labels"].tolist() == [int(example["label"]) for example in case.examples]
        for row, ids in enumerate(columns["input_ids"]):
            assert batch["input_ids"][row, : len(ids)].tolist() == ids.tolist()
            assert set(batch["input_ids"][row, len(ids) :].tolist()) == {case.reader.pad_token_id}
            assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (MAX_LENGTH + 8 - len(ids))
        for name, values in batch.items():
            assert values.dtype == np.int64, name

    def test_probabilities_sum_to_one_and_lead_to_the_prediction(self, case: TaskCase) -> None:
        predictions = case.predictions()
        names = [f"probability_{index}" for index in range(case.task.head.config["num_labels"])]
        probabilities = predictions[names].to_numpy()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert probabilities.argmax(axis=1).tolist() == predictions["prediction"].tolist()

    def test_perfect_predictions_score_best_and_wrong_ones_worse(self, case: TaskCase) -> None:
        predictions = case.predictions()
        perfect = predictions.assign(prediction=predictions["label"])
        wrong = predictions.assign(prediction=(predictions["label"] + 1) % case.task.head.config["num_labels"])
        worse = case.task.scoring.metrics(wrong)
        for name, value in case.task.scoring.metrics(perfect).items():
            row = quality(name)
            best = row.high if row.higher_is_better else row.low
            assert row.estimator is not None
            if best is not None and {*row.estimator.columns} <= {"label", "prediction", "correct"}:
                np.testing.assert_allclose(value, best, err_msg=name)
                assert row.is_better(best, worse[name]), name

    def test_majority_predicts_the_commonest_training_class(self, case: TaskCase) -> None:
        import pandas as pd

        frames = {**case.frames(), "train": pd.DataFrame({"label": [1, 1, 0, 1]})}
        rows = case.task.scoring.baselines(frames, seeds=())["majority", ""]
        assert set(rows["prediction"]) == {1}
        assert set(case.predictions().columns) == set(rows.columns)

    def test_random_baseline_follows_the_training_frequencies(self, case: TaskCase) -> None:
        import pandas as pd

        table = pd.concat([pd.DataFrame(case.examples)] * 300, ignore_index=True)
        frames = {"train": pd.DataFrame({"label": [0, 0, 0, 1]}), "test": table}
        first, again = (case.task.scoring.baselines(frames, seeds=(3,))["random", "3"] for _ in range(2))
        pd.testing.assert_frame_equal(first, again)
        # 5 standard errors of a binomial share of 1/4
        assert abs(np.mean(first["prediction"].to_numpy() == 1) - 0.25) < 5 * (0.25 * 0.75 / len(table)) ** 0.5


def byte_tokenizer() -> Any:
    """A tokenizer that needs no file: one token a byte, with BERT's special tokens and segment ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
