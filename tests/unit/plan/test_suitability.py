"""What the configs of a study's models show before anything starts: sites, ranks, lengths, drift, serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_config
from safetensors.torch import save_file

from lorascope.errors import StudyError
from lorascope.models.configuration import model_config
from lorascope.plan.suitability import check_models, not_checked, require_suitable
from lorascope.study.loading.load import load_study
from lorascope.study.spec import ModelSpec, Study

LORA = {"kind": "lora", "name": "lora", "sites": ["all-linear"]}
FULL = {"kind": "full", "name": "full"}


def study_of(folder: Path, family: str, *methods: dict[str, Any], changes: Any = None, **parts: Any) -> Study:
    """A study of one model, whose directory holds its config, an empty file of weights and an empty tokenizer."""
    tiny_config(family, **(changes or {})).save_pretrained(folder / family)
    save_file({}, folder / family / "model.safetensors")
    (folder / family / "tokenizer.json").write_text("{}")
    model = {"name": "tiny", "source": {"path": str(folder / family)}}
    fields = {"name": "s", "question": "?", "models": [model], "tasks": ["mrpc"], "methods": [*methods] or [LORA]}
    return Study.model_validate({**fields, "train": {"max_length": 32}, **parts})


def found(study: Study) -> list[str]:
    return [f"{mistake.text} -> {mistake.hint}" for mistake in check_models(study)]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "phi3"])
def test_what_fits_is_not_remarked_on(family: str, tmp_path: Path) -> None:
    study = study_of(tmp_path, family, LORA, FULL, measure={"drift": True})
    assert found(study) == [] and not_checked(study) == []


def test_a_fused_layer_is_named_for_the_role_that_is_part_of_it(tmp_path: Path) -> None:
    (first, second) = found(study_of(tmp_path, "gpt2", {"kind": "lora", "name": "lora"}))
    assert first.startswith("methods[0].sites: gpt2 has no layer of its own for `query`: one layer computes")
    assert "-> use `query-key-value`, or one of attention, mlp" in first and "`value`" in second


@pytest.mark.parametrize(
    ("family", "site", "is_there"),
    [
        ("bert", "query", True),
        ("bert", "attention.self.query", True),
        ("bert", "dense", True),
        ("bert", "pooler.dense", True),
        ("bert", "encoder.layer.0.output.dense", True),
        ("bert", "q_proj", False),
        ("bert", "mlp-gate", False),
        ("vit", "attention.attention.query", True),
        ("llama", "mlp", True),
        ("llama", "query-key-value", False),
    ],
)
def test_a_site_is_a_meaning_a_role_or_a_name(family: str, site: str, is_there: bool, tmp_path: Path) -> None:
    mistakes = check_models(study_of(tmp_path, family, {**LORA, "sites": [site]}))
    assert any(".sites" in mistake.text for mistake in mistakes) is not is_there


def test_a_misspelt_site_names_the_nearest(tmp_path: Path) -> None:
    (text,) = found(study_of(tmp_path, "llama", {**LORA, "sites": ["q_prj"]}))
    assert text.startswith("methods[0].sites: no linear layer of llama is called `q_prj`: did you mean `q_proj`?")


def test_a_rank_is_at_most_the_smaller_side_of_a_layer(tmp_path: Path) -> None:
    wide = {**LORA, "rank": 17, "sites": ["query", "value"]}
    (text,) = found(study_of(tmp_path, "llama", wide))
    assert text.startswith("methods[0]: rank 17 is larger than the value layers of tiny (16 x 32) -> use a rank of at")
    assert found(study_of(tmp_path, "llama", {**wide, "sites": ["query"]})) == []
    searched = {"space": {"lora": {"rank": [4, 64]}}}
    (text,) = found(study_of(tmp_path, "llama", {**LORA, "sites": ["query"]}, search=searched))
    assert "rank 64 is larger than the query layers" in text


@pytest.mark.parametrize(("family", "most"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("llama", None)])
def test_examples_are_no_longer_than_the_places_there_are(family: str, most: int | None, tmp_path: Path) -> None:
    texts = found(study_of(tmp_path, family, train={"max_length": 65}))
    assert len(texts) == (most is not None)
    if most is not None:
        assert f"65 tokens are more than tiny has places for ({most})" in texts[0]
        assert found(study_of(tmp_path, family, train={"max_length": most})) == []


def test_attention_that_drift_cannot_read_is_said_before_training(tmp_path: Path) -> None:
    for family, why in (("deberta-v2", "relative positions"), ("gemma2", "attn_logit_softcapping")):
        (text,) = found(study_of(tmp_path, family, measure={"drift": True}))
        assert why in text and text.endswith("set it to 0; all other measures are taken")
        assert found(study_of(tmp_path, family, measure={"drift": {"attention_examples": 0}})) == []


def test_an_encoder_generates_nothing(tmp_path: Path) -> None:
    serving = {"serving": {"workloads": ["generation"], "arms": ["base"]}}
    (text,) = found(study_of(tmp_path, "bert", measure=serving))
    assert "is an encoder, which generates no text" in text
    assert found(study_of(tmp_path, "llama", measure=serving)) == []


def test_dropout_that_is_called_as_a_function_is_refused_with_its_setting(tmp_path: Path) -> None:
    (text,) = found(study_of(tmp_path, "opt", changes={"dropout": 0.1}))
    assert "opt calls dropout as a function" in text and 'set "dropout": 0.0' in text
    assert found(study_of(tmp_path, "opt")) == []


@pytest.mark.parametrize("kind", ["mbart", "mt5", "biogpt", "longformer"])
def test_relatives_that_call_dropout_as_a_function_are_refused_too(kind: str, tmp_path: Path) -> None:
    (text,) = found(of_kind(tmp_path, kind))
    assert f"{kind} calls dropout as a function" in text


def of_kind(folder: Path, kind: str, *, parts: Any = None, **config: Any) -> Study:
    """A study of a model of an architecture outside the table."""
    study = study_of(folder, "llama", **(parts or {}))
    (folder / "llama" / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return study


def test_places_of_an_architecture_outside_the_table_count(tmp_path: Path) -> None:
    for kind, most in (("albert", 20), ("xlm-roberta", 18)):
        (text,) = found(of_kind(tmp_path, kind, max_position_embeddings=20, pad_token_id=1))
        assert f"32 tokens are more than tiny has places for ({most})" in text


def test_an_encoder_with_a_decoder_has_no_drift(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "led", parts={"measure": {"drift": True}}, is_encoder_decoder=True)
    assert "measure.drift: tiny has an encoder and a decoder" in found(study)[0]


def test_parts_of_an_architecture_outside_the_table_are_told_by_name(tmp_path: Path) -> None:
    study = of_kind(tmp_path, "bloom", parts={"measure": {"drift": True}}, num_hidden_layers=2)
    for shared, said in (
        ("h.{}.self_attention.dense h.{}.mlp.fc", None),
        ("h.{}.self_attention.dense h.{}.fc1", "no mlp of tiny can be told"),
        ("groups.0.layers.0.attention.dense", "no residual and no attention and no mlp"),
    ):
        names = {f"{part.format(layer)}.weight" for layer in range(2) for part in shared.split()}
        save_file({name: torch.zeros(1) for name in names}, tmp_path / "llama" / "model.safetensors")
        texts = found(study)
        assert len(texts) == (said is not None) and (said is None or said in texts[0])


def test_a_dropout_of_one_is_refused(tmp_path: Path) -> None:
    (text,) = found(study_of(tmp_path, "bert", changes={"hidden_dropout_prob": 1.0}))
    assert "hidden_dropout_prob in the model's config.json is 1.0" in text


def test_a_model_of_images_reads_no_texts(tmp_path: Path) -> None:
    (text,) = found(study_of(tmp_path, "vit"))
    assert text.startswith(
        "tasks[0]: mrpc is a task of texts, and tiny reads images -> give this task a model of texts"
    )


def test_requests_are_no_longer_than_the_places_there_are(tmp_path: Path) -> None:
    serving = {"prompt_tokens": [16, 60], "output_tokens": 8, "workloads": ["generation"], "arms": ["base"]}
    (text,) = found(study_of(tmp_path, "gpt2", measure={"serving": serving}))
    assert "a request of 68 tokens is longer than tiny has places for (64)" in text
    assert found(study_of(tmp_path, "llama", measure={"serving": serving})) == []


def test_token_ids_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    words = {"model": {"vocab": {"good": 15}}, "added_tokens": [{"id": 17, "content": "<extra>"}]}
    path = tmp_path / "bert" / "tokenizer.json"
    path.write_text(json.dumps(words))
    (text,) = found(study)
    assert "the tokenizer's ids go up to 17 (`<extra>`), and the model's vocabulary ends at 15" in text
    assert "resize_token_embeddings" in text
    path.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [["good", -1.0]] * 16}}))
    assert found(study) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "names no `model_type`"),
        (None, "not exist"),
    ],
)
def test_a_config_that_says_nothing_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    path = tmp_path / "bert" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    (text,) = found(study)
    assert f"models[0]: {path}" in text and said in text


def test_a_model_of_texts_needs_a_tokenizer(tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    (tmp_path / "bert" / "tokenizer.json").unlink()
    (text,) = found(study)
    assert "has no tokenizer: there is no vocabulary in its files" in text
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert found(study) == []


def test_layers_without_weights_are_named_before_anything_starts(tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    for layers, said in (([0], "no weights of layer 1"), ([0, 1, 2], "weights of layer 2 too"), ([0, 1], None)):
        tensors = {f"encoder.layer.{layer}.output.dense.weight": torch.zeros(2) for layer in layers}
        save_file(tensors, tmp_path / "bert" / "model.safetensors")
        texts = found(study)
        assert len(texts) == (said is not None) and (said is None or said in texts[0])


def test_what_may_not_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    weights.rename(tmp_path / "bert" / "pytorch_model.bin")
    (text,) = found(study)
    assert text.startswith("models[0]: the weights in") and "are pickled" in text
    allowed = study.models[0].model_copy(update={"pickle": "allow"})
    assert found(study.model_copy(update={"models": (allowed,)})) == []
    path = tmp_path / "bert" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Model"}}))
    (mistake,) = check_models(study)
    assert mistake.path == ("models", 0) and "code of its own" in mistake.text


def test_what_cannot_be_checked_here_is_said(tmp_path: Path) -> None:
    study = study_of(tmp_path, "llama")
    path = tmp_path / "llama" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mine"}))
    assert found(study) == []
    (remark,) = not_checked(study)
    assert remark.startswith("tiny is a mine model, whose layers lorascope knows by their names only")
    hub = ModelSpec.model_validate({"name": "far", "source": {"hub": "nobody/nothing", "revision": "0" * 40}})
    assert model_config(hub) is None
    (remark,) = not_checked(study.model_copy(update={"models": (hub,)}))
    assert remark.startswith("not checked until the model is here: whether far has")


def test_a_hub_model_without_its_weights_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json alone was fetched."""
    study = study_of(tmp_path, "bert")
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "bert" / "config.json").rename(snapshot / "config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    hub = ModelSpec.model_validate({"name": "far", "source": {"hub": "owner/tiny", "revision": "a" * 40}})
    there = study.model_copy(update={"models": (hub,)})
    assert model_config(hub) is not None and found(there) == []
    (remark,) = not_checked(there)
    assert remark == "not checked until the model is here: whether the files of far are whole and may be read"
    (tmp_path / "bert" / "model.safetensors").rename(snapshot / "model.safetensors")
    (tmp_path / "bert" / "tokenizer.json").rename(snapshot / "tokenizer.json")
    assert not_checked(there) == []


def test_mistakes_name_their_line_or_their_place(tmp_path: Path) -> None:
    study = study_of(tmp_path, "llama", {**LORA, "sites": ["c_attn"]})
    with pytest.raises(StudyError) as caught:
        require_suitable(study)
    assert caught.value.where == "methods[0].sites"
    (tmp_path / "study.yaml").write_text(
        "name: s\nquestion: why\nmodels: [{name: tiny, source: {path: llama}}]\ntasks: [mrpc]\n"
        "methods:\n  - kind: lora\n    sites: [c_attn]\n"
    )
    assert load_study(tmp_path / "study.yaml", files=True).name == "s"
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.yaml", files=True, further=check_models)
    assert str(caught.value.where).endswith("study.yaml:7")


def test_what_a_single_task_sets_is_compared_with_the_model_too(tmp_path: Path) -> None:
    own = {"name": "rte", "settings": {"max_length": 5000}, "methods": {"lora": {"rank": 4096}}}
    texts = found(study_of(tmp_path, "bert", LORA, tasks=["mrpc", own]))
    assert len(texts) == 2 and all(text.startswith("tasks[1] (rte): ") for text in texts)
    assert any("5000 tokens are more than tiny has places for" in text for text in texts)
    assert any("rank 4096 is larger than" in text for text in texts)


def test_a_config_of_countless_layers_is_refused_in_a_line(tmp_path: Path) -> None:
    study = study_of(tmp_path, "bert")
    config = tmp_path / "bert" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 10**12}))
    tensors = {f"encoder.layer.{layer}.output.dense.weight": torch.zeros(2) for layer in (0, 1)}
    save_file(tensors, tmp_path / "bert" / "model.safetensors")
    (text,) = found(study)
    assert "; there are no weights of layer 2, 3, 4, 5, 6, 7, ... -> " in text
