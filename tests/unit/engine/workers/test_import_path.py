"""A worker does not import what happens to lie where lorascope was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from engine_steps import make

from lorascope.engine.scheduler import execute
from lorascope.engine.store.directory import Store
from lorascope.engine.workers.local import LocalExecutor
from lorascope.engine.workers.process import import_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def test_the_current_directory_is_not_on_a_workers_path(here):
    found = import_path().split(os.pathsep)
    assert str(here) not in found and "" not in found
    assert set(found) >= {path for path in sys.path[2:] if path}


def test_a_directory_that_the_user_named_stays_on_it(here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{here}")
    assert str(here) in import_path().split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", f"/somewhere{os.pathsep}")  # an empty entry is a slip, and means this directory
    assert str(here) not in import_path().split(os.pathsep)


def test_a_worker_runs_no_file_that_lies_beside_the_study(here):
    for name in ("json", "numpy", "lorascope"):
        (here / f"{name}.py").write_text(
            f"open({str(here / 'CANARY')!r}, 'a').write('ran')\nraise ImportError('not this')\n"
        )
    step = make("count", value=1)
    store = Store(here / "store")
    done = execute([step], store=store, executor=LocalExecutor(store, devices=["cpu"]), emit=lambda event: None)
    assert done.done == [step.id] and not (here / "CANARY").exists()
