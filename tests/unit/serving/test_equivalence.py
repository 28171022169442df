"""The gates let rounding through and nothing else: closed cases, then real models served right and wrong."""

from __future__ import annotations

import json
import shutil
import sys
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
from lorascope.serving.engines import EngineProcess
from lorascope.serving.equivalence import classification_gates, generation_gate
from lorascope.serving.exchange import EngineConfig, Request
from lorascope.serving.export import write_adapter, write_base, write_merged
from lorascope.serving.reference import Classified, Generated, Judgement, OfflineModel


def passed(gates: Any) -> dict[str, bool]:
    return {gate.what: gate.passed for gate in gates}


def judgement(behind: Any, *, rounding: float = 0.0, best: float = 20.0) -> Judgement:
    behind = np.asarray(behind, dtype=float)
    return Judgement(behind, np.full(behind.shape, best), rounding)


# ------------------------------------------------------------------------------------------------------ classification


def softmax(logits: Any) -> np.ndarray:
    powers = np.exp(np.asarray(logits, dtype=float))
    return powers / powers.sum(axis=-1, keepdims=True)


def two_classes(log_odds: Any, *, errors: Any = 0.0) -> Classified:
    """The reference's probabilities. errors: by how much rounding moves each example's log-odds."""
    log_odds = np.asarray(log_odds, dtype=float)
    exact, rounded = (softmax(np.stack([z, np.zeros_like(z)], axis=-1)) for z in (log_odds, log_odds + errors))
    return Classified(exact, rounded)


def served_at(log_odds: Any) -> np.ndarray:
    return two_classes(log_odds).exact


def alternating(n: int, size: float) -> np.ndarray:
    """Errors of standard deviation `size`."""
    return size * np.where(np.arange(n) % 2, 1.0, -1.0)


def test_equal_probabilities_pass_every_gate_with_value_zero() -> None:
    reference = two_classes([2.0, -1.0])
    gates = classification_gates(reference, reference.exact, dtype="float32")
    assert [(g.value, g.passed, g.n) for g in gates] == [(0.0, True, 2)] * 3


@pytest.mark.parametrize("log_odds", [0.0, 3.0, -20.0])
@pytest.mark.parametrize(("moved", "holds"), [(3e-3, True), (5e-3, False)])
def test_in_fp32_every_log_odds_has_to_agree_however_sure_the_model_is(
    log_odds: float, moved: float, holds: bool
) -> None:
    z = np.full(200, log_odds)
    q = z.copy()
    q[7] += moved
    gate = classification_gates(two_classes(z), served_at(q), dtype="float32")[0]
    assert gate.passed is holds
    assert (gate.value, gate.tolerance, gate.n) == (pytest.approx(moved, rel=1e-3), 4e-3, 200)


@pytest.mark.parametrize(("rounding", "holds"), [(0.051, True), (0.049, False)])
def test_in_bf16_rounding_says_by_how_much_log_odds_may_differ(rounding: float, holds: bool) -> None:
    z = np.linspace(-3, 3, 50)
    reference = two_classes(z, errors=alternating(50, rounding))
    gate = classification_gates(reference, served_at(z + alternating(50, 0.4)), dtype="bfloat16")[0]
    assert gate.passed is holds
    assert (gate.value, gate.tolerance) == (pytest.approx(0.4), pytest.approx(8 * rounding))
    assert f"bfloat16 alone moves one of this model by {rounding:.2g}" in gate.detail


def test_a_model_that_rounding_leaves_alone_is_held_to_what_fp32_explains() -> None:
    z = np.linspace(-3, 3, 50)
    for moved, holds in ((3e-3, True), (5e-3, False)):
        gates = classification_gates(two_classes(z), served_at(z + moved), dtype="bfloat16")
        assert gates[0].passed is holds


