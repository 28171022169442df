"""Ray from outside of a cluster: what is said when there is none, and what is demanded of a machine before it works."""

from __future__ import annotations

import dataclasses
import socket
import sys
import time
from pathlib import Path

import pytest
from small_study import run, write_small_study

from lorascope.engine.ray import checks as ray_checks
from lorascope.engine.ray import cluster as ray_cluster
from lorascope.engine.ray.checks import Findings, clock_skew_s, examine, judge, judge_clock
from lorascope.engine.ray.executor import RayExecutor
from lorascope.engine.store import notes
from lorascope.engine.store.directory import Store
from lorascope.errors import EnvironmentProblem, LorascopeError, StudyError

VERSIONS = {"python": "3.11", "torch": "2.13.0", "lorascope's files": "0a1b2c3d"}
SOUND = Findings(sees_store=True, write_error=None, is_exclusive=True, has_data=True, versions=VERSIONS)
SHARED = (
    "\n  hint: Put the store where every machine mounts one file system at the same path (NFS, Lustre, CephFS), and name "
    "that path with --store."
)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))


def refusal(tmp_path: Path, address: str | None) -> LorascopeError:
    with pytest.raises(LorascopeError) as refused:
        RayExecutor(Store(tmp_path / "store"), address=address).prepare()
    assert not (tmp_path / "store").exists()
    return refused.value


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    error = refusal(tmp_path, "127.0.0.1:6379")
    assert type(error) is EnvironmentProblem
    assert str(error) == (
        "--executor ray needs the package `ray`, which is not installed\n"
        '  hint: Install it on every machine of the cluster: `pip install "lorascope[ray]"`.'
    )


def test_a_cluster_that_does_not_answer_is_named_within_seconds(tmp_path):
    address = f"127.0.0.1:{unused_port()}"
    error = refusal(tmp_path, address)
    assert error.exit_code == 3
    assert str(error) == (
        f"the Ray cluster at {address} cannot be reached (Connection refused)\n"
        "  hint: Its head is started with `ray start --head --port=6379`; a firewall between machines must let Ray through."
    )


def test_a_cluster_of_this_machine_that_died_is_not_waited_for(tmp_path):
    note = tmp_path / "tmp" / "ray" / "ray_current_cluster"
    note.parent.mkdir(parents=True)
    note.write_text(f"127.0.0.1:{unused_port()}")
    assert f"the Ray cluster at {note.read_text()} cannot be reached" in str(refusal(tmp_path, None))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gpu1", "--address gpu1 is not host:port"),
        (
            "ray://gpu1:10001",
            "--address ray://gpu1:10001 is not the address of a cluster's head, which is written host:port",
        ),
    ],
)
def test_an_address_that_is_none_is_the_users_mistake(tmp_path, address, message):
    error = refusal(tmp_path, address)
    assert type(error) is StudyError
    assert error.message == message


def test_the_command_line_says_it_without_a_traceback_and_computes_nothing(tmp_path):
    write_small_study(tmp_path)
    address = f"127.0.0.1:{unused_port()}"
    done = run(tmp_path, "run", "study.yaml", "--executor", "ray", "--address", address)
    assert done.returncode == 3
    assert f"the Ray cluster at {address} cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()
    done = run(tmp_path, "run", "study.yaml", "--address", address)
    assert done.returncode == 2
    assert f"--address {address} has no effect on the local executor" in done.stderr


def test_a_device_that_ray_cannot_give_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"--device cuda:0 names no kind of device that Ray gives away"):
        RayExecutor(Store(tmp_path / "store"), devices=["cuda:0"])


# -------------------------------------------------------------------------------------------------- what is demanded


def verdict(found: Findings, *, is_seen: bool = True) -> str | None:
    problem = judge(found, "gpu2", store="/shared", data_dir=Path("/data"), is_seen=is_seen, here=VERSIONS)
    return str(problem) if problem else None


def test_a_sound_machine_passes():
    assert verdict(SOUND) is None


