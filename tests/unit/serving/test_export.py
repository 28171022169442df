"""Exported checkpoints compute what was trained, read by transformers and peft alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from serving_fixture import FULL, LORA, CommittedRun, commit_run, save_tied_llama, teacher_forced_logits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.serving.export import write_adapter, write_base, write_full, write_merged
from lorascope.serving.loading_lines import Places, loading_lines
from lorascope.serving.precision import MERGED, ROUNDED, merge_precision
from lorascope.training.reading import Reading

SAME = 1e-5  # fp32 sums in another order


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> dict[str, Path]:
    return {**tiny_checkpoints, "tied-llama": save_tied_llama(tmp_path_factory.mktemp("tied") / "tied-llama")}


@pytest.fixture(params=["llama", "tied-llama", "bert", "roberta"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["llama", "tied-llama"])
def decoder(request: pytest.FixtureRequest) -> str:
    return request.param


def logits(committed: CommittedRun, model: Any) -> np.ndarray:
    """Class logits of the validation examples."""
    rows = np.arange(len(committed.columns))
    return Reading(committed.run.task, 0, "cpu", "fp32").signatures(model, committed.columns, rows=rows)


def differ(first: Any, second: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------------ classification


def test_adapter_read_by_peft_computes_what_was_trained(architecture: str, checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints[architecture], LORA)
    out = write_adapter(committed.run, tmp_path / "adapter", workload="classification")
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoints[architecture], num_labels=2, pad_token_id=0)
    read = PeftModel.from_pretrained(plain, str(out)).eval()
    np.testing.assert_allclose(logits(committed, read), logits(committed, committed.in_memory), atol=SAME)


def test_an_adapters_head_replaces_the_drawn_head_of_the_base(checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints["llama"], LORA)
    out = write_adapter(committed.run, tmp_path / "adapter", workload="classification")
    base = write_base(committed.run, tmp_path / "base", workload="classification", seed=1)
    alone = AutoModelForSequenceClassification.from_pretrained(base).eval()
    assert differ(torch.from_numpy(logits(committed, alone)), torch.from_numpy(logits(committed, committed.in_memory)))
    read = PeftModel.from_pretrained(alone, str(out)).eval()
    np.testing.assert_allclose(logits(committed, read), logits(committed, committed.in_memory), atol=SAME)


def test_merged_checkpoint_read_by_transformers_computes_what_was_trained(
    architecture: str, checkpoints, tmp_path: Path
) -> None:
    committed = commit_run(tmp_path, checkpoints[architecture], LORA)
    out = write_merged(committed.run, tmp_path / "merged", workload="classification")
    read = AutoModelForSequenceClassification.from_pretrained(out).eval()
    np.testing.assert_allclose(logits(committed, read), logits(committed, committed.in_memory), atol=10 * SAME)
    assert (read.config.num_labels, read.config.pad_token_id) == (2, 0)
    assert read.config.id2label == {0: "bad", 1: "good"}
    assert AutoTokenizer.from_pretrained(out)("good film")["input_ids"]


def test_full_checkpoint_read_by_transformers_computes_what_was_trained(
    architecture: str, checkpoints, tmp_path: Path
) -> None:
    committed = commit_run(tmp_path, checkpoints[architecture], FULL, strength=0.05)
    out = write_full(committed.run, tmp_path / "full", workload="classification")
    read = AutoModelForSequenceClassification.from_pretrained(out).eval()
    np.testing.assert_allclose(logits(committed, read), logits(committed, committed.in_memory), atol=SAME)


def test_the_head_drawn_for_the_base_comes_from_the_seed(checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints["llama"], LORA).run
    heads = [
        load_file(write_base(run, tmp_path / name, workload="classification", seed=seed) / "model.safetensors")
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, again, other = (head["score.weight"] for head in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------------------------------------------------- generation


def base_with_updates_added(checkpoint: Path, committed: CommittedRun) -> Any:
    """The base's language model with scale * B A added to each weight, by hand from the run's exported tensors."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    state = load_file(committed.run.export / "adapter_model.safetensors")
    with torch.no_grad():
        for key in [key for key in state if key.endswith("lora_A.weight")]:
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            update = state[key.replace("lora_A", "lora_B")] @ state[key]
            model.get_submodule(name).weight += LORA.alpha / LORA.rank * update
    return model