@pytest.mark.parametrize(("n", "beyond", "holds"), [
    (20, 1, True), (20, 2, False), (100, 1, True), (100, 2, False), (300, 3, True), (300, 4, False),
])  # fmt: skip
def test_bf16_forgives_one_log_odds_in_a_hundred_and_one_of_fewer(n: int, beyond: int, holds: bool) -> None:
    z = np.zeros(n)
    q = z.copy()
    q[:beyond] = 0.9
    gate = classification_gates(two_classes(z, errors=alternating(n, 0.1)), served_at(q), dtype="bfloat16")[0]
    assert gate.passed is holds
    assert gate.detail.startswith(f"{n - beyond} of {n} log-odds differ by no more")


def test_each_class_is_compared_with_the_best_one() -> None:
    logits = np.array([[1.0, 3.0, 0.0], [4.0, 1.0, 2.0]] * 10)
    reference = Classified(softmax(logits), softmax(logits + 7))
    gate = classification_gates(reference, softmax(logits), dtype="bfloat16")[0]
    assert (gate.tolerance, gate.n) == (4e-3, 40)
    moved = logits + np.array([0.0, 0.0, 0.02])
    gate = classification_gates(reference, softmax(moved), dtype="float32")[0]
    assert gate.value == pytest.approx(0.02) and gate.detail.startswith("20 of 40 log-odds")


def test_a_flip_that_the_bound_covers_is_roundings_and_another_is_not() -> None:
    z = np.array([0.1, *np.full(49, 2.0)])
    reference = two_classes(z, errors=alternating(50, 0.05))
    near, far = z.copy(), z.copy()
    near[0], far[1] = -0.05, -2.0
    for served, value in ((near, 0.0), (far, 0.02)):
        decisions = classification_gates(reference, served_at(served), dtype="bfloat16")[1]
        assert (decisions.value, decisions.passed) == (value, value == 0)
        assert decisions.detail.startswith("1 of 50 decisions differ") and "of the 49 that" in decisions.detail


def test_kl_equals_its_closed_form_and_may_be_16_times_the_references() -> None:
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    kl = classification_gates(Classified(p, p), q, dtype="bfloat16")[2]
    assert kl.value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3)) and not kl.passed
    assert kl.tolerance == 1e-5
    reference = two_classes(np.zeros(200), errors=alternating(200, 0.05))
    for size, holds in ((0.19, True), (0.21, False)):
        assert (
            passed(classification_gates(reference, served_at(alternating(200, size)), dtype="bfloat16"))["KL"] is holds
        )


def test_one_adapter_of_a_hundred_that_is_wrong_is_seen_by_kl() -> None:
    z = np.full(400, 1.0)
    q = z.copy()
    q[:4] = 3.0
    found = passed(classification_gates(two_classes(z, errors=alternating(400, 0.02)), served_at(q), dtype="bfloat16"))
    assert found == {"log-odds": True, "decisions": True, "KL": False}


def test_certain_mistakes_and_nan_fail_with_values_json_can_hold() -> None:
    sure = Classified(np.array([[1.0, 0.0]] * 4), np.array([[1.0, 0.0]] * 4))
    wrong = classification_gates(sure, sure.exact[:, ::-1], dtype="bfloat16")
    assert not any(gate.passed for gate in wrong)
    q = np.array([[0.6, 0.4]] * 4)
    q[2] = np.nan
    nothing = classification_gates(two_classes(np.full(4, np.log(1.5))), q, dtype="bfloat16")
    assert not nothing[0].passed and not nothing[2].passed
    assert "1 examples have outputs that are no numbers" in nothing[0].detail
    json.dumps([gate.value for gate in (*wrong, *nothing)], allow_nan=False)


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


def test_in_bf16_rounding_says_by_how_much_a_token_may_trail() -> None:
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
    reference = adapted.classify([(prompt, "one") for prompt in committed.prompts])
    gates = classification_gates(reference, merged.class_probabilities(committed.prompts), dtype="float32")
    assert all(passed(gates).values())


