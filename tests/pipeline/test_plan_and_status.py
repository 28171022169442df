"""A study followed from other processes while it runs, and planned on what it left."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from small_study import environment, lorascope, run, write_small_study

from lorascope import api
from lorascope.plan.status import StudyStatus

LONGER = ["--set", "train.epochs=8"]  # so that there is something to see


def test_a_study_is_followed_to_its_end_and_plans_the_next_seeds(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    study = api.load(path, overrides=["train.epochs=8"])
    reader = api.watch(study, store=tmp_path / "store", results=tmp_path / "results")
    assert reader.read().running == ()
    options = {
        "cwd": tmp_path,
        "env": environment(),
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    running = subprocess.Popen(lorascope("run", "study.yaml", "--device", "cpu", *LONGER, "--json"), **options)  # type: ignore[call-overload]
    watching = subprocess.Popen(lorascope("status", "study.yaml", *LONGER, "--watch", "--json"), **options)  # type: ignore[call-overload]
    seen: list[StudyStatus] = []
    while running.poll() is None:
        seen.append(reader.read())
        time.sleep(0.1)
    assert running.returncode == 0
    check_what_was_seen(seen)
    last = reader.read()
    assert last.is_over
    assert {state for _, _, state in last.states} == {"done"}
    lines = watching.communicate(timeout=60)[0].splitlines()
    assert watching.returncode == 0
    assert json.loads(lines[-1])["is_over"]
    assert not any(json.loads(line)["is_over"] for line in lines[:-1])

    planned = run(tmp_path, "plan", "study.yaml", "--device", "cpu", *LONGER, "--set", "seeds=[1, 2, 3]", "--json")
    found = json.loads(planned.stdout)
    assert (
        found["total"]["to_run"] == 2 + 2 + 2 + 1
    )  # a run and its evaluation for each method, drift anew, the analysis
    (seconds,) = {step["estimate"]["seconds"] for step in found["steps"] if step["label"] == "tiny / sentiment / full / 3"
                  and step["kind"] == "train"}  # fmt: skip
    measured = [o.seconds for o in history(tmp_path) if "-full-" in o.step.id and o.kind == "train"]
    assert min(measured) * 0.5 <= seconds <= max(measured) * 2


def history(directory: Path):
    from lorascope.engine.store.directory import Store
    from lorascope.plan.history import read_history

    return read_history(Store(directory / "store"), device="cpu").observations


def check_what_was_seen(seen: list[StudyStatus]) -> None:
    """Runs with their updates and losses, in a process that is not ours; a time left; progress that only grows."""
    gangs = [gang for status in seen for gang in status.running if gang.kind == "train"]
    assert gangs
    members = [member for gang in gangs for member in gang.members]
    assert any(member.done and member.total == 240 and member.loss is not None for member in members)
    assert all(gang.is_of_study for gang in gangs)
    assert any(status.left is not None and status.left.seconds > 0 for status in seen)
    done = [sum(state == "done" for _, _, state in status.states) for status in seen]
    assert done == sorted(done)
    assert not any(status.is_over for status in seen[:-1] if status.running)
