"""The files of a checkpoint: which are read, which are refused, and which its identity rests on."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.errors import EnvironmentProblem
from lorascope.models.catalog import describe_model, find_model
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.configuration import read_config
from lorascope.models.reading import read_model
from lorascope.study.spec import ModelSpec

CLASSIFIER = "AutoModelForSequenceClassification"
SHARD, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def directory(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A whole checkpoint of one's own to spoil."""
    return Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "model"))


def model_at(path: Path, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "mine", "source": {"path": str(path)}, **fields})


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def into_shards(directory: Path, *, second: str = OTHER) -> Path:
    """The checkpoint in two files and an index. Returns the index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {SHARD: names[:9], second: names[9:]}
    for file, part in parts.items():
        (directory / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in part}, directory / file, metadata={"format": "pt"})
    index = directory / "model.safetensors.index.json"
    weight_map = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def into_pickle(directory: Path, *, extra: Any = None) -> None:
    tensors: dict[str, Any] = dict(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    torch.save({**tensors, **({} if extra is None else {"extra": extra})}, directory / "pytorch_model.bin")


def refusal(directory: Path, **fields: Any) -> str:
    with pytest.raises(EnvironmentProblem) as caught:
        describe_model(model_at(directory, **fields))
    assert caught.value.hint
    return caught.value.message


# ------------------------------------------------------------------------------------------------------------ damaged


def test_a_truncated_weight_file_is_named_with_its_shard(directory: Path) -> None:
    into_shards(directory)
    whole = (directory / OTHER).read_bytes()
    (directory / OTHER).write_bytes(whole[:-100])
    said = refusal(directory)
    assert f"{OTHER} is cut short or no safetensors file: its header announces {len(whole):,} bytes" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its 0 bytes do not hold the header"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "do not hold the header they announce"),
        ((4).to_bytes(8, "little") + b"[[[[", "its header cannot be read"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "its header cannot be read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_weight_file_is_said_in_one_sentence(content: bytes, said: str, directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(content)
    found = refusal(directory)
    assert said in found and "\n" not in found


def test_a_header_with_overlapping_tensors_gives_one_sentence(directory: Path) -> None:
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("a", "b")}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(EnvironmentProblem, match="cannot be loaded") as caught:
        read_model(CLASSIFIER, directory)
    assert "\n" not in caught.value.message


def test_a_truncated_gguf_file_gives_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 12)
    with pytest.raises(EnvironmentProblem, match=r"the model in .*model\.gguf cannot be loaded: ") as caught:
        checkpoint_directory({"package": "x", "sha256": "0" * 64}, locations={"model": str(file)}, cache_dir=tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "changes", [{"hidden_size": -1}, {"num_attention_heads": 7}, {"hidden_size": "wide"}, {"model_type": "nobody"}]
)
def test_a_config_that_makes_no_model_gives_one_sentence(changes: dict[str, Any], directory: Path) -> None:
    change(directory / "config.json", **changes)
    with pytest.raises(EnvironmentProblem) as caught:
        read_model(CLASSIFIER, directory)
    assert "\n" not in caught.value.message and str(directory) in caught.value.message


# ------------------------------------------------------------------------------------------------------ code and pickles


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused_and_never_asked_about(file: str, directory: Path) -> None:
    change(directory / file, auto_map={"AutoConfig": "evil.Config"})
    (directory / "evil.py").write_text("raise SystemExit('it ran')")
    assert f"comes with code of its own ({file}: auto_map), which lorascope does not run" in refusal(directory)
    with pytest.raises(EnvironmentProblem, match="code of its own"):
        checkpoint_directory({"checkpoint_sha256": ""}, locations={"model": str(directory)}, cache_dir=directory)


def test_pickled_weights_are_refused_unless_the_study_allows_them(directory: Path) -> None:
    plain = read_model(CLASSIFIER, directory).model.state_dict()
    into_pickle(directory)
    assert "are pickled (pytorch_model.bin), and unpickling can run any program" in refusal(directory)
    identity, locations = describe_model(model_at(directory, pickle="allow"))
    assert identity["pickle"] == "allow" and find_model(identity, locations) == locations
    read = read_model(CLASSIFIER, directory, allows_pickle=True).model.state_dict()
    name = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(read[name], plain[name])


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.marker,)


def test_an_allowed_pickle_still_runs_no_program(directory: Path, tmp_path: Path) -> None:
    into_pickle(directory, extra=Evil(tmp_path / "it-ran"))
    with pytest.raises(EnvironmentProblem, match="cannot be loaded"):
        read_model(CLASSIFIER, directory, allows_pickle=True)
    assert not (tmp_path / "it-ran").exists()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "it-ran")))
    with pytest.raises(EnvironmentProblem, match="cannot be loaded"):
        read_model(CLASSIFIER, directory, allows_pickle=True)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["model.pt", "weights.safetensors"])
def test_weights_under_a_name_that_nothing_reads_are_named(name: str, directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / name)
    assert name in refusal(directory)


def test_an_adapter_and_quantised_weights_are_no_base_model(directory: Path) -> None:
    change(directory / "config.json", quantization_config={"quant_method": "gptq"})
    assert "are quantised" in refusal(directory)
    (directory / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refusal(directory)


# ------------------------------------------------------------------------------------------- nothing outside the directory


def test_an_index_that_leads_out_of_the_directory_is_refused(directory: Path) -> None:
    index = into_shards(directory)
    (directory / OTHER).rename(directory.parent / OTHER)
    for named in (f"../{OTHER}", str(directory.parent / OTHER)):
        weights = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"weight_map": {n: SHARD if f == SHARD else named for n, f in weights.items()}}))
        assert f"model.safetensors.index.json names {named}, and nothing outside the directory" in refusal(directory)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert "names gone.safetensors, which is not there" in refusal(directory)
    index.write_text("[]")
    assert "names no shards" in refusal(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_directory_is_refused(name: str, directory: Path) -> None:
    (directory / name).rename(directory.parent / name)
    (directory / name).symlink_to(directory.parent / name)
    assert f"{name} leads out of it, and nothing outside the directory is read" in refusal(directory)


def test_links_in_a_circle_give_one_sentence(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("model.safetensors")
    assert "model.safetensors cannot be read" in refusal(directory)


def test_a_tokenizer_that_names_a_file_elsewhere_is_refused(directory: Path) -> None:
    change(directory / "tokenizer_config.json", special_tokens_map_file="/root/.cache/x.json")
    describe_model(model_at(directory))
    change(directory / "tokenizer_config.json", vocab_file="/etc/hostname")
    assert "tokenizer_config.json names /etc/hostname" in refusal(directory)


def test_links_of_the_hubs_cache_into_its_blobs_are_read(directory: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--tiny"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in directory.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    describe_model(model_at(snapshot))
    assert read_model(CLASSIFIER, snapshot).missing == {"classifier.weight", "classifier.bias"}
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(tmp_path)
    assert "tokenizer.json leads out of it" in refusal(snapshot)


# ----------------------------------------------------------------------------------------------------------- identity


def test_the_index_its_shards_and_tokenizer_files_are_identity(directory: Path) -> None:
    index = into_shards(directory, second=f"more/{OTHER}")
    seen = [describe_model(model_at(directory))[0]]
    index.write_text(index.read_text() + " ")
    seen.append(describe_model(model_at(directory))[0])
    tensors = load_file(directory / "more" / OTHER)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, directory / "more" / OTHER)
    seen.append(describe_model(model_at(directory))[0])
    for name in ("added_tokens.json", "spm.model", "chat_template.jinja", "preprocessor_config.json"):
        (directory / name).write_text("{}")
        seen.append(describe_model(model_at(directory))[0])
    assert len({repr(identity) for identity in seen}) == len(seen)
    assert read_model(CLASSIFIER, directory).mismatched == {}


def test_a_checkpoint_whose_identity_was_whole_keeps_it(directory: Path) -> None:
    """The files and the digest of earlier versions."""
    old = (
        "config.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "*.safetensors",
    )
    files = sorted({file for pattern in old for file in directory.glob(pattern)})
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    digest = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()
    assert describe_model(model_at(directory))[0] == {"checkpoint_sha256": digest}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_never_waited_for(name: str, directory: Path) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    said = refusal(directory)
    assert "is a pipe" in said or "it has no config.json" in said
    assert read_config(directory) is None or name != "config.json"
