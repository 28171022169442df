"""The executor's books on machines and workers, without a cluster: who is asked again, and that everyone is ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorascope.engine.events import Event, Notice
from lorascope.engine.ray import executor as ray_executor
from lorascope.engine.ray import host as ray_host
from lorascope.engine.ray import refusals as ray_refusals
from lorascope.engine.ray.checks import Findings, LastingProblem, judge
from lorascope.engine.ray.cluster import Machine
from lorascope.engine.ray.executor import RayExecutor
from lorascope.engine.store.directory import Store
from lorascope.errors import EnvironmentProblem

FIRST, SECOND = Machine("1", "gpu1", num_cpus=2, num_gpus=1), Machine("2", "gpu2", num_cpus=2, num_gpus=1)


class Lost(Exception):
    """Ray's word for a worker that is gone."""


class FakeCluster:
    """Two machines, of which the check finds what `problems` says; a clock that the test moves."""

    def __init__(self) -> None:
        self.machines = [FIRST]
        self.problems: dict[str, EnvironmentProblem] = {}
        self.now, self.asked = 1000.0, list[str]()
        self.waited: list[Any] = []
        self.is_left = False
        self.exceptions = SimpleNamespace(RayError=Lost)

    def check(
        self, machines: Sequence[Machine], store: Store, *, data_dir: Path | None
    ) -> tuple[dict[str, EnvironmentProblem], list[str]]:
        self.asked += [machine.name for machine in machines]
        return {m.node_id: self.problems[m.node_id] for m in machines if m.node_id in self.problems}, []

    def wait(self, awaited: list[Any], **_: Any) -> None:
        self.waited += awaited

    def shutdown(self) -> None:
        self.is_left = True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    fake = FakeCluster()
    monkeypatch.setattr(ray_executor, "connect", lambda address: True)
    monkeypatch.setattr(ray_executor, "machines", lambda: fake.machines)
    monkeypatch.setattr(ray_executor, "check_machines", fake.check)
    for module in (ray_executor, ray_host):
        monkeypatch.setattr(module, "is_head_there", lambda: True)
        monkeypatch.setattr(module, "ray_module", lambda: fake)
    monkeypatch.setattr(ray_executor, "time", SimpleNamespace(monotonic=lambda: fake.now, sleep=lambda seconds: None))
    yield fake


@pytest.fixture
def executor(cluster: FakeCluster, tmp_path: Path) -> RayExecutor:
    made = RayExecutor(Store(tmp_path / "store"))
    made.prepare()
    cluster.asked.clear()
    return made


def after(seconds: float, cluster: FakeCluster, executor: RayExecutor) -> tuple[list[str], list[str]]:
    """Who is asked when time has passed, and what a person is told."""
    cluster.now += seconds
    cluster.asked.clear()
    told: list[Event] = []
    executor.poll(told.append, timeout_s=0)
    return list(cluster.asked), [notice.text for notice in told if isinstance(notice, Notice)]


def workers_on(executor: RayExecutor) -> set[str]:
    return {place.machine.name for place in executor._all_slots()}


def test_a_machine_without_its_mount_is_asked_until_it_has_it(cluster, executor):
    cluster.machines = [FIRST, SECOND]
    cluster.problems = {"2": EnvironmentProblem("gpu2 has no directory /data")}
    asked, (told,) = after(10, cluster, executor)
    assert asked == ["gpu2"]
    assert told == (
        "gpu2 joined the cluster and is left out until it passes the check, which is made again from time to time: "
        "gpu2 has no directory /data"
    )
    assert after(ray_refusals.FIRST_WAIT_S - 1, cluster, executor) == ([], [])
    assert after(2, cluster, executor) == (["gpu2"], []), "the same reason is not told twice"
    assert after(2 * ray_refusals.FIRST_WAIT_S - 1, cluster, executor) == ([], []), "it waits longer each time"
    assert workers_on(executor) == {"gpu1"}
    cluster.problems = {}
    assert after(2, cluster, executor) == (["gpu2"], ["gpu2 passes the check now and takes part"])
    assert workers_on(executor) == {"gpu1", "gpu2"}


def test_a_machine_with_other_versions_is_asked_again_when_it_joins_anew(cluster, executor):
    cluster.machines = [FIRST, SECOND]
    cluster.problems = {"2": LastingProblem("gpu2 has torch 1; this machine has torch 2")}
    asked, (told,) = after(10, cluster, executor)
    assert (asked, "is left out for good: gpu2 has torch 1" in told) == (["gpu2"], True)
    assert after(1e6, cluster, executor) == ([], [])
    cluster.machines = [FIRST, Machine("3", "gpu2", num_cpus=2, num_gpus=1)]
    assert after(10, cluster, executor) == (["gpu2"], [])
    assert workers_on(executor) == {"gpu1", "gpu2"}


@pytest.mark.parametrize(
    ("found", "is_lasting"),
    [
        (Findings(True, None, True, True, {"torch": "1"}), True),
        (Findings(True, None, False, True, {"torch": "2"}), True),
        (Findings(True, None, True, False, {"torch": "2"}), False),
        (Findings(True, "No space left on device", True, True, {"torch": "2"}), False),
        (Findings(False, None, True, True, {"torch": "2"}), False),
    ],
)
def test_only_what_waiting_does_not_mend_is_for_good(found: Findings, is_lasting: bool):
    problem = judge(found, "gpu2", store="/s", data_dir=Path("/d"), is_seen=True, here={"torch": "2"})
    assert problem is not None and isinstance(problem, LastingProblem) is is_lasting


class FakeWorker:
    def __init__(self, *, asked: Exception | None = None, killed: Exception | None = None) -> None:
        self._asked, self._killed = asked, killed
        self.is_killed = False

    def is_ready(self) -> bool:
        if self._asked is not None:
            raise self._asked
        return True

    def stop(self) -> FakeWorker:
        return self

    def kill(self) -> None:
        self.is_killed = True
        if self._killed is not None:
            raise self._killed


@pytest.mark.parametrize("error", [Lost("gone"), ConnectionError("gone")])
def test_a_worker_that_is_lost_keeps_no_other_from_being_ended(cluster, executor, error):
    lost, other = FakeWorker(asked=error), FakeWorker()
    for place, worker in zip(executor._places, (lost, other), strict=True):
        place.worker = worker
    executor.close()
    assert cluster.waited == [other]
    assert lost.is_killed and other.is_killed and cluster.is_left


def test_what_goes_wrong_with_one_worker_is_raised_when_all_are_ended(cluster, executor):
    odd, other = FakeWorker(asked=RuntimeError("no thread left"), killed=RuntimeError("no thread left")), FakeWorker()
    for place, worker in zip(executor._places, (other, odd), strict=True):
        place.worker = worker
    with pytest.raises(RuntimeError, match="no thread left"):
        executor.close()
    assert odd.is_killed and other.is_killed and cluster.is_left
    executor.close()
