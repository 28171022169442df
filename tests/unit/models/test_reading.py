"""Reading a checkpoint: only a head may be new, and every other tensor equals the file's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_family
from safetensors.torch import load_file, save_file
from tiny import tiny_base
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from lorascope.errors import EnvironmentProblem
from lorascope.models.heads import HeadOrigin, initialise_head, place_head, run_heads
from lorascope.models.reading import Loaded, read_model

CLASSIFIER = "AutoModelForSequenceClassification"
QUERY = "encoder.layer.1.attention.self.query.weight"
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def directory(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "model"))


def rewrite(directory: Path, change: Change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def refusal(directory: Path, auto_class: str = CLASSIFIER) -> str:
    with pytest.raises(EnvironmentProblem) as caught:
        read_model(auto_class, directory)
    assert caught.value.hint
    return caught.value.message


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def head_of(loaded: Loaded) -> tuple[tuple[str, ...], HeadOrigin]:
    return place_head(loaded)


# ------------------------------------------------------------------------------------------------------------ backbone


def test_a_missing_backbone_tensor_is_refused_by_name(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.pop(QUERY))
    assert f"lacks 1 of the 39 tensors of a BertForSequenceClassification without its head: bert.{QUERY}" in refusal(
        directory
    )


def test_a_checkpoint_of_half_the_layers_is_no_checkpoint(directory: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layer.1." in name]:
            del tensors[name]

    rewrite(directory, halve)
    assert "lacks 16 of the 39 tensors" in refusal(directory) and "and 10 more" in refusal(directory)


def test_a_backbone_tensor_of_another_shape_is_refused_by_name(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({QUERY: torch.zeros(16, 32)}))
    assert f"bert.{QUERY} is [16, 32], config.json makes it [32, 32]" in refusal(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(value: float, directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors[QUERY].view(-1)[:3].fill_(value))
    assert f"{QUERY} in {directory / 'model.safetensors'} holds NaN or infinity (3 of 1024 values)" in refusal(
        directory
    )


def test_weights_that_are_whole_numbers_are_refused_by_name(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({QUERY: torch.ones(32, 32, dtype=torch.int8)}))
    assert f"{QUERY} in {directory / 'model.safetensors'} is int8" in refusal(directory)


def test_an_architecture_without_such_a_head_is_said(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    assert "transformers has no model with such a head for this architecture" in refusal(directory)


def test_two_tensors_for_one_place_that_differ_are_refused(directory: Path) -> None:
    """transformers takes `gamma` for `weight`, and keeps the last it sees."""
    old = "encoder.layer.0.output.LayerNorm.gamma"
    rewrite(directory, lambda tensors: tensors.update({old: torch.full((32,), 3.0)}))
    assert "differs from" in refusal(directory)


def test_layers_beyond_those_of_the_config_are_refused(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "has more layers than the 1 of its config.json" in refusal(directory)


def test_a_backbone_under_another_prefix_is_refused(tiny_checkpoints: dict[str, Path]) -> None:
    """The span head of a decoder looks for its backbone as `transformer`, and would leave all of it random."""
    assert "tensors of a LlamaForQuestionAnswering without its head" in refusal(
        tiny_checkpoints["llama"], "AutoModelForQuestionAnswering"
    )


def test_old_names_and_narrow_types_are_compared_as_they_load(directory: Path) -> None:
    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name).to(torch.bfloat16)

    rewrite(directory, age)
    assert read_model(CLASSIFIER, directory).missing == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "gpt2", "gpt_neox", "modernbert", "phi3"])
def test_what_was_saved_is_read_back_whole(family: str, tmp_path: Path) -> None:
    """transformers writes some of these under older names than the model's."""
    base = tiny_family(family)
    auto = type(base.model).__name__ if family in ("vit", "deit", "dinov2") else CLASSIFIER
    loaded = read_model(auto, saved(base.model, tmp_path))
    assert not loaded.missing and not loaded.mismatched
    same = [torch.equal(a, b) for a, b in zip(loaded.model.parameters(), base.model.parameters(), strict=True)]
    assert all(same)


# ---------------------------------------------------------------------------------------------------------------- head


def test_a_head_of_other_classes_is_replaced_and_recorded(tmp_path: Path) -> None:
    three = saved(tiny_family("roberta", num_labels=3).model, tmp_path)
    head, origin = head_of(read_model(CLASSIFIER, three, config={"num_labels": 2}))
    assert head == ("classifier",) and origin.drawn == ("classifier.out_proj",)
    assert origin.kept == ("classifier.dense",)
    assert origin.to_json()["replaced"] == {
        "classifier.out_proj.weight": [3, 32],
        "classifier.out_proj.bias": [3],
    }
    assert "head for another task is replaced: classifier.out_proj.weight [3, 32]" in str(origin.remark)


def test_a_head_of_as_many_classes_is_replaced_too(tmp_path: Path) -> None:
    _, origin = head_of(read_model(CLASSIFIER, saved(tiny_family("bert").model, tmp_path)))
    assert origin.drawn == ("classifier",) and "classifier.weight" in origin.replaced


def test_a_new_head_is_no_remark(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["bert"])
    assert base.origin == HeadOrigin(("classifier",)) and base.origin.remark is None


def test_a_missing_pooler_is_part_of_the_head(directory: Path) -> None:
    def forget(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("pooler.")]:
            del tensors[name]

    rewrite(directory, forget)
    head, origin = head_of(read_model(CLASSIFIER, directory))
    assert head == ("bert.pooler.dense", "classifier") and origin.drawn == ("bert.pooler.dense", "classifier")


def test_a_pretrained_part_of_a_head_is_kept_in_every_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masked = AutoModelForMaskedLM.from_config(tiny_family("modernbert").model.config)
    masked.head.norm.weight.data.fill_(0.5)
    loaded = read_model(CLASSIFIER, saved(masked, tmp_path))
    head, origin = head_of(loaded)
    assert origin.kept == ("head.dense", "head.norm") and origin.drawn == ("classifier",)
    first, second = run_heads(loaded.model, head, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(second["head.dense.weight"], masked.head.dense.weight)
    assert second["head.norm.weight"].unique().tolist() == [0.5]
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


def test_norms_of_a_new_head_begin_at_one() -> None:
    base = tiny_family("modernbert")
    copy: Any = base.copy(torch.Generator().manual_seed(3), share_frozen=True)
    assert copy.head.norm.weight.unique().tolist() == [1.0]
    assert 0.5 < float(copy.classifier.weight.std()) * 32**0.5 < 1.5  # not its `initializer_range`


@pytest.mark.parametrize("family", ["bert", "distilbert", "opt", "gpt2", "vit", "dinov2", "gemma2"])
def test_drawing_a_head_moves_nothing_else(family: str) -> None:
    base = tiny_family(family)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    random = torch.random.get_rng_state()
    initialise_head(base.model, base.head, torch.Generator().manual_seed(3))
    moved = [name for name, tensor in base.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and all(name.startswith(base.head) for name in moved)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_plain_head_is_drawn_as_it_always_was(tiny_checkpoints: dict[str, Path]) -> None:
    base, generator = tiny_base(tiny_checkpoints["llama"]), torch.Generator().manual_seed(5)
    copy: Any = base.copy(torch.Generator().manual_seed(5), share_frozen=True)
    assert torch.equal(copy.score.weight, torch.empty(2, 32).normal_(0.0, 0.2, generator=generator))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_checkpoint_whose_tokens_are_all_alike_is_refused(value: float, directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors["embeddings.word_embeddings.weight"].fill_(value))
    assert "tokens the same embedding" in refusal(directory)
