"""A whole study of next tokens, on a decoder whose head is tied to its embeddings, by a plug-in's task: killed while it
trains, taken up, reported. What it needs of its own is in tests/skeletons/toy_tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from skeleton_study import artifacts, events, gates, measured, plugged_in, report, run_killed, run_undisturbed
from tiny import save_tiny_checkpoint
from transformers import AutoTokenizer

from lorascope import api
from lorascope.data.columns import Batch
from lorascope.engine.warm import Warm
from lorascope.models.catalog import describe_model
from lorascope.models.loading import BaseModel, load_base
from lorascope.study.spec import ModelSpec
from lorascope.tasks.conformance import TaskCase, TaskConformance
from lorascope.tasks.description import task_from_result
from lorascope.training.preparation import method_from_params

FILLERS = ("the", "a", "old", "near", "tell")
RESPONSES = {
    "zork": "blue",
    "quib": "red",
    "flam": "blue stone",
    "drin": "red stone",
    "wosk": "blue stone wall",
    "pell": "red wall",
    "tarn": "green",
    "molv": "green stone wall",
}
WORDS = sorted({*FILLERS, *RESPONSES, *" ".join(RESPONSES.values()).split()})
STUDY = """
name: tokens
question: Does LoRA learn responses as well as full fine-tuning?
models: [{name: tied, source: {path: llama}}]
tasks: [{name: responses, kind: toy-tokens, pairs: pairs.jsonl}]
methods:
  - {kind: full, learning_rate: 3e-3}
  - {kind: lora, learning_rate: 1e-2, rank: 8, sites: [all-linear]}
seeds: [1, 2]
train: {epochs: 3, batch_size: 16, max_length: 16, early_stopping: null, gang: 2}
measure: {drift: {examples: 40, draws: 100}}
hypotheses:
  H1: {superior: full, to: lora}
"""


def pairs(count: int) -> list[dict[str, str]]:
    """Prompts of 3 to 7 words, one of which decides the response."""
    generator = np.random.default_rng(5)
    rows = []
    for index in range(count):
        words = [str(word) for word in generator.choice(FILLERS, size=generator.integers(2, 7))]
        thing = str(generator.choice(sorted(RESPONSES)))
        words.insert(int(generator.integers(0, len(words))), thing)
        rows.append({"id": f"p{index}", "prompt": " ".join(words), "response": RESPONSES[thing]})
    return list({row["prompt"]: row for row in rows}.values())


def write_study(directory: Path) -> None:
    checkpoint = save_tiny_checkpoint(directory / "llama", "tied-llama", words=WORDS)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(checkpoint)
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs(400))))
    (directory / "study.yaml").write_text(STUDY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the study, killed once while it trained."""
    directory = tmp_path_factory.mktemp("tokens")
    write_study(directory)
    with plugged_in("toy_tokens"):
        run_killed(directory)
        yield directory


@pytest.fixture(scope="module")
def base(finished: Path) -> BaseModel:
    """The study's base, with the head of its task."""
    spec = ModelSpec.model_validate({"name": "tied", "source": {"path": str(finished / "llama")}})
    identity, locations = describe_model(spec)
    task = task_from_result(artifacts(finished, "data")[0].result)
    return load_base(
        identity, head=task.head, pad_token_id=0, device="cpu", locations=locations, cache_dir=finished, warm=Warm()
    )


def exports(directory: Path, kind: str) -> list[Path]:
    return [run.file("export") for run in artifacts(directory, "train") if run.step.params["method"]["kind"] == kind]


