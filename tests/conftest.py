"""Fixtures shared by all levels: tiny checkpoints are written once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: tests share the machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """architecture -> a random checkpoint of it."""
    from tiny import ARCHITECTURES, save_tiny_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    return {name: save_tiny_checkpoint(root / name, name) for name in ARCHITECTURES}