def test_generation_adapter_and_merged_model_are_the_base_with_its_updates(
    decoder: str, checkpoints, tmp_path: Path
) -> None:
    committed = commit_run(tmp_path, checkpoints[decoder], LORA)
    expected = teacher_forced_logits(base_with_updates_added(checkpoints[decoder], committed), committed.prompts)
    untouched = AutoModelForCausalLM.from_pretrained(checkpoints[decoder]).eval()
    assert differ(teacher_forced_logits(untouched, committed.prompts), expected) > 0.1
    adapter = write_adapter(committed.run, tmp_path / "adapter", workload="generation")
    read = PeftModel.from_pretrained(untouched, str(adapter)).eval()
    assert differ(teacher_forced_logits(read, committed.prompts), expected) < 10 * SAME
    merged = write_merged(committed.run, tmp_path / "merged", workload="generation")
    read = AutoModelForCausalLM.from_pretrained(merged).eval()
    assert differ(teacher_forced_logits(read, committed.prompts), expected) < 10 * SAME


def test_generation_adapter_holds_no_head(checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints["llama"], LORA).run
    out = write_adapter(run, tmp_path / "adapter", workload="generation")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    assert all(".lora_" in name for name in load_file(out / "adapter_model.safetensors"))


def test_base_for_generation_is_the_checkpoint_itself(decoder: str, checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints[decoder], LORA)
    out = write_base(committed.run, tmp_path / "base", workload="generation")
    read, original = (AutoModelForCausalLM.from_pretrained(d).eval() for d in (out, checkpoints[decoder]))
    assert differ(*(teacher_forced_logits(m, committed.prompts) for m in (read, original))) == 0
    assert read.config.use_cache


