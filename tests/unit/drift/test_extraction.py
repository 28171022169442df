"""Features of probe examples: what the hooks read is what transformers computes, whatever the batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, tiny_base, tiny_columns, tiny_examples, tiny_reading
from torch import nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model, GPT2Config, GPT2Model

from lorascope.data.columns import ColumnStore
from lorascope.drift.adapters import read_adapter, stack_adapters
from lorascope.drift.extraction import extract, extract_runs
from lorascope.drift.probe import TokenSample, choose_tokens
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.methods.base import NotStackable
from lorascope.methods.lora import LoRA
from lorascope.models.blocks import FEATURE_SITES, check_comparable, find_blocks
from lorascope.models.loading import BaseModel
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import Seeds
from lorascope.training.preparation import prepared_model

ROUNDING = {"rtol": 2e-5, "atol": 2e-5}
SEEDS = Seeds.model_validate(3)
TASK: dict[str, Any] = {"reading": tiny_reading()}


@pytest.fixture(scope="module")
def bases(tiny_checkpoints: dict[str, Path]) -> dict[str, BaseModel]:
    return {architecture: tiny_base(tiny_checkpoints[architecture]) for architecture in ARCHITECTURES}


@pytest.fixture(scope="module")
def probes(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ColumnStore]:
    """architecture -> 24 examples in its tokens."""
    root = tmp_path_factory.mktemp("columns")
    return {
        name: tiny_columns(root / name, tiny_examples(24), AutoTokenizer.from_pretrained(directory))
        for name, directory in tiny_checkpoints.items()
    }


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str, bases: dict[str, BaseModel]) -> BaseModel:
    return bases[architecture]


@pytest.fixture
def columns(architecture: str, probes: dict[str, ColumnStore]) -> ColumnStore:
    return probes[architecture]


def hidden_states(model: Any, columns: ColumnStore) -> list[list[torch.Tensor]]:
    """transformers' own hidden states, one example at a time, unpadded: [example][layer], each [tokens, hidden]."""
    found = []
    for row in range(len(columns)):
        batch = tiny_reading().collate(columns.gather([row]), length=int(columns.lengths[row]))
        inputs = {name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"}
        with torch.no_grad():
            found.append([state[0] for state in model(**inputs, output_hidden_states=True).hidden_states])
    return found


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for site in first:
        torch.testing.assert_close(first[site], second[site], **(tolerance or ROUNDING), msg=lambda m: f"{site}: {m}")  # noqa: B023


# ------------------------------------------------------------------------------------------------------------- sites


def test_residual_features_are_the_pooled_hidden_states_of_transformers(base: BaseModel, columns: ColumnStore) -> None:
    states = hidden_states(base.model, columns)
    norm = base.model.base_model.norm if base.model.config.model_type == "llama" else None
    features = extract(base.model, columns, **TASK, sites=["residual"])["residual"]
    assert features.shape == (3, 24, 32) and features.dtype == torch.float32
    last = extract(base.model, columns, **TASK, sites=["residual"], pooling="decision-token")["residual"]
    for layer in (0, 1):
        torch.testing.assert_close(features[layer], torch.stack([s[layer].mean(0) for s in states]), **ROUNDING)
    for row, state in enumerate(states):
        if norm is None:
            torch.testing.assert_close(features[2, row], state[2].mean(0), **ROUNDING)
            torch.testing.assert_close(last[2, row], state[2][0], **ROUNDING)
        else:  # transformers' last state is after the final norm, which is no block's output
            torch.testing.assert_close(norm(last[2, row]), state[2][-1], **ROUNDING)
            assert not torch.allclose(last[2, row], state[2][-1], rtol=0.01)


def test_llama_blocks_add_their_attention_and_mlp_features(
    bases: dict[str, BaseModel], probes: dict[str, ColumnStore]
) -> None:
    for pooling in ("mean", "decision-token"):
        found = extract(bases["llama"].model, probes["llama"], **TASK, pooling=pooling)
        residual = found["residual"]
        torch.testing.assert_close(residual[1:], residual[:-1] + found["attention"] + found["mlp"], **ROUNDING)


@pytest.mark.parametrize("architecture", ["bert", "roberta"], indirect=True)
def test_bert_blocks_normalise_after_adding_attention_and_mlp(base: BaseModel, columns: ColumnStore) -> None:
    """By token, where normalising and pooling commute."""
    everything = choose_tokens(columns.lengths, 10**6, seed=0)
    found = extract(base.model, columns, **TASK, pooling=everything)
    for layer, block in enumerate(find_blocks(base.model).blocks):
        added = block.attention.output.LayerNorm(found["residual"][layer] + found["attention"][layer])
        out = block.output.LayerNorm(added + found["mlp"][layer])
        torch.testing.assert_close(found["residual"][layer + 1], out, **ROUNDING)


def test_other_models_are_read_by_their_list_of_blocks(probes: dict[str, ColumnStore]) -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    model.config.model_type = "mine"
    features = extract(model, probes["llama"], **TASK)
    states = hidden_states(model, probes["llama"])
    for layer in (0, 1):
        expected = torch.stack([state[layer].mean(0) for state in states])
        torch.testing.assert_close(features["residual"][layer], expected, **ROUNDING)
    summed = features["residual"][:-1] + features["attention"] + features["mlp"]
    torch.testing.assert_close(features["residual"][1:], summed, **ROUNDING)
    alone = extract(model, probes["llama"], **TASK, sites=["mlp"])
    same(alone, {"mlp": features["mlp"]})


def test_blocks_that_add_something_else_are_refused(probes: dict[str, ColumnStore]) -> None:
    """Gemma 2 normalises what its modules give before adding it."""
    shape = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    torch.manual_seed(0)
    model = Gemma2Model(Gemma2Config(**shape, num_key_value_heads=2, intermediate_size=48, pad_token_id=0)).eval()
    model.config.model_type = "mine"
    with pytest.raises(StudyError, match="mine model add something else to the residual stream"):
        extract(model, probes["llama"], **TASK, sites=["attention"])
    assert extract(model, probes["llama"], **TASK, sites=["residual"])["residual"].shape == (3, 24, 32)


def test_models_without_one_list_of_blocks_are_refused(probes: dict[str, ColumnStore]) -> None:
    model = GPT2Model(GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=4))
    model.config.model_type, model.config.n_layer = "mine", 3
    with pytest.raises(StudyError, match="the blocks of a mine model cannot be told: it has no such list"):
        extract(model, probes["llama"], **TASK)
    model.config.n_layer = 2
    model.more = copy.deepcopy(model.h)
    with pytest.raises(StudyError, match=r"it has 2 lists of blocks \(h, more\)"):
        extract(model, probes["llama"], **TASK)


