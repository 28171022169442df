"""Where a result comes from: versions, machine, source, times. Collected without importing what it describes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from lorascope.plugins import installed_plugins

PACKAGES = (
    "lorascope", "torch", "transformers", "peft", "tokenizers", "safetensors", "datasets",
    "numpy", "pandas", "scipy", "scikit-learn", "statsmodels",
)  # fmt: skip
# How many workers of a study share this one's device: times measured beside others are not times measured alone.
WORKERS_ON_DEVICE = "LORASCOPE_WORKERS_ON_DEVICE"


def describe(*, device: str) -> dict[str, Any]:
    """Everything about this process and machine that a result may depend on, as JSON."""
    return {
        "python": platform.python_version(),
        "versions": dict(versions()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": _host_digest(),
        "device": device,
        "device_name": _device_name(device),
        "num_cpus": usable_cpus(),
        "workers_on_device": workers_on_device(),
        "source": _source_state(),
    }


def usable_cpus() -> int:
    """The processors this process may use: a batch system or `taskset` may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def workers_on_device() -> int:
    """How many workers of this study share the device, this one included."""
    return int(os.environ.get(WORKERS_ON_DEVICE, "1"))


def machine(*, device: str) -> dict[str, str]:
    """What times depend on and are kept by: the machine, the kind of its device, the version of torch."""
    return {"host": _host_digest(), "device": device.partition(":")[0], "torch": versions()["torch"]}


@functools.cache
def versions() -> dict[str, str]:
    """Package -> version, of those that results depend on and are installed, plug-ins of lorascope included."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, **installed_plugins()}


@functools.cache
def _host_digest() -> str:
    """Tells machines apart without naming them: artifacts are published, host names are private."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def _device_name(device: str) -> str | None:
    """What the device is called; for CUDA only if the step itself loaded torch."""
    if device.startswith("cuda"):
        torch = sys.modules.get("torch")
        return torch.cuda.get_device_name(device) if torch is not None and torch.cuda.is_available() else None
    return _cpu_name()


@functools.cache
def _cpu_name() -> str | None:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


@functools.cache
def _source_state() -> dict[str, Any] | None:
    """The commit lorascope runs from and whether it was changed since; None for an installed copy."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in here.parents):
        return None
    commit = _git(here, "rev-parse", "HEAD")
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    if commit is None or tracked is None:  # an installation that merely lies inside somebody's checkout
        return None
    return {"commit": commit, "is_modified": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
