"""What a good study file means: shorthands, YAML 1.2, overrides, paths, and the studies that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorascope.study.base import Spec
from lorascope.study.fields import FIELDS
from lorascope.study.loading.load import load_study
from lorascope.study.loading.schema import study_schema
from lorascope.study.methods.lora import LoraSpec
from lorascope.study.spec import PathSource, Study
from lorascope.study.tasks import FileTask, NamedTask

REPOSITORY = Path(__file__).parents[4]
STUDIES = sorted((REPOSITORY / "studies").glob("*.yaml"))

GOOD = """\
name: small
question: Is it?
models: [minilm-l6]
tasks: [mrpc]
methods: [full, {kind: lora, learning_rate: 1e-5, name: lora.r8}]
"""


def load(text: str, folder: Path, *overrides: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text)
    return load_study(path, overrides=overrides)


def lora(study: Study) -> LoraSpec:
    method = study.methods[1]
    assert isinstance(method, LoraSpec)
    return method


def test_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    assert lora(load(GOOD, tmp_path)).learning_rate == 1e-5


def test_no_is_text_as_in_yaml_1_2(tmp_path: Path) -> None:
    assert load(GOOD.replace("name: small", "name: no"), tmp_path).name == "no"


def test_on_is_a_key_as_in_yaml_1_2(tmp_path: Path) -> None:
    study = load(GOOD + "hypotheses: {H: {superior: lora.r8, to: full, on: f1}}\n", tmp_path)
    assert study.hypotheses["H"].on == "f1"


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = GOOD.replace(
        "methods: [full, {kind: lora, learning_rate: 1e-5, name: lora.r8}]",
        "methods:\n  - &base {kind: lora, name: a, rank: 4}\n  - {<<: *base, name: b, alpha: 4}",
    )
    assert lora(load(text, tmp_path)).rank == 4


def test_shorthands_are_widened(tmp_path: Path) -> None:
    study = load(GOOD + "seeds: [7, {initialisation: 1, order: 2, dropout: 3}]\n", tmp_path)
    assert [seed.label for seed in study.seeds] == ["7", "1.2.3"]
    assert [method.name for method in study.methods] == ["full", "lora.r8"]
    assert isinstance(study.tasks[0], NamedTask)


def test_percentages_become_numbers(tmp_path: Path) -> None:
    study = load(GOOD + "train: {warmup: 6%}\n", tmp_path)
    assert study.train.warmup == 0.06


@pytest.mark.parametrize(("text", "gang"), [("", "auto"), ("auto", "auto"), ("off", "off"), ("1", 1), ("16", 16)])
def test_a_gang_is_a_word_or_a_number(tmp_path: Path, text: str, gang: str | int) -> None:
    study = load(GOOD + (f"train: {{gang: {text}}}\n" if text else ""), tmp_path)
    assert study.train.gang == gang
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_a_study_survives_json(tmp_path: Path) -> None:
    text = GOOD.replace("[mrpc]", "[mrpc, {name: own, kind: classification, train: a.csv, text: t, label: l}]")
    study = load(text + "hypotheses: {H: {non_inferior: lora.r8, to: full, margin: 3%}}\n", tmp_path)
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_files_of_a_task_are_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = GOOD.replace("[mrpc]", "[{name: own, kind: classification, train: data/a.csv, text: [t, u], label: l}]")
    task = load(text, tmp_path).tasks[0]
    assert isinstance(task, FileTask)
    assert (task.train, task.test) == (str(tmp_path / "data" / "a.csv"), None)


def test_a_checkpoint_directory_is_relative_to_the_study(tmp_path: Path) -> None:
    text = GOOD.replace("[minilm-l6]", "[{name: mine, source: {path: ../checkpoint}}]")
    assert load(text, tmp_path).models[0].source == PathSource(path=str(tmp_path.parent / "checkpoint"))


def test_a_registered_name_may_be_read_from_another_place(tmp_path: Path) -> None:
    text = GOOD.replace("[minilm-l6]", "[{name: minilm-l6, source: {path: /checkpoint}}]")
    assert load(text, tmp_path).models[0].name == "minilm-l6"


# -------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    "override", ["methods.lora.r8.rank=16", "methods.1.rank=16", "methods[1].rank=16", " methods[1].rank = 16"]
)
def test_override_reaches_a_method_by_name_or_position(tmp_path: Path, override: str) -> None:
    assert lora(load(GOOD, tmp_path, override)).rank == 16


def test_override_reaches_into_a_shorthand(tmp_path: Path) -> None:
    study = load(GOOD, tmp_path, "methods.full.learning_rate=2e-5", "methods.full.train.epochs=1")
    assert (study.methods[0].learning_rate, study.methods[0].train.epochs) == (2e-5, 1)


def test_override_makes_the_parts_that_are_absent(tmp_path: Path) -> None:
    study = load(
        GOOD, tmp_path, "train.early_stopping.patience=7", "hypotheses.H.superior=full", "hypotheses.H.to=lora.r8"
    )
    assert study.train.early_stopping is not None
    assert study.train.early_stopping.patience == 7
    assert "H" in study.hypotheses


def test_override_replaces_whole_lists(tmp_path: Path) -> None:
    study = load(GOOD, tmp_path, "models=[smollm2-135m, roberta-base]", "seeds=[1]")
    assert [model.name for model in study.models] == ["smollm2-135m", "roberta-base"]
    assert len(study.seeds) == 1


def test_override_of_one_seed_keeps_the_default_others(tmp_path: Path) -> None:
    study = load(GOOD, tmp_path, "seeds.0.order=7")
    assert [seed.label for seed in study.seeds] == ["42.7.42", "1337", "2024", "3407", "5489"]


def test_override_with_null_turns_a_part_off(tmp_path: Path) -> None:
    assert load(GOOD, tmp_path, "train.early_stopping=null").train.early_stopping is None


def test_the_last_of_two_overrides_wins(tmp_path: Path) -> None:
    assert load(GOOD, tmp_path, "train.epochs=1", "train.epochs=2").train.epochs == 2


def test_value_with_an_equals_sign_is_kept_whole(tmp_path: Path) -> None:
    assert load(GOOD, tmp_path, "question=Is a=b?").question == "Is a=b?"


# ------------------------------------------------------------------------------------------------ studies and schema


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_ships_loads(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem.replace("_", "-")


def test_the_studies_we_stand_behind_are_there() -> None:
    named = ["classification", "classification_search", "deployment", "paper_glue", "quickstart"]
    assert [path.stem for path in STUDIES] == named


def test_every_field_of_a_study_is_described() -> None:
    parts = {
        part
        for part in _parts(Spec)
        if part.model_fields and part.__name__ not in ("MethodBase", "TaskBase", "TaskSettings")
    }
    assert parts == set(FIELDS)
    for part, fields in FIELDS.items():
        assert set(fields) == set(part.model_fields), part.__name__


def _parts(model: type[Spec]) -> set[type[Spec]]:
    """Every kind of `Spec` that lorascope defines."""
    found = {part for part in model.__subclasses__() if part.__module__.startswith("lorascope.study.")}
    return found.union(*(_parts(part) for part in found))


def test_schema_allows_the_shorthands_that_the_loader_allows() -> None:
    schema = study_schema()
    names = schema["properties"]["tasks"]["items"]["anyOf"][0]["enum"]
    assert names == ["mrpc", "sst2", "rte", "qnli", "docstrings"]
    assert schema["properties"]["seeds"]["anyOf"][0]["items"]["anyOf"][0] == {"type": "integer"}
    assert schema["properties"]["seeds"]["anyOf"][1] == {"type": "integer", "minimum": 1, "maximum": 20}
    assert schema["$defs"]["LoraSpec"]["required"] == ["kind"]
    warmup = schema["$defs"]["TrainSpec"]["properties"]["warmup"]["anyOf"]
    assert [choice["type"] for choice in warmup] == ["number", "string"]
    assert warmup[0] == {"type": "number", "minimum": 0, "maximum": 1}
    gang = schema["$defs"]["TrainSpec"]["properties"]["gang"]
    assert gang["anyOf"] == [{"enum": ["auto", "off"], "type": "string"}, {"minimum": 1, "type": "integer"}]
    assert gang["default"] == "auto"


def test_schema_is_json() -> None:
    assert json.loads(json.dumps(study_schema()))["additionalProperties"] is False