def test_full_run_generates_with_the_head_of_its_base(checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints["llama"], FULL, strength=0.05)
    out = write_full(committed.run, tmp_path / "full", workload="generation")
    read = AutoModelForCausalLM.from_pretrained(out).eval()
    base = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    assert torch.equal(read.lm_head.weight, base.lm_head.weight)
    with torch.no_grad():
        tokens = torch.tensor([committed.prompts[0]])
        hidden = committed.in_memory.model(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(read(input_ids=tokens).logits, hidden @ base.lm_head.weight.T, atol=SAME, rtol=0)


def test_tied_head_of_a_full_run_is_its_own_embedding(checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints["tied-llama"], FULL, strength=0.05)
    out = write_full(committed.run, tmp_path / "full", workload="generation")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    read = AutoModelForCausalLM.from_pretrained(out).eval()
    embedding = committed.in_memory.model.embed_tokens.weight
    assert torch.equal(read.lm_head.weight, embedding)
    with torch.no_grad():
        tokens = torch.tensor([committed.prompts[0]])
        hidden = committed.in_memory.model(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(read(input_ids=tokens).logits, hidden @ embedding.T, atol=SAME, rtol=0)


# --------------------------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("workload", ["classification", "generation"])
def test_every_weight_is_in_the_wanted_dtype(workload: Any, checkpoints, tmp_path: Path) -> None:
    lora = commit_run(tmp_path / "lora", checkpoints["tied-llama"], LORA).run
    full = commit_run(tmp_path / "full", checkpoints["tied-llama"], FULL).run
    for write, run in ((write_adapter, lora), (write_merged, lora), (write_base, lora), (write_full, full)):
        out = write(run, tmp_path / write.__name__, workload=workload, dtype="bfloat16")
        (weights,) = out.glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
        if write is not write_adapter:
            assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_merging_is_done_in_fp32_before_the_weights_are_cast(checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints["llama"], LORA)
    out = write_merged(committed.run, tmp_path / "merged", workload="generation", dtype="bfloat16")
    found = load_file(out / "model.safetensors")
    exact = base_with_updates_added(checkpoints["llama"], committed).state_dict()
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"):
        ulps = (found[name].view(torch.int16).int() - exact[name].bfloat16().view(torch.int16).int()).abs()
        assert float((ulps > 0).float().mean()) < 0.01 and int(ulps.max()) <= 1


def test_exporting_leaves_the_base_in_memory_as_it_was(checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints["tied-llama"], LORA).run
    before = {name: tensor.clone() for name, tensor in run.base.model.state_dict().items()}
    for workload in ("classification", "generation"):
        write_merged(run, tmp_path / f"m-{workload}", workload=workload, dtype="bfloat16")
        write_base(run, tmp_path / f"b-{workload}", workload=workload, dtype="bfloat16")
    after = run.base.model.state_dict()
    assert all(
        after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items()
    )


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("workload", ["classification", "generation"])
def test_merging_is_noise_in_fp32_and_rounding_in_bf16(workload: Any, checkpoints, tmp_path: Path) -> None:
    committed = commit_run(tmp_path, checkpoints["llama"], LORA)
    found = merge_precision(committed.run, committed.columns, workload=workload, num_examples=20)
    exact, coarse = found.row(MERGED, "float32"), found.row(MERGED, "bfloat16")
    assert exact.max_abs_logit_difference < 1e-4 and exact.flip_rate == 0
    assert 10 * exact.max_abs_logit_difference < coarse.max_abs_logit_difference < 1
    assert 0 <= coarse.flip_rate < 0.5
    tokens = sum(len(prompt) for prompt in committed.prompts[:20])
    assert exact.n == coarse.n == (20 if workload == "classification" else tokens)
    rounding = found.row(ROUNDED, "bfloat16")
    assert 0 < rounding.max_probability_difference < 0.5


def test_precision_of_a_merge_that_scales_wrongly_is_not_noise(checkpoints, tmp_path: Path, monkeypatch) -> None:
    committed = commit_run(tmp_path, checkpoints["llama"], LORA)
    right = committed.run.method.merge

    def doubled(reloaded: Any) -> Any:
        with torch.no_grad():
            for name, parameter in reloaded.named_parameters():
                if "lora_B" in name:
                    parameter *= 2
        return right(reloaded)

    monkeypatch.setattr(committed.run.method, "merge", doubled)
    found = merge_precision(committed.run, committed.columns, workload="classification")
    assert found.row(MERGED, "float32").max_abs_logit_difference > 1e-2


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_full_run_has_nothing_to_merge(checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints["llama"], FULL).run
    for write in (write_adapter, write_merged):
        with pytest.raises(StudyError, match="no adapter") as caught:
            write(run, tmp_path / "out", workload="classification")
        assert caught.value.hint is not None and "full" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_an_adapter_run_is_no_full_checkpoint(checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints["llama"], LORA).run
    with pytest.raises(StudyError, match="trained an adapter"):
        write_full(run, tmp_path / "out", workload="classification")


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_an_encoder_has_no_generation_workload(encoder: str, checkpoints, tmp_path: Path) -> None:
    run = commit_run(tmp_path, checkpoints[encoder], LORA).run
    for write in (write_adapter, write_merged, write_base):
        with pytest.raises(StudyError, match="is an encoder: it has no generation workload"):
            write(run, tmp_path / "out", workload="generation")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_gone_is_said(checkpoints, tmp_path: Path) -> None:
    import shutil

    from lorascope.serving.trained import open_run

    copy = shutil.copytree(checkpoints["llama"], tmp_path / "copy")
    committed = commit_run(tmp_path, copy, LORA)
    shutil.rmtree(copy)
    (train,), (data,) = committed.store.artifacts("train"), committed.store.artifacts("data")
    with pytest.raises(EnvironmentProblem, match="files are gone"):
        open_run(train, data, cache_dir=tmp_path / "cache")


def test_the_printed_line_loads_an_adapter_over_a_head_of_other_classes(checkpoints, tmp_path: Path) -> None:
    """transformers refuses the base's own head for three classes unless it is told to draw a new one."""
    three = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"], num_labels=3)
    base = tmp_path / "base"
    three.save_pretrained(base)
    AutoTokenizer.from_pretrained(checkpoints["bert"]).save_pretrained(base)
    committed = commit_run(tmp_path, base, LORA)
    out = write_adapter(committed.run, tmp_path / "adapter", workload="classification")
    places = Places(str(out), str(base), "store")
    lines = loading_lines(committed.run, places, form="adapter", workload="classification")["peft"]
    assert "ignore_mismatched_sizes=True" in lines
    found: dict[str, Any] = {}
    exec(lines, found)
    np.testing.assert_allclose(
        logits(committed, found["model"].eval()), logits(committed, committed.in_memory), atol=SAME
    )
