"""A whole study of span answers with two windows an example, on an encoder and on a decoder, by a plug-in's task: killed
while it trains, taken up, reported. What it needs of its own is in tests/skeletons/toy_spans."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import environment, lorascope, what_was_measured
from tiny import save_tiny_checkpoint

from lorascope import api
from lorascope.engine.store.directory import Store
from lorascope.registry import TASKS
from lorascope.tasks.conformance import TaskCase, TaskConformance

SKELETONS = Path(__file__).parents[1] / "skeletons"
PEOPLE, PLACES = ("ann", "bob", "cem", "dee"), ("rome", "oslo", "lima", "baku")
FILLERS = ("the", "sun", "was", "high", "and", "far", "north", "rain", "fell")
KINDS = {"who": PEOPLE, "where": PLACES}
MAX_LENGTH = 20

STUDY = f"""
name: spans
question: Does LoRA find answers as well as full fine-tuning?
models: [{{name: encoder, source: {{path: bert}}}}, {{name: decoder, source: {{path: llama}}}}]
tasks: [{{name: answers, kind: toy-spans, questions: questions.jsonl}}]
methods:
  - {{kind: full, learning_rate: 6e-3}}
  - {{kind: lora, learning_rate: 1e-2, rank: 8, sites: [all-linear]}}
seeds: [1, 2]
train: {{epochs: 4, batch_size: 16, max_length: {MAX_LENGTH}, evaluations_per_epoch: 1, gang: 2}}
measure: {{drift: {{examples: 40, draws: 100}}}}
hypotheses:
  H1: {{non_inferior: lora, to: full, margin: 20%, over: average}}
"""


def questions(count: int) -> list[dict[str, Any]]:
    """Contexts of 8 to 24 words in which a person, a place, both or neither are named; the question asks for one."""
    generator = np.random.default_rng(3)
    rows = []
    for index in range(count):
        words = [str(word) for word in generator.choice(FILLERS, size=generator.integers(8, 24))]
        spans: dict[str, tuple[int, int] | None] = dict.fromkeys(KINDS)
        halves = [range(len(words) // 2), range(len(words) // 2, len(words))]
        for half, (kind, names) in enumerate(sorted(KINDS.items(), key=lambda item: generator.random())):
            if generator.random() < 0.85:
                place = int(generator.choice(halves[half][:-1]))
                size = int(generator.integers(1, 3))
                words[place : place + size] = [str(name) for name in generator.choice(names, size=size)]
                spans[kind] = (place, place + size - 1)
        kind = str(generator.choice(sorted(KINDS)))
        start, end = spans[kind] or (None, None)
        row = {"id": f"q{index}", "question": kind, "context": " ".join(words), "start": start, "end": end}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def plugin() -> Iterator[Path]:
    """The folder of the plug-in on the path, here and in workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SKELETONS))
        patch.setattr(TASKS, "_entries", None)
        yield SKELETONS
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_spans"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def finished(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the study, killed once while it trained and run to its end by the same command."""
    directory = tmp_path_factory.mktemp("spans")
    words = [*KINDS, *PEOPLE, *PLACES, *FILLERS]
    for architecture in ("bert", "llama"):
        save_tiny_checkpoint(directory / architecture, architecture, words=words)
    lines = [json.dumps(row) for row in questions(400)]
    (directory / "questions.jsonl").write_text("\n".join(lines))
    (directory / "study.yaml").write_text(STUDY)
    kill_in_training(directory)
    return finish(directory)