@pytest.mark.parametrize(
    ("changes", "is_seen", "text"),
    [
        (
            {"sees_store": False},
            True,
            f"/shared: the store is not shared with gpu2: it does not see what this machine writes{SHARED}",
        ),
        ({}, False, f"/shared: the store is not shared with gpu2: what it writes is not seen here{SHARED}"),
        (
            {"write_error": "Permission denied"},
            False,
            "/shared: gpu2 cannot write to the store (Permission denied)\n"
            "  hint: Run `ray start` there as a user who may write to it: the same one on every machine is simplest.",
        ),
        (
            {"is_exclusive": False},
            True,
            "/shared: the store's file system let gpu2 create a file that was there already, so no lock can hold\n"
            "  hint: Use a file system with exclusive creation (NFSv4, Lustre, CephFS); object storage mounted as one has "
            "none.",
        ),
        (
            {"has_data": False},
            True,
            "gpu2 has no directory /data\n  hint: --data names a directory that every machine sees at the same path.",
        ),
        (
            {"versions": {"python": "3.11", "torch": "2.12.1"}},
            True,
            "gpu2 has torch 2.12.1, lorascope's files missing; this machine has torch 2.13.0, lorascope's files 0a1b2c3d\n"
            "  hint: Install the same on every machine (`pip install -c constraints.txt ...`): results of different "
            "versions must not be mixed in one study.",
        ),
    ],
)
def test_a_machine_that_would_spoil_the_study_is_named_with_the_remedy(changes, is_seen, text):
    assert verdict(dataclasses.replace(SOUND, **changes), is_seen=is_seen) == text


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [({"sees_store": False}, "the same AWS_ENDPOINT_URL"), ({"write_error": "no credentials"}, "credentials and AWS_")],
)
def test_of_a_bucket_the_remedy_is_another(changes, remedy):
    found = dataclasses.replace(SOUND, **changes)
    problem = judge(found, "gpu2", store="s3://b/place", data_dir=None, is_seen=True, here=VERSIONS)
    assert problem is not None
    assert problem.where == "s3://b/place"
    assert remedy in (problem.hint or "")


def test_a_machine_with_another_disk_at_the_path_does_not_see_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "_VISIBLE_WITHIN_S", 0.2)
    for disk in ("shared", "other"):
        (tmp_path / disk / "checks" / "t").mkdir(parents=True)
    (tmp_path / "shared" / "checks" / "t" / "coordinator").write_text("t")
    found = examine(str(tmp_path / "shared"), "t", "node", None)
    assert found == dataclasses.replace(SOUND, versions=ray_checks.versions())
    assert (tmp_path / "shared" / "checks" / "t" / "node").read_text() == "node"
    assert not examine(str(tmp_path / "other"), "t", "node", None).sees_store


def test_a_machine_that_cannot_write_says_why(tmp_path):
    place = tmp_path / "checks" / "t"
    place.mkdir(parents=True)
    (place / "coordinator").write_text("t")
    (place / "node.draft").mkdir()  # stands in the way, also of a superuser
    assert examine(str(tmp_path), "t", "node", None).write_error == "Is a directory"


def test_versions_tell_lorascopes_own_files_apart(tmp_path, monkeypatch):
    before = ray_checks.versions()
    package = tmp_path / "lorascope"
    (package / "engine" / "ray").mkdir(parents=True)
    (package / "engine" / "ray" / "checks.py").write_text("changed = True\n")
    monkeypatch.setattr(ray_checks, "__file__", str(package / "engine" / "ray" / "checks.py"))
    after = ray_checks.versions()
    assert [name for name in before if before[name] != after[name]] == ["lorascope's files"]
    assert "torch" in before


@pytest.mark.parametrize(("skew_s", "is_told"), [(0.0, False), (3.0, False), (-90.0, True), (42.0, True)])
def test_clock_skew_is_told_with_its_size(skew_s, is_told):
    ahead_s, uncertain_s = clock_skew_s(lambda: time.time() + skew_s)
    assert ahead_s == pytest.approx(skew_s, abs=0.5)
    text = judge_clock("gpu2", ahead_s, uncertain_s)
    assert (text is not None) is is_told
    if text is not None:
        direction = "ahead of" if skew_s > 0 else "behind"
        assert text == (
            f"the clock of gpu2 is {abs(skew_s):.0f} s {direction} this machine's: times in logs and records will not "
            "agree (locks and results do not depend on them); let NTP set it"
        )


def test_a_slow_answer_is_no_clock_skew():
    assert judge_clock("gpu2", 8.0, 6.0) is None


def test_a_machine_is_kept_for_measuring_by_its_label():
    machine = ray_cluster.Machine("id", "gpu2", num_cpus=8, num_gpus=1, labels={"lorascope": "measure"})
    assert machine.is_for_measuring
    assert not dataclasses.replace(machine, labels={"lorascope": "other"}).is_for_measuring
