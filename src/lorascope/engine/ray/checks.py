"""What must hold on every machine before a study trusts it: one store, writable, the same code, clocks that agree.

Each machine proves it: it finds what the coordinator wrote in the store, leaves something for the coordinator to find,
and is refused a file that exists already, on which the locks rest. Clocks are compared for the record's sake alone: no
lock reads another machine's clock.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.engine import provenance
from lorascope.engine.ray.cluster import Machine, ray_module
from lorascope.engine.store.bucket import BucketTrouble
from lorascope.engine.store.directory import Store
from lorascope.engine.store.notes import notes_in
from lorascope.engine.store.opening import open_store
from lorascope.errors import EnvironmentProblem, LorascopeError

MAX_CLOCK_SKEW_S = 5.0
TIMEOUT_S = 60.0

_COORDINATOR = "coordinator"
_NUM_CLOCK_READINGS = 3


class LastingProblem(EnvironmentProblem):
    """What waiting does not mend: other versions than ours, a file system without exclusive creation."""


@dataclass(frozen=True)
class Findings:
    """What a machine found. sees_store: what the coordinator wrote. write_error: why it could not write, None if it could.
    is_exclusive: whether it was refused a file that was there already. versions: of everything results depend on.
    """

    sees_store: bool
    write_error: str | None
    is_exclusive: bool
    has_data: bool
    versions: Mapping[str, str]


def check_machines(
    machines: Sequence[Machine], store: Store, *, data_dir: Path | None
) -> tuple[dict[str, EnvironmentProblem], list[str]]:
    """What is wrong, by node id of the machine; and what a person should know. Raises StoreProblem if this very machine
    cannot write to the store.
    """
    token = uuid.uuid4().hex[:12]
    notes = notes_in(store, token)
    with store.guard():
        notes.leave(_COORDINATOR)
    try:
        asked = {m.node_id: _ask(m, examine, store.place, token, m.node_id, data_dir) for m in machines}
        found = {m.node_id: _answer(asked[m.node_id], m) for m in machines}
        here = versions()
        problems = {}
        for machine in machines:
            findings = found[machine.node_id]
            if isinstance(findings, Findings):
                has_written = findings.sees_store and findings.write_error is None
                is_seen = has_written and notes.is_there(machine.node_id)
                findings = judge(
                    findings, machine.name, store=store.place, data_dir=data_dir, is_seen=is_seen, here=here
                )
            if findings is not None:
                problems[machine.node_id] = findings
        sound = [machine for machine in machines if machine.node_id not in problems]
        skews = {machine.name: clock_skew_s(lambda m=machine: _answer(_ask(m, time.time), m)) for machine in sound}
        return problems, [text for name, skew in skews.items() if (text := judge_clock(name, *skew))]
    finally:
        notes.forget()


def examine(place: str, token: str, name: str, data_dir: Path | None) -> Findings:
    """Runs on the machine in question, which leaves a note `name` for the coordinator."""
    sees_store, write_error, is_exclusive = True, None, True
    try:
        notes = notes_in(open_store(place), token)
        sees_store = notes.is_there(_COORDINATOR)
        if sees_store:
            notes.leave(name)
            is_exclusive = notes.is_refused(_COORDINATOR)
    except BucketTrouble as error:
        write_error = error.message
    except OSError as error:
        write_error = os.strerror(error.errno) if error.errno else str(error)
    except LorascopeError as error:
        write_error = error.message
    has_data = data_dir is None or data_dir.is_dir()
    return Findings(sees_store, write_error, is_exclusive, has_data, versions())


def versions() -> dict[str, str]:
    """Of Python, the packages results depend on, and lorascope's own files, which may differ under one version."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[2]
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **provenance.versions(), "lorascope's files": digest.hexdigest()[:8]}


