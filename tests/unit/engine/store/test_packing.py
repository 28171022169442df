"""A packed store unpacks to a store; without weights its steps are finished, and say what they lack."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from engine_steps import make

from lorascope.cli.store_verbs import bytes_of
from lorascope.engine.store.directory import Store
from lorascope.engine.store.integrity import CorruptArtifact, FilesLeftOut
from lorascope.engine.store.packing import pack_store
from lorascope.errors import StudyError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for value in range(3):
        step = make("count", value=value)
        staging = store.stage(step.id)
        (staging / "export").mkdir()
        (staging / "export" / "model.safetensors").write_bytes(bytes([value]) * 40_000)
        (staging / "scores.parquet").write_bytes(b"scores")
        store.commit(step, staging, result={"value": value}, provenance={})
    store.remember("engines", {"seen": []})
    return store


def unpack(files: tuple[Path, ...], to: Path) -> Store:
    to.mkdir()
    content = b"".join(file.read_bytes() for file in files)
    subprocess.run(["tar", "xz" if ".gz" in files[0].name else "x", "-C", str(to)], input=content, check=True)
    return Store(to)


def test_pieces_joined_are_the_store_again(store, tmp_path):
    packed = pack_store(store, tmp_path / "all.tar", without_weights=False, piece_bytes=50_000)
    assert [file.name for file in packed.files] == ["all.tar.000", "all.tar.001", "all.tar.002"]
    assert max(file.stat().st_size for file in packed.files) == 50_000
    assert (packed.num_artifacts, packed.num_left_out) == (3, 0)
    there = unpack(packed.files, tmp_path / "there")
    assert there.ids() == store.ids()
    assert [problem for step_id in there.ids() for problem in there.verify(step_id)] == []
    assert there.recall("engines") == {"seen": []}


def test_without_weights_steps_are_finished_and_say_what_they_lack(store, tmp_path):
    packed = pack_store(store, tmp_path / "light.tar.gz", without_weights=True, piece_bytes=None)
    assert (packed.num_left_out, packed.left_out_bytes) == (3, 120_000)
    assert packed.files[0].stat().st_size < 5_000
    there = unpack(packed.files, tmp_path / "there")
    for step_id in store.ids():
        artifact = there.artifact(step_id)
        assert there.has(step_id) and there.verify(step_id) == []
        assert artifact.left_out == ["export/model.safetensors"]
        assert artifact.file("scores.parquet").read_bytes() == b"scores"
        with pytest.raises(FilesLeftOut):
            artifact.file("export")
    again = pack_store(there, tmp_path / "again.tar", without_weights=False, piece_bytes=None)
    assert again.num_left_out == 3, "what is missing stays known as left out"


def test_a_damaged_artifact_is_not_packed(store, tmp_path):
    victim = store.artifact(store.ids()[1])
    (victim.path / "scores.parquet").write_bytes(b"sc0res")
    with pytest.raises(CorruptArtifact):
        pack_store(store, tmp_path / "all.tar", without_weights=True, piece_bytes=None)
    assert not list(tmp_path.glob("*all.tar*")), "half a pack is not left behind"


def test_a_pack_replaces_nothing_and_needs_something(store, tmp_path):
    (tmp_path / "there.tar").write_text("mine")
    with pytest.raises(StudyError, match="is there already"):
        pack_store(store, tmp_path / "there.tar", without_weights=True, piece_bytes=None)
    with pytest.raises(StudyError, match="nothing to pack"):
        pack_store(Store(tmp_path / "empty"), tmp_path / "x.tar", without_weights=True, piece_bytes=None)
    with pytest.raises(StudyError, match="too small"):
        pack_store(store, tmp_path / "x.tar", without_weights=True, piece_bytes=1)


@pytest.mark.parametrize(("text", "size"), [("60MB", 60_000_000), ("1.5 gb", 1_500_000_000), ("100000", 100_000)])
def test_sizes_are_read_with_their_units(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "60MiB", "1e3", "²MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(StudyError, match="is not a size"):
        bytes_of(text)
