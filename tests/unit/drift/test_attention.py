"""Attention patterns: the distributions that transformers computes eagerly, summarised, and the model left alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import nn
from transformers import AutoTokenizer, MistralConfig, MistralForSequenceClassification

from lorascope.data.columns import ColumnStore
from lorascope.drift import attention
from lorascope.drift.adapters import stack_adapters
from lorascope.drift.attention import AttentionPatterns, compare_attention
from lorascope.errors import StudyError
from lorascope.methods.lora import LoRA
from lorascope.models.blocks import attention_modules, find_blocks
from lorascope.models.loading import BaseModel
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.training.preparation import prepared_model

TASK: dict[str, Any] = {"reading": tiny_reading()}
FIELDS = ("entropy", "base_entropy", "total_variation", "jensen_shannon")


@pytest.fixture(scope="module")
def bases(tiny_checkpoints: dict[str, Path]) -> dict[str, Any]:
    """Each architecture's model, and one whose attention has a window."""
    models: dict[str, Any] = {name: tiny_base(tiny_checkpoints[name]).model for name in ARCHITECTURES}
    shape = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    torch.manual_seed(0)
    config = MistralConfig(
        **shape, num_key_value_heads=2, intermediate_size=48, sliding_window=3, initializer_range=0.2
    )
    return {**models, "mistral": MistralForSequenceClassification(config).eval()}


@pytest.fixture(scope="module")
def columns(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ColumnStore:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["bert"])
    return tiny_columns(tmp_path_factory.mktemp("probe") / "columns", tiny_examples(10), tokenizer)


@pytest.fixture(params=(*ARCHITECTURES, "mistral"))
def base(request: pytest.FixtureRequest, bases: dict[str, Any]) -> Any:
    return bases[request.param]


