"""Studies of the task kinds in tests/skeletons, which are installed by putting that folder on the path."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from small_study import environment, lorascope, what_was_measured

from lorascope import api
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.registry import TASKS

SKELETONS = Path(__file__).parents[1] / "skeletons"
BEFORE_TRAINING = ("data", "tokens", "baseline", "sanity")


@contextmanager
def plugged_in(package: str) -> Iterator[None]:
    """The skeletons are plug-ins, here and in the processes that `environment` is given to. package: forgotten at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in those processes, whose numbers are compared
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SKELETONS))
        patch.setattr(TASKS, "_entries", None)
        yield
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def run_killed(directory: Path) -> None:
    """Runs the study in a directory, kills it in the middle of a run's training, and runs it to its end."""
    log, work = directory / "killed.log", directory / "store" / "work"
    with log.open("wb") as output:
        running = subprocess.Popen(
            lorascope("run", "study.yaml", "--executor", "inline"), cwd=directory, stdout=output,
            stderr=subprocess.STDOUT, env=environment(LORASCOPE_CHECKPOINT_SECONDS="0.01"),
        )  # fmt: skip
        try:
            while not any(work.glob("*/checkpoint.pt")):
                assert running.poll() is None, log.read_text()
                time.sleep(0.005)
        finally:
            running.kill()
            running.wait()
    run_here(directory)
    assert max(run.result["resumed"] for run in artifacts(directory, "train")) == 1, "no run was taken up"


def run_here(directory: Path) -> Path:
    """Runs the study in a directory in this process, to its end."""
    study = api.load(directory / "study.yaml")
    outcome = api.run(study, store=directory / "store", results=directory / "results", executor="inline")
    assert not outcome.failed, next(iter(outcome.failed.values()))
    return directory


def run_undisturbed(finished: Path, directory: Path) -> Path:
    """Trains and measures a finished study once more in another directory, on what was prepared for it."""
    for entry in finished.iterdir():
        if entry.name not in ("store", "results"):
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, directory / entry.name)
    for kind in BEFORE_TRAINING:
        shutil.copytree(finished / "store" / "artifacts" / kind, directory / "store" / "artifacts" / kind)
    return run_here(directory)


def artifacts(directory: Path, kind: str) -> list[Artifact]:
    return list(Store(directory / "store").artifacts(kind))


def gates(directory: Path) -> list[dict[str, Any]]:
    """Every gate of the study, of steps and of arms."""
    (analysis,) = artifacts(directory, "analysis")
    return json.loads(analysis.file("facts.json").read_text())["gates"]


def report(directory: Path) -> str:
    (page,) = (directory / "results").glob("*/ANALYSIS_REPORT.md")
    return page.read_text()


def measured(directory: Path) -> pd.DataFrame:
    """What chance and clocks have no part in."""
    (folder,) = (directory / "results").iterdir()
    return what_was_measured(folder)


def events(directory: Path) -> str:
    (log,) = (directory / "results").glob("*/events.jsonl")
    return log.read_text()
