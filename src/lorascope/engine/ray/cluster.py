"""The Ray cluster a study runs on: joining it, and what machines it has.

Ray says which machines are alive, keeps the books on their processors and GPUs, and starts and ends processes there. All
else (what to run, on which warm worker, what to do about a loss) is the engine's, as on one machine.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem, StudyError

CONNECT_TIMEOUT_S = 5.0
HEAD_WAIT_S = 20.0  # a head may be restarted; Ray itself gives up after a minute
MEASURING_LABEL = ("lorascope", "measure")  # `ray start --labels="lorascope=measure"`


@dataclass(frozen=True)
class Machine:
    """A live machine of the cluster, with what Ray may give away of it. name: the host's, for people. memory_bytes: None
    if the machine was started without a figure.
    """

    node_id: str
    name: str
    num_cpus: int
    num_gpus: int
    memory_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_for_measuring(self) -> bool:
        """Whether it is labelled for steps that must be alone."""
        key, value = MEASURING_LABEL
        return self.labels.get(key) == value


def ray_module() -> Any:
    """The `ray` package. Raises EnvironmentProblem if it is not installed."""
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EnvironmentProblem(
            "--executor ray needs the package `ray`, which is not installed",
            hint='Install it on every machine of the cluster: `pip install "lorascope[ray]"`.',
        ) from None
    return ray


def connect(address: str | None) -> bool:
    """Join the cluster at `address` ("host:port"; None: RAY_ADDRESS, else the one this machine is part of). False if this
    process had joined one already, which is then used. Raises EnvironmentProblem within seconds if that is impossible.
    """
    ray = ray_module()
    if ray.is_initialized():
        return False
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_reachable(wanted if wanted != "auto" else _address_here())
    try:
        ray.init(address=wanted, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except ConnectionError as error:
        if wanted != "auto":
            raise _refused(wanted, str(error)) from error
        raise EnvironmentProblem(
            "this machine is part of no Ray cluster",
            hint="Start one with `ray start --head` (docs/scaling-out.md), or name one with --address. One machine needs "
            "none: --executor local.",
        ) from None
    except (Exception, SystemExit) as error:  # whatever Ray raises: versions that differ, no Ray on this machine
        raise _refused(wanted, str(error)) from error
    return True


def machines() -> list[Machine]:
    """Those that are alive and have a processor to give away, in a stable order. Raises EnvironmentProblem if the head of
    the cluster is gone, and does not come back within a while."""
    deadline = time.monotonic() + HEAD_WAIT_S
    while not is_head_there():  # asking Ray would end this process without a word of ours
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"the head of the Ray cluster at {_head()} is gone",
                hint="What is finished is kept. `ray stop` on every machine, start the cluster again, and give the same "
                "command.",
            )
        time.sleep(1.0)
    found = [_machine(node) for node in ray_module().nodes() if node["Alive"]]
    return sorted((m for m in found if m.num_cpus), key=lambda machine: (machine.name, machine.node_id))


def is_head_there() -> bool:
    """Whether the head of the cluster answers."""
    return _refusal(_head()) is None


def _head() -> str:
    """The address of the cluster this process has joined."""
    return ray_module().get_runtime_context().gcs_address


def _machine(node: Mapping[str, Any]) -> Machine:
    resources = node["Resources"]
    memory = resources.get("memory")
    return Machine(
        node["NodeID"],
        node["NodeManagerHostname"],
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        memory_bytes=int(memory) if memory is not None else None,
        labels=dict(node.get("Labels") or {}),
    )


def _address_here() -> str | None:
    """The head of the cluster that this machine was last made part of: `ray start` notes it, also where that died since."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    return note.read_text().strip() or None if note.is_file() else None


def _check_reachable(address: str | None) -> None:
    """Ray itself would try for minutes. None: there is no address to try."""
    if address is None:
        return
    if "://" in address:
        raise StudyError(
            f"--address {address} is not the address of a cluster's head, which is written host:port",
            hint="Run the command on a machine of the cluster (`ray job submit -- lorascope run ...` does that from afar).",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise StudyError(
            f"--address {address} is not host:port", hint="`ray start --head` prints it; the port is 6379."
        )
    if (refusal := _refusal(address)) is not None:
        raise EnvironmentProblem(
            f"the Ray cluster at {address} cannot be reached ({refusal})",
            hint="Its head is started with `ray start --head --port=6379`; a firewall between machines must let Ray through.",
        )


def _refusal(address: str) -> str | None:
    """Why nothing takes a connection at "host:port", None if something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _refused(address: str, text: str) -> EnvironmentProblem:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return EnvironmentProblem(
        f"the Ray cluster at {address} cannot be joined: {lines[0] if lines else 'it gave no reason'}",
        hint="The command must run on a machine of the cluster (`ray start --address=HOST:6379` makes it one), with the same "
        "versions of Python and Ray; `ray status` there says how the cluster is.",
    )
