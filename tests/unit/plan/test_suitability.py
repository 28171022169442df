"""What the configs of a study's models show before anything starts: sites, ranks, lengths, drift, serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
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
    """A study of one model, whose directory holds its config and a file of weights without any."""
    tiny_config(family, **(changes or {})).save_pretrained(folder / family)
    save_file({}, folder / family / "model.safetensors")
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
