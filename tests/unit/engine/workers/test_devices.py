"""Finding devices, and what importing the engine may not cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.engine.workers import devices
from lorascope.errors import EnvironmentProblem

MODULES = (
    "store.directory", "store.lock", "run", "workers.worker", "workers.inline", "workers.local", "scheduler", "events",
    "workers.devices", "provenance",
)  # fmt: skip


def pretend_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A machine that may have an accelerator, whose interpreter finds this torch."""
    (tmp_path / "torch.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "_may_have_accelerator", lambda: True)


TORCH = """
class cuda:
    is_available = staticmethod(lambda: {cuda} > 0)
    device_count = staticmethod(lambda: {cuda})
class backends:
    class mps:
        is_available = staticmethod(lambda: {mps})
"""


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, False, ["cuda:0", "cuda:1"]), (0, True, ["mps"]), (0, False, ["cpu"])]
)
def test_torch_is_asked_what_it_can_use(tmp_path, monkeypatch, cuda, mps, expected):
    pretend_torch(tmp_path, monkeypatch, TORCH.format(cuda=cuda, mps=mps))
    assert devices.find_devices() == expected


def test_a_torch_that_cannot_be_imported_is_an_environment_problem(tmp_path, monkeypatch):
    pretend_torch(tmp_path, monkeypatch, "raise ImportError('libcudart.so.13 is missing')")
    with pytest.raises(EnvironmentProblem, match="libcudart") as caught:
        devices.find_devices()
    assert "import torch" in (caught.value.hint or "")


def test_a_machine_without_a_trace_of_an_accelerator_asks_nobody(monkeypatch):
    monkeypatch.setattr(devices, "_may_have_accelerator", lambda: False)
    monkeypatch.setattr(devices.subprocess, "run", None)
    assert devices.find_devices() == ["cpu"]


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path, monkeypatch):
    pretend_torch(tmp_path, monkeypatch, TORCH.format(cuda=2, mps=False))
    devices.check_devices(["cuda:1", "cuda:1", "cuda", "cpu"])
    with pytest.raises(EnvironmentProblem) as caught:
        devices.check_devices(["cuda:0", "cuda:9"])
    assert str(caught.value) == (
        "--device cuda:9: there is no such device on this machine\n  hint: there: cuda:0, cuda:1, cpu, cuda"
    )


def test_the_processor_is_there_without_asking(monkeypatch):
    monkeypatch.setattr(devices, "find_devices", None)
    devices.check_devices(["cpu", "cpu"])


def test_importing_the_engine_loads_no_heavy_package():
    code = f"""
import importlib, json, sys
sys.path[:0] = {[path for path in sys.path if path]!r}
for module in {MODULES!r}:
    importlib.import_module("lorascope.engine." + module)
print(json.dumps(sorted(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "pandas", "scipy", "matplotlib", "peft", "pydantic"}
    assert not heavy & set(json.loads(answer.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="processors are given to a process on Linux only")
def test_a_process_counts_the_processors_it_may_use() -> None:
    given_one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{given_one}; from lorascope.engine import provenance; print(provenance.usable_cpus())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 1
