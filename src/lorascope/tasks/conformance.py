"""What every task must do, as tests: derive a class from `TaskConformance`, say which task, run pytest.

    class TestMyTask(TaskConformance):
        @pytest.fixture
        def case(self) -> TaskCase:
            return TaskCase(result=..., examples=[...])

The one idea: an example's loss and prediction belong to the example. They may not depend on its batch, its padding or
its neighbours, or paired statistics would compare batches instead of methods.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lorascope.data.columns import Batch, Columns
from lorascope.tasks.description import task_from_result
from lorascope.tasks.task import Task

MAX_LENGTH = 48


@dataclass(frozen=True)
class TaskCase:
    """result: of the task's `data` artifact. examples: at least 8 of its rows, of at least two classes."""

    result: Mapping[str, Any]
    examples: Sequence[Mapping[str, Any]]

    @cached_property
    def task(self) -> Task:
        return task_from_result(json.loads(json.dumps(self.result)))

    @cached_property
    def tokenizer(self) -> Any:
        return byte_tokenizer()

    def columns(self, *, max_length: int = MAX_LENGTH) -> Columns:
        return self.task.tokenise(self.examples, self.tokenizer, max_length=max_length)

    def batch(self, *, length: int = MAX_LENGTH, rows: Sequence[int] | None = None) -> Batch:
        columns = self.columns()
        if rows is not None:
            columns = {name: [values[row] for row in rows] for name, values in columns.items()}
        return self.task.collate(columns, pad_token_id=self.tokenizer.pad_token_id, length=length)

    def logits(self, *, seed: int = 0) -> Any:
        """float32 [examples, labels], random."""
        import torch

        shape = (len(self.examples), self.task.head_config()["num_labels"])
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def predictions(self, *, seed: int = 0) -> Any:
        import pandas as pd

        return pd.DataFrame(self.task.predictions(self.logits(seed=seed), self.batch()))

    def example_table(self) -> Any:
        import pandas as pd

        return pd.DataFrame(self.examples)