def test_an_unknown_site_is_named_with_its_nearest_match(base: BaseModel, columns: ColumnStore) -> None:
    with pytest.raises(StudyError) as error:
        extract(base.model, columns, **TASK, sites=["residual", "atention"])
    assert str(error.value).startswith("no features are called `atention`: did you mean `attention`?")
    assert "residual (the residual stream" in str(error.value)


# ----------------------------------------------------------------------------------------------------------- pooling


def test_features_do_not_depend_on_padding_or_batches(base: BaseModel, columns: ColumnStore) -> None:
    tokens = choose_tokens(columns.lengths, 40, seed=1)
    for pooling in ("mean", "decision-token", tokens):
        together = extract(base.model, columns, **TASK, pooling=pooling)
        one_by_one = extract(base.model, columns, **TASK, pooling=pooling, max_tokens=1)
        pairs = extract(base.model, columns, **TASK, pooling=pooling, max_tokens=32)
        same(together, one_by_one)
        same(together, pairs)


def test_features_follow_the_order_of_the_examples(base: BaseModel, columns: ColumnStore) -> None:
    order = np.random.default_rng(0).permutation(len(columns))
    plain, shuffled = extract(base.model, columns, **TASK), extract(base.model, columns.subset(order), **TASK)
    same({site: tensor[:, order] for site, tensor in plain.items()}, shuffled)