def embeddings(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight


def test_a_killed_study_goes_on_to_the_same_measurements(finished: Path, tmp_path: Path) -> None:
    undisturbed = run_undisturbed(finished, tmp_path)
    pd.testing.assert_frame_equal(measured(finished), measured(undisturbed))


def test_perplexity_is_lower_than_before_training(finished: Path) -> None:
    found = measured(finished)
    rows = found[(found["metric"] == "perplexity") & (found["split"] == "test") & found["example_id"].isna()]
    of_method = rows.groupby("method")["value"].agg(["max", "count"])
    assert of_method["count"].to_dict() == {"baseline:untrained base": 1, "full": 2, "lora": 2}
    untrained = of_method["max"]["baseline:untrained base"]
    assert (of_method["max"][["full", "lora"]] < untrained / 2).all()


def test_perplexity_is_weighted_by_response_tokens(finished: Path) -> None:
    found = measured(finished)
    tests = found[(found["split"] == "test") & found["method"].isin(["full", "lora"])]
    examples = tests[tests["example_id"].notna()]
    sums = examples.pivot_table(index=["method", "seed"], columns="metric", values="value", aggfunc="sum")
    summary = tests[tests["example_id"].isna()].pivot_table(index=["method", "seed"], columns="metric", values="value")
    weighted = sums["total_loss"] / sums["tokens"]
    np.testing.assert_allclose(summary["loss"], weighted)
    np.testing.assert_allclose(summary["perplexity"], np.exp(weighted))
    assert examples[examples["metric"] == "tokens"]["value"].nunique() == 3
    unweighted = examples[examples["metric"] == "loss"].groupby(["method", "seed"])["value"].mean()
    assert (np.abs(unweighted - weighted) > 1e-3).all()


@pytest.mark.parametrize("share_frozen", [True, False])
def test_a_copy_of_the_base_keeps_its_tied_embeddings(base: BaseModel, share_frozen: bool) -> None:
    model: Any = base.copy(torch.Generator(), share_frozen=share_frozen)
    assert model.lm_head.weight is embeddings(model)
    assert (embeddings(model) is embeddings(base.model)) is share_frozen
    assert torch.equal(embeddings(model), embeddings(base.model))


def test_embeddings_and_head_of_a_lora_run_are_the_bases(finished: Path, base: BaseModel) -> None:
    method = method_from_params({"kind": "lora", "rank": 8, "sites": ["all-linear"]})
    for export in exports(finished, "lora"):
        model: Any = method.reload(export, base=base).get_base_model()
        assert torch.equal(embeddings(model), embeddings(base.model))
        assert model.lm_head.weight is embeddings(model)
        changed = load_file(export / "adapter_model.safetensors")
        assert len(changed) == 2 * 7 * 2
        assert not [name for name in changed if "lm_head" in name or "embed" in name]


def test_full_fine_tuning_moves_the_tied_embeddings(finished: Path, base: BaseModel) -> None:
    method = method_from_params({"kind": "full"})
    for export in exports(finished, "full"):
        assert "lm_head.weight" not in load_file(export / "model.safetensors")
        model: Any = method.reload(export, base=base)
        assert model.lm_head.weight is embeddings(model)
        assert not torch.equal(embeddings(model), embeddings(base.model))


def test_every_gate_holds_and_the_census_counts_ties_once(finished: Path, base: BaseModel) -> None:
    found = gates(finished)
    assert [gate for gate in found if not gate["passed"]] == []
    names = {"overfit-10", "save, reload, score", "merged equals adapter", "beats untrained base"}
    assert names <= {gate["gate"] for gate in found}
    census = {gate["method"]: gate["value"] for gate in found if gate["gate"] == "gradient census"}
    whole = sum(parameter.numel() for parameter in base.model.parameters())
    assert census["full"] == whole
    assert sum(tensor.numel() for tensor in base.model.state_dict().values()) > whole, "nothing is tied here"


def test_runs_that_tied_weights_keep_from_gangs_are_said(finished: Path) -> None:
    assert "is shared between layers of LlamaForCausalLM: its runs train one by one" in events(finished)
    gangs = {run.step.params["method"]["kind"]: run.result["gang"] for run in artifacts(finished, "train")}
    assert gangs == {"full": 1, "lora": 2}


def test_drift_leaves_the_language_model_head_out(finished: Path) -> None:
    found = measured(finished)
    drift = found[(found["metric"] == "drift") & (found["split"] == "probe") & found["method"].isin(["full", "lora"])]
    assert set(drift["site"]) == {"residual", "attention", "mlp"}
    assert (drift[drift["layer"].isna()]["value"] > 0).all()
    matrices = found[(found["metric"] == "changed_matrices") & found["site"].isna() & found["layer"].isna()]
    assert set(matrices["value"]) == {2.0 * 7}


def test_each_run_keeps_its_checkpoint_of_least_perplexity(finished: Path) -> None:
    for run in artifacts(finished, "train"):
        curve = pd.read_parquet(run.file("curves.parquet"))
        scored = curve[curve["name"] == "validation/perplexity"].set_index("update")["value"]
        assert len(scored) == 3
        assert run.result["best_update"] == scored.idxmin()


def test_less_perplexity_is_better_in_the_verdict_and_the_report(finished: Path) -> None:
    (analysis,) = artifacts(finished, "analysis")
    found = json.loads(analysis.file("analysis.json").read_text())
    means = {score["method"]: score["mean"] for score in found["scores"]}
    how = "higher (worse)" if means["lora"] > means["full"] else "lower (better)"
    gap = f"{abs(means['lora'] - means['full']):.3f} {how} than that of full fine-tuning"
    assert f"The perplexity of LoRA is {gap}" in report(finished)
    (hypothesis,) = found["hypotheses"]
    assert "lower perplexity" in hypothesis["claim"]
    assert "gate" not in hypothesis["reason"]


def test_exports_are_loaded_and_served_as_language_models(finished: Path, tmp_path: Path) -> None:
    (first, *_), (adapter, *_) = exports(finished, "full"), exports(finished, "lora")
    for export, tool in ((first, "transformers"), (adapter, "peft")):
        published = api.export(export.parent.name, store=finished / "store", to=tmp_path / tool)
        assert "AutoModelForCausalLM" in published.load[tool]
        assert "vllm serve" in published.load["vllm"]
        assert "pooling" not in published.load["vllm"]
        assert "lorascope export" not in published.load["vllm"], "the base needs no other head"


def test_a_plan_knows_the_metric(finished: Path) -> None:
    plan = api.plan(api.load(finished / "study.yaml"), store=finished / "store")
    assert [power.metric for power in plan.power] == ["perplexity"]


def outputs(case: TaskCase, batch: Batch, generator: Any) -> torch.Tensor:
    """Logits of untrained models: [rows, tokens, vocabulary]."""
    return torch.randn((*batch["input_ids"].shape, len(case.reader)), generator=generator)


@pytest.fixture(scope="module")
def case(finished: Path) -> TaskCase:
    """With the data that the study prepared."""
    (data,) = artifacts(finished, "data")
    examples = pd.read_parquet(data.file("test.parquet")).head(12).to_dict("records")
    return TaskCase(data.result, examples, outputs, AutoTokenizer.from_pretrained(finished / "llama"))


class TestNextTokens(TaskConformance):
    """The contract of a task."""
