"""What is read is compared with its record first, and state files that are torn say so or heal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from engine_steps import make

from lorascope.engine.store import integrity
from lorascope.engine.store.artifact import RECORD, Artifact
from lorascope.engine.store.directory import Store
from lorascope.engine.store.integrity import CorruptArtifact, FilesLeftOut, sealed, spelled
from lorascope.engine.store.lock import StepLock


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(store: Store) -> Artifact:
    step = make("count", value=1)
    staging = store.stage(step.id)
    (staging / "export").mkdir()
    (staging / "export" / "weights.safetensors").write_bytes(b"weights")
    (staging / "scores.parquet").write_bytes(b"scores")
    return store.commit(step, staging, result={"value": 1, "text": "ü"}, provenance={})


def change_record(artifact: Artifact, *, seal: bool, **changes) -> None:
    record = {**json.loads((artifact.path / RECORD).read_text()), **changes}
    (artifact.path / RECORD).write_text(spelled(sealed(record) if seal else record))


def test_flipped_bits_are_named_before_the_file_is_used(store, artifact):
    (artifact.path / "export" / "weights.safetensors").write_bytes(b"wEights")
    assert artifact.file("scores.parquet").read_bytes() == b"scores"
    for read in (lambda: artifact.file("export"), lambda: artifact.file("export/weights.safetensors")):
        with pytest.raises(CorruptArtifact, match=r"export/weights.safetensors is not the file") as caught:
            read()
        assert "lorascope run STUDY --repair" in str(caught.value)
        assert caught.value.step_id == artifact.id
    with pytest.raises(CorruptArtifact):
        _ = artifact.checked_path


def test_a_file_is_summed_once_a_process_until_it_changes(artifact, monkeypatch):
    summed = []
    monkeypatch.setattr(
        integrity, "sha256_of", lambda file, sum_of=integrity.sha256_of: summed.append(file.name) or sum_of(file)
    )
    for _ in range(3):
        artifact.file("scores.parquet")
        Artifact(artifact.path).file("scores.parquet")
    assert summed == ["scores.parquet"]
    os.utime(artifact.path / "scores.parquet", ns=(1, 1))
    artifact.file("scores.parquet")
    assert summed == ["scores.parquet"] * 2
    (artifact.path / "scores.parquet").write_bytes(b"longer than before")
    with pytest.raises(CorruptArtifact, match="has 18 bytes, 6 were committed"):
        artifact.file("scores.parquet")
    assert summed == ["scores.parquet"] * 2, "the size alone says it"


def test_an_edited_record_breaks_its_seal(store, artifact):
    change_record(artifact, seal=False, result={"value": 2})
    (problem,) = store.verify(artifact.id)
    assert problem == f"{artifact.id}: the record was changed after the commit (its seal does not agree)"
    with pytest.raises(CorruptArtifact, match="its seal does not agree"):
        _ = store.artifact(artifact.id).result


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"id": 1}', "[" * 100_000])
def test_what_is_no_record_is_damage_and_never_a_traceback(store, artifact, content):
    (artifact.path / RECORD).write_text(content)
    with pytest.raises(CorruptArtifact, match="is not a record"):
        _ = store.artifact(artifact.id).result
    assert store.verify(artifact.id)
    assert list(store.glances()) == []


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "export/../../x"])
def test_a_record_that_names_files_elsewhere_is_damage(store, artifact, name):
    files, sums = {**artifact.record["files"], name: 1}, {**artifact.record["sha256"], name: "0" * 64}
    change_record(artifact, seal=True, files=files, sha256=sums)
    with pytest.raises(CorruptArtifact, match="is not a record"):
        _ = store.artifact(artifact.id).checked_path


def test_a_record_that_cannot_be_opened_is_damage(store, artifact):
    (artifact.path / RECORD).unlink()
    (artifact.path / RECORD).mkdir()
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        _ = store.artifact(artifact.id).result
    assert store.verify(artifact.id) and list(store.glances()) == []


def test_a_record_of_before_there_were_seals_is_read(store, artifact):
    record = json.loads((artifact.path / RECORD).read_text())
    del record["seal"]
    (artifact.path / RECORD).write_text(json.dumps(record))
    found = store.artifact(artifact.id)
    assert found.result == {"value": 1, "text": "ü"}
    assert found.file("scores.parquet").exists() and store.verify(artifact.id) == []


def test_a_damaged_artifact_is_set_aside_and_not_deleted(store, artifact):
    place = store.set_aside(artifact.id)
    assert (Path(place) / "scores.parquet").read_bytes() == b"scores"
    assert not store.has(artifact.id) and store.ids() == []
    assert store.set_aside(artifact.id) is None


def test_left_out_files_are_a_state_and_not_damage(store, artifact):
    change_record(artifact, seal=True, left_out=["export/weights.safetensors"])
    file = artifact.path / "export" / "weights.safetensors"
    file.unlink()
    found = store.artifact(artifact.id)
    assert store.has(artifact.id) and store.verify(artifact.id) == []
    assert found.file("scores.parquet").exists()
    with pytest.raises(FilesLeftOut, match="the store was packed without it") as caught:
        found.file("export")
    assert f"remove {artifact.path} " in str(caught.value)
    file.write_bytes(b"weights")  # the remedy: the file is brought back
    assert found.file("export/weights.safetensors").read_bytes() == b"weights"
    file.write_bytes(b"wEights")
    with pytest.raises(CorruptArtifact):
        found.file("export")


@pytest.mark.parametrize("name", ["../../secret", "..", "a/b", "/etc/passwd", "", "x\0y", ".hidden", "a\nb"])
def test_what_is_no_step_id_leads_nowhere(store, artifact, name, tmp_path):
    (tmp_path / "secret.json").write_text('{"step_id": "x", "error": "e", "message": "told"}')
    assert not store.has(name)
    assert store.failure(name) is None
    with pytest.raises(KeyError):
        store.load_step(name)


def test_a_torn_failure_says_that_it_is_and_is_replaced(store):
    (store.root / "failures").mkdir(parents=True)
    (store.root / "failures" / "train-x.json").write_text('{"step_id": "tra')
    failure = store.failure("train-x")
    assert failure is not None and "what was recorded of it cannot be read" in failure.text
    assert set(store.failures(["train-x", "train-y"])) == {"train-x"}


def test_a_torn_step_is_read_from_its_artifact(store, artifact):
    (store.root / "steps").mkdir(exist_ok=True)
    (store.root / "steps" / f"{artifact.id}.json").write_bytes(b'{"kind": "\xff')
    assert store.load_step(artifact.id).id == artifact.id
    store.save_step(artifact.step)
    assert json.loads((store.root / "steps" / f"{artifact.id}.json").read_text())["kind"] == artifact.step.kind


def test_what_was_remembered_is_found_and_heals_when_torn(store):
    assert store.recall("engines") == {}
    store.remember("engines", {"seen": [1]})
    assert store.recall("engines") == {"seen": [1]}
    (store.root / "remembered" / "engines.json").write_bytes(b'{"seen"')
    assert store.recall("engines") == {}


@pytest.mark.parametrize("name", ["1", "²", "7" * 30, "00000001x"])
def test_a_stray_file_in_a_lock_is_nobodys(tmp_path, name):
    place = tmp_path / "lock"
    place.mkdir()
    (place / name).write_text("")
    assert StepLock(place).holder() is None


def test_a_lock_that_cannot_be_read_never_loops(tmp_path):
    place = tmp_path / "lock"
    place.mkdir()
    (place / "00000003").symlink_to(tmp_path / "nowhere")
    now = [0.0]
    lock = StepLock(place, clock=lambda: now[0])
    assert lock.holder() is not None, "only the timeout can call it free"
    now[0] = 1000.0
    assert lock.holder() is None


@pytest.mark.parametrize("part", ["step", "result", "provenance", "files", "sha256"])
def test_a_record_with_a_part_of_another_kind_is_damage(store, artifact, part):
    change_record(artifact, seal=True, **{part: None})
    with pytest.raises(CorruptArtifact, match="is not a record"):
        _ = Artifact(artifact.path).record
    assert "cannot be read" in store.verify(artifact.id)[0]
    assert list(store.glances()) == []