def test_token_features_are_those_of_the_chosen_tokens_in_order(base: BaseModel, columns: ColumnStore) -> None:
    states = hidden_states(base.model, columns)
    tokens = choose_tokens(columns.lengths, 30, seed=4)
    found = extract(base.model, columns, **TASK, sites=["residual"], pooling=tokens, max_tokens=50)["residual"]
    expected = [
        states[example][1][position] for example, position in zip(tokens.examples, tokens.positions, strict=True)
    ]
    torch.testing.assert_close(found[1], torch.stack(expected), **ROUNDING)


def test_the_mean_of_all_token_features_is_the_mean_feature(base: BaseModel, columns: ColumnStore) -> None:
    tokens = choose_tokens(columns.lengths, 10**6, seed=0)
    by_token, means = extract(base.model, columns, **TASK, pooling=tokens), extract(base.model, columns, **TASK)
    for site in means:
        pooled = [by_token[site][:, tokens.examples == row].mean(1) for row in range(len(columns))]
        torch.testing.assert_close(torch.stack(pooled, dim=1), means[site], **ROUNDING)


def test_decoders_decide_on_the_last_token_and_encoders_on_the_first(base: BaseModel, columns: ColumnStore) -> None:
    decides_last = base.model.config.model_type == "llama"
    positions = columns.lengths - 1 if decides_last else np.zeros_like(columns.lengths)
    tokens = TokenSample(np.arange(len(columns)), positions)
    decision = extract(base.model, columns, **TASK, pooling="decision-token")
    same(decision, extract(base.model, columns, **TASK, pooling=tokens))


# ------------------------------------------------------------------------------------------- the model is left alone


def all_hooks(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(*module._forward_hooks.values(), *module._forward_pre_hooks.values()) for module in model.modules()]


def test_extraction_leaves_a_model_in_training_as_it_was(base: BaseModel, columns: ColumnStore) -> None:
    model, _ = prepared_model(base, [LoRA(lora())], [SEEDS])
    model.train()
    one = LoRA(lora()).view(model, 0)
    find_blocks(one).blocks[1].eval()
    modes, hooks = [module.training for module in one.modules()], all_hooks(one)
    implementation, state = one.config._attn_implementation, torch.random.get_rng_state()
    extract(one, columns, **TASK)
    assert [module.training for module in one.modules()] == modes and any(modes) and not all(modes)
    assert all_hooks(one) == hooks
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.config._attn_implementation == implementation


