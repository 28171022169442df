"""Studies of the task kinds in tests/skeletons, which are installed by putting that folder on the path."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_study import environment, lorascope

import lorascope as api
from lorascope.pipeline import Outcome
from lorascope.registry import TASKS

SKELETONS = Path(__file__).parents[1] / "skeletons"


@contextmanager
def plugged_in(package: str) -> Iterator[None]:
    """The skeletons are plug-ins, here and in the processes that `environment` is given to. package: forgotten at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SKELETONS))
        patch.setattr(TASKS, "_entries", None)
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def kill_in_training(directory: Path, *, study: str = "study.yaml") -> None:
    """Runs the study in a directory until a run in the middle of its training has a checkpoint, and kills it there."""
    log = directory / "killed.log"
    work = directory / "store" / "work"
    with log.open("wb") as output:
        running = subprocess.Popen(
            lorascope("run", study, "--executor", "inline"), cwd=directory, stdout=output, stderr=subprocess.STDOUT,
            env=environment(LORASCOPE_CHECKPOINT_SECONDS="0.01"),
        )  # fmt: skip
        try:
            while not any(work.glob("*/checkpoint.pt")):
                assert running.poll() is None, log.read_text()
                time.sleep(0.005)
        finally:
            running.kill()
            running.wait()


def run_here(directory: Path, *, results: str = "results", store: str = "store") -> Outcome:
    """Runs the study in a directory in this process, to its end."""
    study = api.load(directory / "study.yaml")
    outcome = api.run(study, store=directory / store, results=directory / results, executor="inline")
    assert not outcome.failed, next(iter(outcome.failed.values())).text
    return outcome