def moved(model: Any, *, seed: int = 0) -> Any:
    """The model with other queries and keys."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if any(part in name for part in ("query", "key", "q_proj", "k_proj")):
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
    return other


def eager_weights(model: Any, columns: ColumnStore) -> list[np.ndarray]:
    """transformers' own attention weights of each example alone, unpadded: float64 [layers, heads, query, key]."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    found = []
    for row in range(len(columns)):
        batch = tiny_reading().collate(columns.gather([row]), length=int(columns.lengths[row]))
        inputs = {k: torch.from_numpy(v) for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            found.append(torch.cat(eager(**inputs, output_attentions=True).attentions).double().numpy())
    return found


def expected_patterns(base: Any, model: Any, columns: ColumnStore) -> dict[str, np.ndarray]:
    examples = []
    for q, p in zip(eager_weights(base, columns), eager_weights(model, columns), strict=True):
        divergence = jensenshannon(p, q, axis=-1) ** 2
        entropies = [-(w * np.log(np.where(w > 0, w, 1))).sum(-1) for w in (p, q)]
        examples.append([each.mean(-1) for each in (*entropies, np.abs(p - q).sum(-1) / 2, divergence)])
    return dict(zip(FIELDS, np.mean(examples, axis=0), strict=True))


def assert_equal(found: AttentionPatterns, expected: dict[str, np.ndarray]) -> None:
    for field in FIELDS:
        np.testing.assert_allclose(getattr(found, field), expected[field], rtol=1e-3, atol=2e-6, err_msg=field)


def test_patterns_are_those_of_eager_attention(base: Any, columns: ColumnStore) -> None:
    model = moved(base)
    expected = expected_patterns(base, model, columns)
    assert expected["jensen_shannon"].min() > 1e-3
    (found,) = compare_attention(base, model, columns, **TASK)
    assert found.num_examples == 10 and found.entropy.shape == (2, 4)
    assert_equal(found, expected)


def test_patterns_do_not_depend_on_the_batches(
    base: Any, columns: ColumnStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (together,) = compare_attention(base, moved(base), columns, **TASK)
    monkeypatch.setattr(attention, "_WEIGHTS_A_BATCH", {"cpu": 1})
    (alone,) = compare_attention(base, moved(base), columns, **TASK)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(together, field), getattr(alone, field), rtol=1e-4, atol=1e-6)


def test_a_model_has_no_distance_to_itself(base: Any, columns: ColumnStore) -> None:
    (found,) = compare_attention(base, base, columns, **TASK)
    assert not found.total_variation.any() and not found.jensen_shannon.any()
    np.testing.assert_array_equal(found.entropy, found.base_entropy)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_indifferent_heads_have_the_entropy_of_the_uniform_distribution(
    architecture: str, precision: str, bases: dict[str, Any], columns: ColumnStore
) -> None:
    """Summaries are fp32 whatever the model computes in."""
    model = copy.deepcopy(bases[architecture])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "q_proj" in name:
                parameter.zero_()
    (found,) = compare_attention(model, model, columns, reading=tiny_reading(precision=precision))
    seen = [np.arange(1, n + 1) if architecture == "llama" else np.full(n, n) for n in columns.lengths]
    np.testing.assert_allclose(found.entropy, np.mean([np.log(keys).mean() for keys in seen]), rtol=1e-5)


def test_reading_leaves_the_models_as_they_were(base: Any, columns: ColumnStore) -> None:
    model = copy.deepcopy(base).train()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    compare_attention(base, model, columns, **TASK)
    assert all(module.training for module in model.modules()) and not base.training
    assert base.config._attn_implementation == model.config._attn_implementation == "sdpa"
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert not any(attention._READER in vars(module) for module in (*model.modules(), *base.modules()))


def test_models_are_restored_after_an_exception(base: Any, columns: ColumnStore) -> None:
    model = copy.deepcopy(base).train()

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    handle = find_blocks(model).blocks[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        compare_attention(base, model, columns, **TASK)
    handle.remove()
    assert model.config._attn_implementation == "sdpa" and model.training
    assert not any(attention._READER in vars(module) for module in model.modules())


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_runs_together_have_the_patterns_of_each_alone(
    architecture: str, tiny_checkpoints: dict[str, Path], columns: ColumnStore, tmp_path: Path
) -> None:
    base: BaseModel = tiny_base(tiny_checkpoints[architecture])
    exports = []
    for seed in (0, 1, 2):
        method = LoRA(LoraSpec.model_validate({"name": "lora", "kind": "lora", "rank": seed + 1}))
        model, _ = prepared_model(base, [method], [Seeds.model_validate(seed)])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
        method.export(model, tmp_path / str(seed), base=base)
        exports.append((method, tmp_path / str(seed)))
    stacked = stack_adapters(base, [directory for _, directory in exports])
    together = compare_attention(base.model, stacked, columns, **TASK, runs=3)
    for found, (method, directory) in zip(together, exports, strict=True):
        (alone,) = compare_attention(base.model, method.reload(directory, base=base), columns, **TASK)
        assert alone.jensen_shannon.min() > 1e-5
        assert_equal(found, {field: getattr(alone, field) for field in FIELDS})


def test_models_of_other_shapes_and_broken_models_are_refused(bases: dict[str, Any], columns: ColumnStore) -> None:
    other = copy.deepcopy(bases["llama"])
    other.config.num_attention_heads = 8
    with pytest.raises(StudyError, match=r"2 and 2 layers, of 4 and 8 heads, cannot be compared"):
        compare_attention(bases["llama"], other, columns, **TASK)
    broken = copy.deepcopy(bases["llama"])
    next(find_blocks(broken).blocks[0].parameters()).data.fill_(float("nan"))
    with pytest.raises(StudyError, match="attention patterns of lora are not finite"):
        compare_attention(bases["llama"], broken, columns, **TASK, name="lora")


def test_attention_that_cannot_be_told_is_refused(bases: dict[str, Any], columns: ColumnStore) -> None:
    model = copy.deepcopy(bases["bert"])
    find_blocks(model).blocks[0].more = nn.Module()
    find_blocks(model).blocks[0].more.is_causal = False
    assert len(attention_modules(find_blocks(bases["bert"]))) == 2
    with pytest.raises(StudyError, match="2 of its modules say whether they are causal"):
        compare_attention(bases["bert"], model, columns, **TASK)