def classified(answers: Any) -> Classified:
    return Classified(answers, answers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_classification_gates_tell_the_right_adapter_from_a_wrong_one(
    dtype: Any, committed: CommittedRun, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    cast_to = {"workload": "classification", "dtype": dtype}
    base = write_base(committed.run, tmp_path / "base", **cast_to)
    right = write_adapter(committed.run, tmp_path / "right", **cast_to)
    other = commit_run(tmp_path / "other", tiny_checkpoints["llama"], LORA, seed=6)
    wrong = {how: broken(right, tmp_path / how, how) for how in ("scaling wrong", "a matrix missing")}
    wrong["another run's"] = write_adapter(other.run, tmp_path / "another", **cast_to)
    adapters = {"right": right} | wrong
    prompts = committed.prompts
    reference = OfflineModel(base, **cast_to, adapters={"one": right}).classify([(prompt, "one") for prompt in prompts])
    config = EngineConfig("classification", base, adapters, dtype, "cpu", max_length=64, max_batch=8, max_rank=8)
    with EngineProcess("transformers", config, python=Path(sys.executable), directory=tmp_path / "engine") as engine:
        for adapter in (*adapters, None):
            requests = [Request(index, prompt, adapter) for index, prompt in enumerate(prompts)]
            batches = [requests[start : start + 8] for start in range(0, len(requests), 8)]
            served = np.asarray([one.output for one in engine.serve(batches, keep_outputs=True).requests])
            gates = classification_gates(reference, served, dtype=dtype)
            assert passed(gates)["log-odds"] is (adapter == "right"), (adapter, gates)
            assert all(gate.passed for gate in gates) is (adapter == "right"), (adapter, gates)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_is_served_with_another_head_fails_the_gate(
    dtype: Any, committed: CommittedRun, tmp_path: Path
) -> None:
    cast_to = {"workload": "classification", "dtype": dtype}
    base = write_base(committed.run, tmp_path / "base", **cast_to)
    right = write_adapter(committed.run, tmp_path / "right", **cast_to)
    headless = broken(right, tmp_path / "broken", "head missing")
    reference = OfflineModel(base, **cast_to, adapters={"one": right}).classify(
        [(prompt, "one") for prompt in committed.prompts]
    )
    served = OfflineModel(base, **cast_to, adapters={"one": headless})
    answers = served.class_probabilities(committed.prompts, adapter="one")
    assert not passed(classification_gates(reference, answers, dtype=dtype))["log-odds"]


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
    assert passed(classification_gates(classified(found["one"]), found["two"], dtype="float32"))["log-odds"] is False
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


def test_a_token_trails_the_best_one_by_its_logit(committed: CommittedRun, tmp_path: Path) -> None:
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


def test_classes_do_not_depend_on_the_order_of_prompts(committed: CommittedRun, tmp_path: Path) -> None:
    cast_to: Any = {"workload": "classification", "dtype": "bfloat16"}
    base = write_base(committed.run, tmp_path / "base", **cast_to)
    adapters = {"one": write_adapter(committed.run, tmp_path / "one", **cast_to)}
    asked = [(prompt, "one" if turn % 3 else None) for turn, prompt in enumerate(committed.prompts)]
    found = OfflineModel(base, **cast_to, adapters=adapters).classify(asked)
    by_dtype: dict[Any, Any] = {"bfloat16": found.rounded, "float32": found.exact}
    for dtype, answers in by_dtype.items():
        alone = OfflineModel(base, workload="classification", dtype=dtype, adapters=adapters)
        expected = np.concatenate([alone.class_probabilities([prompt], adapter=adapter) for prompt, adapter in asked])
        np.testing.assert_allclose(answers, expected, atol=1e-5 if dtype == "float32" else 0.02)
    assert 0 < np.abs(found.exact - found.rounded).max() < 0.05


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
