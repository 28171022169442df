"""The gates let rounding through and nothing else: closed cases, then real models served right and wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from serving_fixture import LORA, CommittedRun, commit_run

from lorascope.errors import StudyError
from lorascope.serving.equivalence import classification_gates, comparable_tokens, flip_rate, generation_gate
from lorascope.serving.export import write_adapter, write_base, write_merged
from lorascope.serving.reference import Continuations, OfflineModel


def passed(gates: Any) -> dict[str, bool]:
    return {gate.what: gate.passed for gate in gates}


def continuations(tokens: Any, *, margins: Any = 5.0, best: float = 20.0) -> Continuations:
    tokens = np.asarray(tokens)
    margins = np.broadcast_to(np.asarray(margins, dtype=float), tokens.shape)
    return Continuations(tokens, margins, np.full(tokens.shape, best))


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


def test_equal_tokens_match() -> None:
    gate = generation_gate(continuations([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 5, 6]], dtype="float32")
    assert (gate.value, gate.passed, gate.n) == (1.0, True, 6)


def test_one_wrong_token_of_a_clear_lead_fails_in_fp32_and_is_named() -> None:
    gate = generation_gate(continuations([[1, 2, 3], [4, 5, 6]]), [[1, 2, 3], [4, 9, 6]], dtype="float32")
    assert (gate.value, gate.passed) == (4 / 6, False)
    assert "prompt 1, token 1: 9 for 5, which leads by a logit difference of 5" in gate.detail


def test_what_follows_a_near_tie_is_not_compared() -> None:
    reference = continuations([[1, 2, 3, 4]], margins=[[5, 5, 1e-5, 5]])
    assert comparable_tokens(reference, dtype="float32").tolist() == [[True, True, False, False]]
    assert generation_gate(reference, [[1, 2, 8, 8]], dtype="float32").passed
    assert not generation_gate(reference, [[1, 8, 3, 4]], dtype="float32").passed


def test_an_output_that_ends_early_fails() -> None:
    gate = generation_gate(continuations([[1, 2, 3]]), [[1, 2]], dtype="float32")
    assert not gate.passed and "None for 3" in gate.detail


def test_nothing_but_ties_is_no_evidence() -> None:
    gate = generation_gate(continuations([[1, 2, 3]] * 9, margins=0.0), [[1, 2, 3]] * 9, dtype="float32")
    assert (gate.n, gate.passed) == (0, False)
    assert "no evidence" in gate.detail


def test_bf16_forgives_one_prompt_in_a_hundred_and_not_ten() -> None:
    reference = continuations(np.ones((100, 4), dtype=int))
    right, wrong = [1, 1, 1, 1], [1, 2, 2, 2]
    assert generation_gate(reference, [wrong] + [right] * 99, dtype="bfloat16").passed
    assert not generation_gate(reference, [wrong] * 10 + [right] * 90, dtype="bfloat16").passed


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


def test_greedy_continuations_are_those_of_generate_and_their_margins_those_of_the_logits(
    committed: CommittedRun, tmp_path: Path
) -> None:
    place = written(committed, tmp_path, "generation")
    model = OfflineModel(place["merged"], workload="generation", dtype="float32")
    found = model.greedy(committed.prompts, num_tokens=6)
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(place["merged"]).eval()
    read.generation_config.eos_token_id = None
    for row, prompt in enumerate(committed.prompts[:10]):
        tokens = torch.tensor([prompt])
        whole = read.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False)
        assert whole[0, len(prompt) :].tolist() == found.tokens[row].tolist()
        with torch.no_grad():
            top = read(input_ids=whole).logits[0, len(prompt) - 1 : -1].topk(2).values
        np.testing.assert_allclose(found.margins[row], (top[:, 0] - top[:, 1]).numpy(), atol=1e-4)
        np.testing.assert_allclose(found.best[row], top[:, 0].numpy(), atol=1e-4)


@pytest.mark.parametrize(("how", "holds"), [("right", True), ("scaling wrong", False)])
def test_generation_gate_tells_the_right_adapter_from_a_wrong_one(
    how: str, holds: bool, committed: CommittedRun, tmp_path: Path
) -> None:
    place = written(committed, tmp_path, "generation")
    adapter = place["adapter"] if how == "right" else broken(place["adapter"], tmp_path / "broken", how)
    served = OfflineModel(place["base"], workload="generation", dtype="float32", adapters={"one": adapter})
    reference = OfflineModel(place["merged"], workload="generation", dtype="float32")
    outputs = served.greedy(committed.prompts, num_tokens=8, adapter="one").tokens.tolist()
    gate = generation_gate(reference.greedy(committed.prompts, num_tokens=8), outputs, dtype="float32")
    assert gate.passed is holds, gate.detail
    assert gate.n > 100


def test_a_prompt_that_ends_in_padding_is_refused(committed: CommittedRun, tmp_path: Path) -> None:
    merged = write_merged(committed.run, tmp_path / "merged", workload="classification")
    with pytest.raises(StudyError, match="prompt 1 ends in the padding token"):
        OfflineModel(merged, workload="classification", dtype="float32").class_probabilities([[5, 6], [5, 0]])