def test_hooks_and_modes_are_restored_after_an_exception(base: BaseModel, columns: ColumnStore) -> None:
    model = copy.deepcopy(base.model).train()
    hooks = all_hooks(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    last = find_blocks(model).blocks[-1]
    handle = last.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        extract(model, columns, **TASK)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert all_hooks(model) == hooks


def test_features_of_a_fresh_adapter_are_the_bases(base: BaseModel, columns: ColumnStore) -> None:
    """Dropout is on in the model, and off while it is read."""
    model, _ = prepared_model(base, [LoRA(lora(dropout=0.5))], [SEEDS])
    model.train()
    same(extract(model, columns, **TASK), extract(base.model, columns, **TASK), rtol=0, atol=1e-6)


def test_broken_features_name_the_run_the_site_and_the_first_layer(base: BaseModel, columns: ColumnStore) -> None:
    model = copy.deepcopy(base.model)
    blocks = find_blocks(model)
    next(blocks.blocks[1].parameters()).data.fill_(float("nan"))
    with pytest.raises(
        StudyError, match=r"features of lora, seed 3 are not finite: residual, layer 2 \(24 of 24 rows\)"
    ):
        extract(model, columns, **TASK, name="lora, seed 3")


def test_bf16_features_are_fp32_tensors_near_the_fp32_features(base: BaseModel, columns: ColumnStore) -> None:
    exact, rounded = (extract(base.model, columns, reading=tiny_reading(precision=p)) for p in ("fp32", "bf16"))
    for site in exact:
        assert rounded[site].dtype == torch.float32
        difference = (rounded[site] - exact[site]).norm() / exact[site].norm()
        assert 1e-5 < difference < 0.03


# ------------------------------------------------------------------------------------------------- runs of one base


def lora(**changes: Any) -> LoraSpec:
    return LoraSpec.model_validate({"name": "lora", "kind": "lora", "rank": 4, "alpha": 8, **changes})


def export_run(base: BaseModel, spec: LoraSpec, directory: Path, *, seed: int) -> Path:
    """A run with random weights in the place of trained ones."""
    method = LoRA(spec)
    model, _ = prepared_model(base, [method], [Seeds.model_validate(seed)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    method.export(model, directory, base=base)
    return directory


def extract_gang(base: BaseModel, exports: Mapping[str, Path], columns: ColumnStore, *, pooling: Any = "mean") -> Any:
    """Run's name -> its features, as an arm reads them: one forward pass a batch for all."""
    found = extract_runs(
        stack_adapters(base, list(exports.values())), columns, **TASK, sites=tuple(FEATURE_SITES),
        pooling=pooling, names=list(exports), max_tokens=200,
    )  # fmt: skip
    return dict(zip(exports, found, strict=True))


def test_a_gang_of_exports_has_the_features_of_each_reloaded_alone(
    base: BaseModel, columns: ColumnStore, tmp_path: Path
) -> None:
    """Of different ranks, alphas and sites."""
    specs = [lora(), lora(rank=1, alpha=2), lora(rank=6, sites=["all-linear"], dropout=0.3), lora(sites=["mlp-up"])]
    exports = {f"run {k}": export_run(base, spec, tmp_path / str(k), seed=k) for k, spec in enumerate(specs)}
    tokens = choose_tokens(columns.lengths, 40, seed=1)
    plain = extract(base.model, columns, **TASK)
    for pooling in ("mean", "decision-token", tokens):
        together = extract_gang(base, exports, columns, pooling=pooling)
        assert list(together) == list(exports)
        for spec, (name, directory) in zip(specs, exports.items(), strict=True):
            reloaded = LoRA(spec).reload(directory, base=base)
            alone = extract(reloaded, columns, **TASK, pooling=pooling)
            same(together[name], alone)
            if pooling == "mean":
                assert (alone["residual"] - plain["residual"])[1:].norm() > 0.01 * plain["residual"].norm()


def test_a_broken_run_of_a_gang_is_named(base: BaseModel, columns: ColumnStore, tmp_path: Path) -> None:
    exports = {name: export_run(base, lora(), tmp_path / name, seed=k) for k, name in enumerate(["good", "bad"])}
    from safetensors.torch import load_file, save_file

    tensors = load_file(exports["bad"] / "adapter_model.safetensors")
    name = next(n for n in tensors if "lora_B" in n)
    tensors[name] = torch.full_like(tensors[name], float("inf"))
    save_file(tensors, exports["bad"] / "adapter_model.safetensors")
    with pytest.raises(StudyError, match="features of bad are not finite"):
        extract_gang(base, exports, columns)


def test_adapters_that_are_not_plain_lora_are_refused(base: BaseModel, tmp_path: Path) -> None:
    directory = export_run(base, lora(), tmp_path / "run", seed=0)
    config = directory / "adapter_config.json"
    text = config.read_text()
    assert '"use_dora": false' in text and read_adapter(directory).alpha == 8
    config.write_text(text.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(NotStackable, match="has use_dora: True"):
        read_adapter(directory)
    with pytest.raises(EnvironmentProblem, match="holds no adapter"):
        read_adapter(tmp_path)


# ------------------------------------------------------------------------------------------------------ what compares


def test_models_of_another_shape_cannot_be_compared(bases: dict[str, BaseModel]) -> None:
    model = bases["llama"].model
    check_comparable(copy.deepcopy(model), model, name="the run")
    for change, reason in (
        ({"num_hidden_layers": 3}, "it has 3 blocks, the base 2"),
        ({"hidden_size": 64}, "it has 64 features, the base 32"),
        ({"vocab_size": 17}, "it has 17 tokens in its vocabulary, the base 16"),
    ):
        config = copy.deepcopy(model.config)
        config.update(change)
        with pytest.raises(StudyError, match=f"the run cannot be compared with the base: {reason}"):
            check_comparable(type(model)(config), model, name="the run")
