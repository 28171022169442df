"""GLUE tasks: strict and paper protocol, files before the hub, and the hub at its pinned revision."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lorascope.data.sources import describe_source
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.errors import DataError, EnvironmentProblem
from lorascope.study.spec import DataSpec
from lorascope.study.tasks import NamedTask
from lorascope.tasks import glue
from lorascope.tasks.steps import prepare_data

ROOT = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("LORASCOPE_DATA", ROOT.parent / "shared" / "data"))


def rte_table(split: str, num_rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sentence1": [f"{split} premise {row}" for row in range(num_rows)],
            "sentence2": [f"{split} claim {row}" for row in range(num_rows)],
            "label": [row % 2 for row in range(num_rows)],
            "idx": [row * 3 for row in range(num_rows)],
        }
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    for split, num_rows in (("train", 100), ("validation", 30)):
        rte_table(split, num_rows).to_parquet(tmp_path / f"rte_{split}.parquet")
    return tmp_path


def prepare(
    name: str,
    tmp_path: Path,
    data_dir: Path | None,
    *,
    protocol: str = "strict",
    test_rows: int | None = None,
    **data: Any,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    spec = NamedTask(name=name)
    source = describe_source(spec, data_dir=data_dir, protocol=protocol)
    params = {
        "task": spec.model_dump(mode="json"),
        "source": source.fingerprint,
        "protocol": protocol,
        "data": DataSpec(**data).model_dump(mode="json"),
        **({} if test_rows is None else {"test_rows": test_rows}),
    }
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    step = Step(kind="data", version=1, params=params, locations=source.locations)
    result = prepare_data(StepContext(step, out, out, {}, lambda event: None, "cpu", data_dir, out))
    return result, {split: pd.read_parquet(out / f"{split}.parquet") for split in ("train", "validation", "test")}


def test_strict_tests_on_the_validation_file_and_selects_on_train(data_dir: Path) -> None:
    result, frames = prepare("rte", data_dir, data_dir)
    assert result["num_examples"] == {"train": 90, "validation": 10, "test": 30}
    assert frames["test"]["example_id"].tolist() == [f"rte-validation-{row * 3}" for row in range(30)]
    assert all(frames["validation"]["example_id"].str.startswith("rte-train-"))
    assert not set(frames["validation"]["example_id"]) & set(frames["train"]["example_id"])
    assert result["label_counts"]["test"] == {"entailment": 15, "not_entailment": 15}


def test_paper_selects_and_tests_on_the_validation_file(data_dir: Path) -> None:
    result, frames = prepare("rte", data_dir, data_dir, protocol="paper")
    assert result["num_examples"] == {"train": 100, "validation": 30, "test": 30}
    assert result["example_ids_sha256"]["validation"] == result["example_ids_sha256"]["test"]
    assert result["duplicates"]["validation~test"] == 30
    pd.testing.assert_frame_equal(frames["validation"], frames["test"])


def test_training_rows_that_stand_in_the_glue_test_set_are_dropped(data_dir: Path) -> None:
    train = rte_table("train", 100)
    train.loc[5, ["sentence1", "sentence2"]] = ["validation premise 7", "validation claim 7"]
    train.to_parquet(data_dir / "rte_train.parquet")
    result, frames = prepare("rte", data_dir, data_dir)
    assert result["duplicates"]["train~test"] == result["duplicates_dropped"]["train~test"] == 1
    assert "rte-train-15" not in {*frames["train"]["example_id"], *frames["validation"]["example_id"]}


def test_paper_keeps_and_counts_training_rows_of_its_test_set(data_dir: Path) -> None:
    train = rte_table("train", 100)
    train.loc[5, ["sentence1", "sentence2"]] = ["validation premise 7", "validation claim 7"]
    train.to_parquet(data_dir / "rte_train.parquet")
    result, _ = prepare("rte", data_dir, data_dir, protocol="paper")
    assert result["num_examples"]["train"] == 100
    assert (result["duplicates"]["train~test"], result["duplicates_dropped"]["train~test"]) == (1, 0)


def test_a_file_in_the_data_directory_comes_before_the_hub(data_dir: Path) -> None:
    from_files = describe_source(NamedTask(name="rte"), data_dir=data_dir, protocol="strict")
    assert set(from_files.fingerprint["files"]) == {"train", "validation"}
    from_hub = describe_source(NamedTask(name="sst2"), data_dir=data_dir, protocol="strict")
    assert from_hub.fingerprint == {"hub": "nyu-mll/glue", "config": "sst2", "revision": glue.REVISION}
    assert from_hub.locations == {}


def test_one_of_two_files(data_dir: Path) -> None:
    (data_dir / "rte_train.parquet").unlink()
    with pytest.raises(DataError) as error:
        describe_source(NamedTask(name="rte"), data_dir=data_dir, protocol="strict")
    assert str(error.value) == (
        f"{data_dir} has rte_validation.parquet but not rte_train.parquet\n"
        "  hint: Put both files there, or none of rte to take the task from the hub."
    )


def mrpc_files(folder: Path, *splits: str) -> Path:
    for split, num_rows in (("train", 100), ("validation", 30), ("test", 60)):
        if split in splits:
            rte_table(split, num_rows).to_parquet(folder / f"mrpc_{split}.parquet")
    return folder


def test_a_public_test_set_tests_and_its_validation_file_selects(tmp_path: Path) -> None:
    result, frames = prepare("mrpc", tmp_path, mrpc_files(tmp_path, "train", "validation", "test"))
    assert result["num_examples"] == {"train": 100, "validation": 30, "test": 60}
    for split, frame in frames.items():
        assert frame["example_id"].str.startswith(f"mrpc-{split}-").all()


def test_a_public_test_set_that_is_absent_is_asked_for(tmp_path: Path) -> None:
    mrpc_files(tmp_path, "train", "validation")
    with pytest.raises(DataError) as error:
        prepare("mrpc", tmp_path, tmp_path)
    assert f"{tmp_path} has mrpc_train.parquet but not mrpc_test.parquet" in str(error.value)
    assert "split='test').to_parquet('mrpc_test.parquet')" in str(error.value)


def test_the_paper_protocol_needs_no_test_file_and_keeps_its_identity(tmp_path: Path) -> None:
    mrpc_files(tmp_path, "train", "validation")
    result, _ = prepare("mrpc", tmp_path, tmp_path, protocol="paper")
    assert result["num_examples"] == {"train": 100, "validation": 30, "test": 30}
    hub = describe_source(NamedTask(name="mrpc"), data_dir=None, protocol="paper").fingerprint
    assert hub == {"hub": "nyu-mll/glue", "config": "mrpc", "revision": glue.REVISION}
    strict = describe_source(NamedTask(name="mrpc"), data_dir=None, protocol="strict").fingerprint
    assert strict == {**hub, "splits": ["train", "validation", "test"]}


def test_resplit_pools_the_files_and_carves_the_wanted_test_set(data_dir: Path) -> None:
    result, frames = prepare("rte", data_dir, data_dir, protocol="resplit", test_rows=60)
    assert result["num_examples"] == {"train": 63, "validation": 7, "test": 60}
    assert set(frames["test"]["example_id"].str.split("-").str[1]) == {"train", "validation"}
    assert result["protocol"] == "resplit"


def test_hidden_test_labels_are_refused(data_dir: Path) -> None:
    rte_table("validation", 30).assign(label=-1).to_parquet(data_dir / "rte_validation.parquet")
    with pytest.raises(DataError, match=r"`-1` in rows 1, 2, 3, 4, 5 and 25 more of rte_validation\.parquet is not"):
        prepare("rte", data_dir, data_dir)


def test_an_index_that_names_two_rows_is_refused(data_dir: Path) -> None:
    table = rte_table("train", 100)
    table.loc[9, "idx"] = 6
    table.to_parquet(data_dir / "rte_train.parquet")
    with pytest.raises(DataError) as error:
        prepare("rte", data_dir, data_dir)
    assert str(error.value) == (
        "task `rte`: the example id rte-train-6 stands for rows 3 and 10 of train\n"
        "  hint: Results are paired by example, so every example needs an id of its own (`idx` in GLUE's files)."
    )


def test_caps_keep_the_example_ids_of_the_whole_splits(data_dir: Path) -> None:
    _, whole = prepare("rte", data_dir, data_dir)
    result, capped = prepare("rte", data_dir, data_dir, train_examples=20, validation_examples=4, test_examples=10)
    assert result["num_examples"] == {"train": 20, "validation": 4, "test": 10}
    assert result["label_counts"]["train"] == {"entailment": 10, "not_entailment": 10}
    for split, frame in capped.items():
        assert set(frame["example_id"]) <= set(whole[split]["example_id"])


def test_preparing_twice_gives_the_same_record(data_dir: Path) -> None:
    assert prepare("rte", data_dir, data_dir)[0] == prepare("rte", data_dir, data_dir)[0]


def test_absent_data_directory(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem) as error:
        describe_source(NamedTask(name="rte"), data_dir=tmp_path / "none", protocol="strict")
    assert str(error.value) == (
        f"the data directory {tmp_path / 'none'} does not exist\n  hint: Check --data (or LORASCOPE_DATA)."
    )


def test_hub_examples_equal_those_of_the_files(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(name: str, config: str, *, revision: str, split: str) -> datasets.Dataset:
        asked.append((name, config, revision, split))
        return datasets.Dataset.from_parquet(str(data_dir / f"rte_{split}.parquet"))  # type: ignore[return-value]

    from_files, _ = prepare("rte", data_dir, data_dir)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub, _ = prepare("rte", data_dir, None)
    assert asked == [("nyu-mll/glue", "rte", glue.REVISION, split) for split in ("train", "validation")]
    assert from_hub["sha256"] == from_files["sha256"]
    assert from_hub["source"] == "GLUE rte, nyu-mll/glue at bcdcba79d07b"


def test_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(EnvironmentProblem) as error:
        prepare("mrpc", tmp_path, None)
    assert str(error.value) == (
        "nyu-mll/glue (mrpc) could not be loaded from the hub: "
        "Couldn't reach 'nyu-mll/glue' on the Hub (OfflineModeIsEnabled)\n"
        "  hint: Download it once where there is a network (datasets.load_dataset('nyu-mll/glue', 'mrpc', "
        "revision='bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c')), or give --data a directory with "
        "mrpc_train.parquet, mrpc_validation.parquet and mrpc_test.parquet."
    )


def test_published_figures_are_those_of_the_papers() -> None:
    def figures(kind: Any) -> dict[str, float]:
        task = kind("x", label_names=kind.classes, text_columns=kind.columns, metrics=kind.reported)
        return {figure["method"]: figure["value"] for figure in task.published()}

    assert figures(glue.MRPC) == {"lora": 0.897, "adalora": 0.9069}
    assert figures(glue.SST2) == {"lora": 0.951, "adalora": 0.961}
    assert figures(glue.RTE) == {"lora": 0.866, "adalora": 0.8809}


REAL = {
    "mrpc": SimpleNamespace(num=(3668, 408, 1725), metrics=["accuracy", "f1"], positive_test=1147),
    "sst2": SimpleNamespace(num=(60538, 6735, 872), metrics=["accuracy"], positive_test=444),
    "rte": SimpleNamespace(num=(2241, 249, 277), metrics=["accuracy"], positive_test=131),
}


@pytest.mark.skipif(not (REAL_DATA / "mrpc_test.parquet").exists(), reason="the GLUE files are not on this machine")
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_glue_files(name: str, tmp_path: Path) -> None:
    result, frames = prepare(name, tmp_path, REAL_DATA)
    assert tuple(result["num_examples"].values()) == REAL[name].num
    assert result["task"]["metrics"] == REAL[name].metrics
    assert int(frames["test"]["label"].sum()) == REAL[name].positive_test
    ids = pd.concat(frames.values())["example_id"]
    assert ids.is_unique


@pytest.mark.skipif(not (REAL_DATA / "sst2_train.parquet").exists(), reason="the GLUE files are not on this machine")
def test_real_sentences_are_carved_whole(tmp_path: Path) -> None:
    for split, num_rows in (("train", 8000), ("validation", 200)):
        whole = pd.read_parquet(REAL_DATA / f"sst2_{split}.parquet")
        whole.head(num_rows).to_parquet(tmp_path / f"sst2_{split}.parquet")
    result, frames = prepare("sst2", tmp_path, tmp_path, protocol="resplit", test_rows=600)
    assert result["num_examples"]["test"] == 600
    assert (
        frames["test"]["sentence"].str.split().str.len().mean()
        > frames["train"]["sentence"].str.split().str.len().mean()
    )
    assert result["parts_dropped"]["train~test"] > 10
    assert not set(frames["train"]["sentence"].str.strip()) & set(frames["test"]["sentence"].str.strip())