def judge(
    found: Findings, name: str, *, store: str, data_dir: Path | None, is_seen: bool, here: Mapping[str, str]
) -> EnvironmentProblem | None:
    """What is wrong with machine `name`, None if nothing. is_seen: whether what it wrote has arrived here. here: versions."""
    if not found.sees_store or (found.write_error is None and not is_seen):
        unseen = (
            "it does not see what this machine writes" if not found.sees_store else "what it writes is not seen here"
        )
        return EnvironmentProblem(
            f"the store is not shared with {name}: {unseen}",
            hint="Give `ray start` there the same AWS_ENDPOINT_URL as here."
            if "://" in store
            else "Put the store where every machine mounts one file system at the same path (NFS, Lustre, CephFS), and name "
            "that path with --store.",
            where=store,
        )
    if found.write_error is not None:
        return EnvironmentProblem(
            f"{name} cannot write to the store ({found.write_error})",
            hint='`pip install "lorascope[s3]"` there, and give its `ray start` the credentials and AWS_* variables.'
            if "://" in store
            else "Run `ray start` there as a user who may write to it: the same one on every machine is simplest.",
            where=store,
        )
    if not found.is_exclusive:
        return LastingProblem(
            f"the store's file system let {name} create a file that was there already, so no lock can hold",
            hint="Use a file system with exclusive creation (NFSv4, Lustre, CephFS); object storage mounted as one has none.",
            where=store,
        )
    if not found.has_data:
        return EnvironmentProblem(
            f"{name} has no directory {data_dir}",
            hint="--data names a directory that every machine sees at the same path.",
        )
    if differing := [package for package in here if found.versions.get(package) != here[package]]:
        theirs = ", ".join(f"{package} {found.versions.get(package, 'missing')}" for package in differing)
        ours = ", ".join(f"{package} {here[package]}" for package in differing)
        return LastingProblem(
            f"{name} has {theirs}; this machine has {ours}",
            hint="Install the same on every machine (`pip install -c constraints.txt ...`): results of different versions "
            "must not be mixed in one study.",
        )
    return None


def clock_skew_s(read_their_clock: Callable[[], Any]) -> tuple[float, float]:
    """How far their clock is ahead of ours, and how uncertain that is: by the quickest of a few answers."""
    readings = []
    for _ in range(_NUM_CLOCK_READINGS):
        asked = time.time()
        theirs = read_their_clock()
        answered = time.time()
        if isinstance(theirs, float):
            readings.append(((answered - asked) / 2, theirs - (asked + answered) / 2))
    uncertain, ahead = min(readings, default=(0.0, 0.0))
    return ahead, uncertain


def judge_clock(name: str, ahead_s: float, uncertain_s: float) -> str | None:
    """What a person should know of a clock that is off; None if it agrees with ours."""
    if abs(ahead_s) - uncertain_s <= MAX_CLOCK_SKEW_S:
        return None
    direction = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of {name} is {abs(ahead_s):.0f} s {direction} this machine's: times in logs and records will not agree "
        "(locks and results do not depend on them); let NTP set it"
    )


def _ask(machine: Machine, function: Callable[..., Any], *arguments: Any) -> Any:
    """The future answer of `function`, called on `machine` even if all of that is taken."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
    remote = ray_module().remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_calling(function))
    return remote.remote(*arguments)


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ray takes no built-in function such as `time.time`."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def _answer(asked: Any, machine: Machine) -> Any:
    """What came, or the EnvironmentProblem why nothing did."""
    ray = ray_module()
    try:
        return ray.get(asked, timeout=TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        return EnvironmentProblem(
            f"{machine.name} did not answer within {TIMEOUT_S:.0f} s",
            hint="A file system that hangs there, or a machine that is overloaded: see `ray status`, and try `ls` of the "
            "store's directory there.",
        )
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return EnvironmentProblem(
            f"{machine.name} cannot run lorascope: {lines[-1] if lines else type(error).__name__}",
            hint="Install lorascope there, in the environment whose `ray start` was run.",
        )