def kill_in_training(directory: Path) -> None:
    """Runs the study until a run has a checkpoint, and kills it there; again, should that run have ended just before."""
    log, checkpoints = directory / "killed.log", directory / "store" / "work"
    is_met = False
    while not is_met:
        with log.open("wb") as output:
            running = subprocess.Popen(
                lorascope("run", "study.yaml"),
                cwd=directory,
                env=environment(LORASCOPE_CHECKPOINT_SECONDS="0.01"),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            while not any(checkpoints.glob("train-*/checkpoint.pt")):
                assert running.poll() is None, log.read_text()
                time.sleep(0.01)
            running.kill()  # its worker dies with it
            running.wait()
        is_met = any(checkpoints.glob("train-*/checkpoint.pt"))


def finish(directory: Path) -> Path:
    outcome = api.run(
        api.load(directory / "study.yaml"),
        store=directory / "store",
        results=directory / "results",
        executor="inline",
    )
    assert not (outcome.failed or outcome.blocked), outcome
    return directory


def measurements(directory: Path) -> pd.DataFrame:
    return pd.read_parquet(directory / "results" / "spans" / "measurements.parquet")


def test_a_run_that_was_killed_and_taken_up_measures_the_same(finished: Path, tmp_path: Path) -> None:
    killed = [artifact.id for artifact in Store(finished / "store").artifacts("train") if artifact.result["resumed"]]
    assert killed, "the kill met no run in its training"
    whole = tmp_path / "whole"
    shutil.copytree(finished, whole)
    forget(Store(whole / "store"), killed)
    finish(whole)
    again = [Store(whole / "store").artifact(step_id) for step_id in killed]
    assert not any(artifact.result["resumed"] for artifact in again)
    (first,), (second,) = (Store(path / "store").artifacts("analysis") for path in (finished, whole))
    pd.testing.assert_frame_equal(what_was_measured(second.path), what_was_measured(first.path))


def forget(store: Store, steps: list[str]) -> None:
    """Removes these artifacts and all that were made of them."""
    gone = set(steps)
    for artifact in store.artifacts():
        if artifact.id in gone or gone & set(artifact.step.deps.values()):
            gone.add(artifact.id)
            shutil.rmtree(artifact.path)


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_an_example_has_several_rows_and_one_score(finished: Path, model: str) -> None:
    (tokens,) = [a for a in Store(finished / "store").artifacts("tokens") if a.step.slug.startswith(model)]
    rows, (data,) = tokens.result["num_rows"], Store(finished / "store").artifacts("data")
    assert rows["test"] > data.result["num_examples"]["test"]
    found = measurements(finished)
    scored = found[(found["metric"] == "token_f1") & found["example_id"].notna() & (found["model"] == model)]
    assert set(scored.groupby(["method", "seed"])["example_id"].agg(["count", "nunique"]).to_numpy().flat) == {
        data.result["num_examples"]["test"]
    }
    assert set(scored["method"]) == {"full", "lora", "baseline:no answer"}


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_every_arm_finds_answers(finished: Path, model: str) -> None:
    found = measurements(finished)
    scores = found[(found["split"] == "test") & (found["metric"] == "token_f1") & found["example_id"].isna()]
    means = scores[scores["model"] == model].groupby("method")["value"].mean()
    assert (means[["full", "lora"]] > means["baseline:no answer"]).all(), means


def test_drift_is_measured_at_one_row_an_example(finished: Path) -> None:
    drift = Store(finished / "store").artifacts("drift")
    assert len(drift) == 4
    assert {artifact.result["num_rows"] for artifact in drift} == {40}
    assert len({artifact.result["probes"]["probe"]["ids_sha256"] for artifact in drift}) == 1


def test_the_report_answers_without_a_word_of_classes(finished: Path) -> None:
    text = (finished / "results" / "spans" / "ANALYSIS_REPORT.md").read_text()
    assert (finished / "results" / "spans" / "report.html").is_file()
    assert "H1: supported" in text or "H1: inconclusive" in text or "H1: refuted" in text
    assert "of token f1" in text and "beats no answer" in text
    for word in (" class", "label", "majority", "accuracy"):
        assert word not in text.lower(), word
    assert "nan" not in text.lower().split()


def test_a_run_is_exported_with_the_head_of_the_task(finished: Path, tmp_path: Path) -> None:
    store = finished / "store"
    run = next(a.id for a in Store(store).artifacts("train") if a.step.slug.startswith("decoder-answers-lora"))
    published = api.export(run, store=store, to=tmp_path / "published")
    assert json.loads((published.directory / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    assert published.precision is None, "decisions are counted of classes alone"
    assert "AutoModelForTokenClassification" in published.load["peft"] and set(published.load) == {"peft"}


def test_a_plan_knows_the_primary_metric_and_the_rows(finished: Path) -> None:
    plan = api.plan(api.load(finished / "study.yaml"), store=finished / "store")
    assert [power.metric for power in plan.power] == ["token_f1"]


class TestToySpans(TaskConformance):
    """The conformance suite, with outputs of two numbers a token and examples of several rows."""

    @pytest.fixture
    def case(self, finished: Path) -> TaskCase:
        from transformers import AutoTokenizer

        (data,) = Store(finished / "store").artifacts("data")
        examples = pd.read_parquet(data.file("test.parquet")).head(12).to_dict("records")
        return TaskCase(data.result, examples, span_outputs, AutoTokenizer.from_pretrained(finished / "bert"))

    def test_some_examples_have_windows_and_some_no_answer(self, case: TaskCase) -> None:
        columns = case.columns(max_length=MAX_LENGTH)
        assert len(case.examples) < len(columns["example"]) < 4 * len(case.examples)
        assert {row["answerable"] for row in case.examples} == {0, 1}
        is_null = np.array(columns["start"]) == np.array(columns["null"])
        assert 0 < is_null.mean() < 1


def span_outputs(case: TaskCase, batch: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.randn((*batch["input_ids"].shape, 2), generator=generator)
