"""Fixtures shared by all levels: tiny checkpoints are written once a session. And the order of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: tests share the machine
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # lorascope is started many times and compiled once
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Whole files are given to the workers in this order, which therefore end together: those that take longest, longest
# first, then the other whole studies, then what is quick.
LONGEST = (
    "test_small_study.py",
    "test_serving_study.py",
    "test_classification_study.py",
    "test_ray_study.py",
    "test_search_study.py",
    "test_serving_server.py",
    "test_serving_faults.py",
)
TESTS = Path(__file__).parent
LEVELS = ("pipeline", "contract", "unit", "statistical")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> tuple[int, int]:
        name, level = item.path.name, item.path.relative_to(TESTS).parts[0]
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), LEVELS.index(level)

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """architecture -> a random checkpoint of it."""
    from tiny import ARCHITECTURES, save_tiny_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_tiny_checkpoint(root / name, name) for name in ARCHITECTURES}