class TaskConformance:
    """Derive, and give a pytest fixture `case` that returns a `TaskCase`."""

    def test_head_config_is_json_and_names_every_class(self, case: TaskCase) -> None:
        config = case.task.head_config()
        json.dumps(config)
        assert len(config["id2label"]) == len(config["label2id"]) == config["num_labels"]

    def test_tokenised_columns_have_one_row_an_example_within_max_length(self, case: TaskCase) -> None:
        columns = case.columns()
        assert {"input_ids", "label", "num_tokens_before_truncation"} <= set(columns)
        assert {len(rows) for rows in columns.values()} == {len(case.examples)}
        for ids, before in zip(columns["input_ids"], columns["num_tokens_before_truncation"], strict=True):
            assert ids.dtype == np.int32
            assert len(ids) == min(int(before), MAX_LENGTH)

    def test_tokens_of_an_example_do_not_depend_on_the_others(self, case: TaskCase) -> None:
        together = case.columns()
        for row, example in enumerate(case.examples):
            alone = case.task.tokenise([example], case.tokenizer, max_length=MAX_LENGTH)
            for name, rows in together.items():
                np.testing.assert_array_equal(rows[row], alone[name][0])

    def test_batches_are_right_padded_and_masked(self, case: TaskCase) -> None:
        columns, batch = case.columns(), case.batch(length=MAX_LENGTH + 8)
        assert batch["labels"].tolist() == [int(example["label"]) for example in case.examples]
        for row, ids in enumerate(columns["input_ids"]):
            assert batch["input_ids"][row, : len(ids)].tolist() == ids.tolist()
            assert set(batch["input_ids"][row, len(ids) :].tolist()) == {case.tokenizer.pad_token_id}
            assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (MAX_LENGTH + 8 - len(ids))
        for name, values in batch.items():
            assert values.dtype == np.int64, name

    def test_loss_of_an_example_does_not_depend_on_the_others(self, case: TaskCase) -> None:
        import torch

        logits = case.logits()
        together = case.task.loss_per_example(logits, case.batch())
        assert together.dtype == torch.float32
        assert together.shape == (len(case.examples),)
        for row in range(len(case.examples)):
            alone = case.task.loss_per_example(logits[row : row + 1], case.batch(rows=[row]))
            torch.testing.assert_close(alone[0], together[row])

    def test_gradient_of_an_examples_loss_reaches_its_own_logits_only(self, case: TaskCase) -> None:
        logits = case.logits().requires_grad_()
        case.task.loss_per_example(logits, case.batch())[0].backward()
        assert logits.grad is not None
        assert logits.grad[0].abs().sum() > 0
        assert logits.grad[1:].abs().sum() == 0

    def test_loss_of_low_precision_logits_is_float32(self, case: TaskCase) -> None:
        import torch

        logits = case.logits().bfloat16()
        loss = case.task.loss_per_example(logits, case.batch())
        torch.testing.assert_close(loss, case.task.loss_per_example(logits.float(), case.batch()))

    def test_predictions_have_one_row_an_example_and_agree_with_the_loss(self, case: TaskCase) -> None:
        predictions = case.predictions()
        assert len(predictions) == len(case.examples)
        loss = case.task.loss_per_example(case.logits(), case.batch()).numpy()
        np.testing.assert_allclose(predictions["loss"], loss, rtol=1e-5)

    def test_probabilities_sum_to_one_and_lead_to_the_prediction(self, case: TaskCase) -> None:
        predictions = case.predictions()
        names = [f"probability_{index}" for index in range(case.task.head_config()["num_labels"])]
        probabilities = predictions[names].to_numpy()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert probabilities.argmax(axis=1).tolist() == predictions["prediction"].tolist()

    def test_metrics_are_those_announced_and_ignore_the_order_of_examples(self, case: TaskCase) -> None:
        predictions = case.predictions()
        metrics = case.task.metrics(predictions)
        assert tuple(metrics) == case.task.metric_names
        assert case.task.metrics(predictions.iloc[::-1]) == metrics

    def test_perfect_predictions_score_one_and_wrong_ones_less(self, case: TaskCase) -> None:
        predictions = case.predictions()
        perfect = predictions.assign(prediction=predictions["label"])
        assert all(value == 1 for value in case.task.metrics(perfect).values())
        wrong = predictions.assign(prediction=(predictions["label"] + 1) % case.task.head_config()["num_labels"])
        assert all(value <= 0 for value in case.task.metrics(wrong).values())

    def test_example_scores_have_one_float_an_example(self, case: TaskCase) -> None:
        predictions = case.predictions()
        scores = case.task.example_scores(predictions)
        assert {"correct", "loss"} <= set(scores)
        for values in scores.values():
            assert values.dtype == np.float64
            assert values.shape == (len(predictions),)

    def test_majority_predicts_the_commonest_training_class(self, case: TaskCase) -> None:
        labels = np.array([1, 1, 0, 1])
        rows = case.task.majority_predictions(labels, case.example_table())
        assert set(rows["prediction"]) == {1}
        assert set(case.predictions().columns) | {"example_id"} == set(rows.columns)
        assert rows["example_id"].tolist() == [example["example_id"] for example in case.examples]

    def test_random_baseline_follows_the_training_frequencies_and_its_generator(self, case: TaskCase) -> None:
        import pandas as pd

        table = pd.concat([case.example_table()] * 300, ignore_index=True)
        labels = np.array([0, 0, 0, 1])
        first, again = (
            case.task.random_predictions(labels, table, generator=np.random.default_rng(3)) for _ in range(2)
        )
        pd.testing.assert_frame_equal(first, again)
        # 5 standard errors of a binomial share of 1/4
        assert abs(np.mean(first["prediction"].to_numpy() == 1) - 0.25) < 5 * (0.25 * 0.75 / len(table)) ** 0.5

    def test_published_figures_are_fractions_with_citation_and_setting(self, case: TaskCase) -> None:
        for figure in case.task.published():
            assert set(figure) == {"model", "method", "metric", "value", "citation", "setting"}
            assert figure["metric"] in case.task.metric_names
            assert 0 < figure["value"] < 1
            assert figure["citation"]
            assert figure["setting"]


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
