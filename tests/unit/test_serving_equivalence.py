"""The gates let rounding through and nothing else: closed cases, then real models served right and wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from serving_fixture import LORA, CommittedRun, commit_run
from transformers import AutoModelForCausalLM

from lorascope.errors import StudyError
from lorascope.serving import arms
from lorascope.serving.equivalence import classification_gates, flip_rate, generation_gate
from lorascope.serving.export import write_adapter, write_base, write_merged
from lorascope.serving.reference import Generated, Judgement, OfflineModel


def passed(gates: Any) -> dict[str, bool]:
    return {gate.what: gate.passed for gate in gates}


def judgement(behind: Any, *, rounding: float = 0.0, best: float = 20.0) -> Judgement:
    behind = np.asarray(behind, dtype=float)
    return Judgement(behind, np.full(behind.shape, best), rounding)


# ------------------------------------------------------------------------------------------------------ classification


def test_equal_probabilities_pass_every_gate_with_value_zero() -> None:
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    gates = classification_gates(p, p, dtype="float32")
    assert [(g.value, g.passed, g.n) for g in gates] == [(0.0, True, 2)] * 3


@pytest.mark.parametrize(("shift", "dtype", "holds"), [
    (5e-4, "float32", True), (5e-3, "float32", False), (0.02, "bfloat16", True), (0.2, "bfloat16", False),
])  # fmt: skip
def test_a_probability_may_move_by_as_much_as_the_dtype_explains(shift: float, dtype: Any, holds: bool) -> None:
    p = np.array([[0.9, 0.1]] * 50)
    q = p.copy()
    q[7] += [-shift, shift]
    assert passed(classification_gates(p, q, dtype=dtype))["probability"] is holds


def test_a_flip_between_near_equal_classes_is_roundings_and_another_is_not() -> None:
    p, q = np.array([[0.5002, 0.4998], [0.9, 0.1]]), np.array([[0.4999, 0.5001], [0.9, 0.1]])
    assert passed(classification_gates(p, q, dtype="float32"))["decisions"]
    assert flip_rate(p, q) == 0.5
    decisions = classification_gates(p, p[:, ::-1], dtype="float32")[1]
    assert (decisions.value, decisions.passed) == (0.5, False)


def test_kl_equals_its_closed_form_and_a_certain_mistake_stays_finite() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    kl = classification_gates(p, q, dtype="bfloat16")[2]
    assert kl.value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3)) and not kl.passed
    wrong = classification_gates(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), dtype="bfloat16")
    assert all(np.isfinite(gate.value) and not gate.passed for gate in wrong)


def test_what_is_no_number_fails_with_values_that_can_be_written_down() -> None:
    p = np.array([[0.6, 0.4]] * 4)
    q = p.copy()
    q[2] = np.nan
    probability, _, kl = classification_gates(p, q, dtype="bfloat16")
    assert not probability.passed and not kl.passed
    assert "1 examples have outputs that are no numbers" in probability.detail
    json.dumps([probability.value, kl.value], allow_nan=False)


# ---------------------------------------------------------------------------------------------------------- generation


def test_the_references_own_tokens_match() -> None:
    gate = generation_gate(judgement([0.0] * 6), num_tokens=6, dtype="float32")
    assert (gate.value, gate.passed, gate.n) == (1.0, True, 6)
    assert gate.detail == "6 of 6 tokens are the reference's own choice in their context"


@pytest.mark.parametrize(("behind", "holds"), [(1e-3, True), (1e-2, False)])
def test_a_token_may_trail_by_a_ten_thousandth_of_the_best_logit_in_fp32(behind: float, holds: bool) -> None:
    gate = generation_gate(judgement([0, 0, behind, 0]), num_tokens=4, dtype="float32")
    assert (gate.value, gate.passed) == (1.0 if holds else 0.75, holds)
    assert ("1 trail it by less" in gate.detail) is holds
    assert ("1 trail it by more" in gate.detail) is not holds


def test_in_bf16_the_models_own_rounding_says_by_how_much_a_token_may_trail() -> None:
    behind = [0.0] * 90 + [0.3] * 10
    assert generation_gate(judgement(behind, rounding=0.06), num_tokens=100, dtype="bfloat16").passed
    assert not generation_gate(judgement(behind, rounding=0.04), num_tokens=100, dtype="bfloat16").passed


def test_bf16_forgives_one_token_in_a_hundred_and_not_two() -> None:
    for wrong, holds in ((1, True), (2, False)):
        found = judgement([5.0] * wrong + [0.0] * (100 - wrong), rounding=0.06)
        assert generation_gate(found, num_tokens=100, dtype="bfloat16").passed is holds


def test_missing_tokens_are_wrong_ones() -> None:
    gate = generation_gate(judgement([0.0] * 2), num_tokens=3, dtype="float32")
    assert (gate.value, gate.passed) == (2 / 3, False) and "1 are missing" in gate.detail
    nothing = generation_gate(judgement([]), num_tokens=3, dtype="bfloat16")
    assert (nothing.value, nothing.passed) == (0.0, False)


# --------------------------------------------------------------------------------------------- real models, right and wrong


@pytest.fixture
def committed(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> CommittedRun:
    return commit_run(tmp_path, tiny_checkpoints["llama"], LORA)


def written(committed: CommittedRun, root: Path, workload: Any) -> dict[str, Path]:
    run = committed.run
    return {
        "base": write_base(run, root / "base", workload=workload),
        "adapter": write_adapter(run, root / "adapter", workload=workload),
        "merged": write_merged(run, root / "merged", workload=workload),
    }


def broken(adapter: Path, to: Path, how: str) -> Path:
    """A copy of an exported adapter as a careless export would have left it."""
    shutil.copytree(adapter, to)
    config = json.loads((to / "adapter_config.json").read_text())
    state = load_file(to / "adapter_model.safetensors")
    if how == "head missing":
        state = {name: tensor for name, tensor in state.items() if "score" not in name}
        config |= {"modules_to_save": None, "task_type": None}  # peft refuses a classifier's adapter without a head
    if how == "scaling wrong":
        config["lora_alpha"] = config["lora_alpha"] / 2
    if how == "a matrix missing":
        del state[next(name for name in state if "layers.0" in name and "lora_B" in name)]
    (to / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, to / "adapter_model.safetensors", metadata={"format": "pt"})
    return to


def test_adapter_and_merged_model_answer_alike(committed: CommittedRun, tmp_path: Path) -> None:
    place = written(committed, tmp_path, "classification")
    adapted = OfflineModel(
        place["base"], workload="classification", dtype="float32", adapters={"one": place["adapter"]}
    )
    merged = OfflineModel(place["merged"], workload="classification", dtype="float32")
    reference = adapted.class_probabilities(committed.prompts, adapter="one")
    gates = classification_gates(reference, merged.class_probabilities(committed.prompts), dtype="float32")
    assert all(passed(gates).values())


@pytest.mark.parametrize("how", ["head missing", "scaling wrong", "a matrix missing"])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_broken_adapter_fails_the_gate(how: str, committed: CommittedRun, tmp_path: Path) -> None:
    place = written(committed, tmp_path, "classification")
    adapters = {"right": place["adapter"], "wrong": broken(place["adapter"], tmp_path / "broken", how)}
    right, wrong = (
        OfflineModel(place["base"], workload="classification", dtype="float32", adapters={name: path})
        .class_probabilities(committed.prompts, adapter=name)
        for name, path in adapters.items()
    )  # fmt: skip
    assert not passed(classification_gates(right, wrong, dtype="float32"))["probability"]


def test_each_adapter_of_one_model_answers_for_itself(
    tiny_checkpoints: dict[str, Path], committed: CommittedRun, tmp_path: Path
) -> None:
    other = commit_run(tmp_path / "other", tiny_checkpoints["llama"], LORA, seed=6)
    place = written(committed, tmp_path, "classification")
    second = write_adapter(other.run, tmp_path / "second", workload="classification")
    both = OfflineModel(
        place["base"],
        workload="classification",
        dtype="float32",
        adapters={"one": place["adapter"], "two": second},
    )
    prompts = committed.prompts
    found = {name: both.class_probabilities(prompts, adapter=name) for name in ("one", "two", "one")}
    assert passed(classification_gates(found["one"], found["two"], dtype="float32"))["probability"] is False
    for name, of in (("one", committed), ("two", other)):
        with torch.no_grad():
            expected = [of.in_memory(input_ids=torch.tensor([p])).logits[0].double().softmax(-1) for p in prompts]
        np.testing.assert_allclose(found[name], torch.stack(expected).numpy(), atol=1e-5)
    alone = OfflineModel(place["base"], workload="classification", dtype="float32").class_probabilities(prompts)
    np.testing.assert_allclose(both.class_probabilities(prompts), alone, atol=1e-5)


def generated_by(model: Path, prompts: Any, num_tokens: int, *, adapter: Path | None = None) -> list[list[int]]:
    """What transformers and peft generate greedily."""
    read: Any = AutoModelForCausalLM.from_pretrained(model)
    read.generation_config.eos_token_id = None
    if adapter is not None:
        read = PeftModel.from_pretrained(read, str(adapter))
    found = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        whole = read.eval().generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, do_sample=False
        )
        found.append(whole[0, len(prompt) :].tolist())
    return found


def test_what_generate_chooses_is_the_best_and_any_other_token_trails_by_its_logit(
    committed: CommittedRun, tmp_path: Path
) -> None:
    place = written(committed, tmp_path, "generation")
    prompts = committed.prompts[:10]
    outputs = generated_by(place["merged"], prompts, 6)
    model = OfflineModel(place["merged"], workload="generation", dtype="float32")
    judged = model.judge([Generated(p, None, tokens) for p, tokens in zip(prompts, outputs, strict=True)])
    assert len(judged.behind) == 60 and judged.rounding == 0
    np.testing.assert_allclose(judged.behind, 0, atol=1e-5)
    other = [*outputs[3][:2], (outputs[3][2] + 1) % 16, outputs[3][3]]  # of another length than its neighbours
    judged = model.judge(
        [Generated(prompts[0], None, outputs[0]), Generated(prompts[3], None, other), Generated(prompts[1], None, [])]
    )
    read: Any = AutoModelForCausalLM.from_pretrained(place["merged"]).eval()
    with torch.no_grad():
        logits = read(input_ids=torch.tensor([[*prompts[3], *other]])).logits[0, len(prompts[3]) - 1 : -1]
    best = logits.max(-1).values
    expected = best - logits[range(4), other]
    assert len(judged.behind) == 10
    np.testing.assert_allclose(judged.behind[6:], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(judged.best[6:], best.numpy(), atol=1e-5)


def test_rounding_is_that_of_the_logits_in_bf16_between_rivals(committed: CommittedRun, tmp_path: Path) -> None:
    merged = write_merged(committed.run, tmp_path / "merged", workload="generation", dtype="bfloat16")
    prompts = committed.prompts[:5]
    outputs = generated_by(merged, prompts, 6)
    model = OfflineModel(merged, workload="generation", dtype="bfloat16")
    found = model.judge([Generated(p, None, tokens) for p, tokens in zip(prompts, outputs, strict=True)])
    variances = []
    coarse: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).eval()
    fine: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    for prompt, tokens in zip(prompts, outputs, strict=True):
        whole = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            exact = fine(input_ids=whole).logits[0, len(prompt) - 1 : -1].double()
            error = coarse(input_ids=whole).logits[0, len(prompt) - 1 : -1].double() - exact
        variances += [error[step, exact[step].topk(8).indices].var() for step in range(6)]
    assert found.rounding == pytest.approx(float(torch.stack(variances).mean().sqrt()), rel=0.05)
    assert found.rounding > 0


def test_what_shifts_all_logits_alike_decides_nothing_and_is_no_rounding(
    committed: CommittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))

    def shifted_in_bf16(self: Any, group: Any) -> torch.Tensor:
        return exact + (1.0 if self._model.dtype == torch.bfloat16 else 0.0)

    monkeypatch.setattr(OfflineModel, "_next_logits", shifted_in_bf16)
    merged = write_merged(committed.run, tmp_path / "merged", workload="generation", dtype="bfloat16")
    model = OfflineModel(merged, workload="generation", dtype="bfloat16")
    assert model.judge([Generated([4, 5], None, [6, 7, 8])]).rounding == pytest.approx(0.0, abs=1e-6)


def test_a_token_outside_of_the_vocabulary_is_an_error(committed: CommittedRun, tmp_path: Path) -> None:
    merged = write_merged(committed.run, tmp_path / "merged", workload="generation")
    model = OfflineModel(merged, workload="generation", dtype="float32")
    with pytest.raises(IndexError, match="outside of the vocabulary"):
        model.judge([Generated([4, 5], None, [6, 100_000])])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("how", "holds"), [("right", True), ("scaling wrong", False), ("none", False)])
def test_generation_gate_tells_the_right_adapter_from_a_wrong_one(
    how: str, holds: bool, dtype: Any, committed: CommittedRun, tmp_path: Path
) -> None:
    place = written(committed, tmp_path, "generation")
    served = {
        "right": place["adapter"], "none": None, "scaling wrong": broken(place["adapter"], tmp_path / "broken", "scaling wrong")
    }[how]  # fmt: skip
    outputs = generated_by(place["base"], committed.prompts, 8, adapter=served)
    cast_to = {"workload": "generation", "dtype": dtype}
    reference = OfflineModel(
        write_base(committed.run, tmp_path / "reference", **cast_to), **cast_to,
        adapters={"one": write_adapter(committed.run, tmp_path / "one", **cast_to)},
    )  # fmt: skip
    judged = reference.judge(
        [Generated(p, "one", tokens) for p, tokens in zip(committed.prompts, outputs, strict=True)]
    )
    gate = generation_gate(judged, num_tokens=8 * len(outputs), dtype=dtype)
    assert gate.passed is holds, gate.detail


def test_a_prompt_that_ends_in_padding_is_refused(committed: CommittedRun, tmp_path: Path) -> None:
    merged = write_merged(committed.run, tmp_path / "merged", workload="classification")
    with pytest.raises(StudyError, match="prompt 1 ends in the padding token"):
        OfflineModel(merged, workload="classification", dtype="float32").class_probabilities([[5, 6], [5, 0]])


@pytest.mark.parametrize(("free", "device"), [(1000, "cuda:0"), (100, "cpu")])
def test_tokens_are_judged_on_the_processor_where_engines_leave_no_room(
    free: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2000))
    assert arms._device_with_room("cuda:0", tmp_path) == device
    assert arms._device_with_room("cpu", tmp_path) == "cpu"
