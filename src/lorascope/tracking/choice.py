"""Which trackers a run of a study is shown in, and whether their packages are there, before anything starts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.registry import TRACKERS, nearest
from lorascope.study.spec import Study
from lorascope.study.track import AnyTrackerSpec, TrackerSpec


@dataclass(frozen=True)
class _Package:
    """distributions: any of these will do. first: the oldest major version."""

    distributions: tuple[str, ...]
    first: int = 0


_PACKAGES: Mapping[str, _Package] = {
    "trackio": _Package(("trackio",)),
    "wandb": _Package(("wandb",)),
    "mlflow": _Package(("mlflow", "mlflow-skinny"), first=3),
    "tensorboard": _Package(("tensorboard",)),
}


def chosen_trackers(study: Study, names: Sequence[str] | None) -> list[AnyTrackerSpec]:
    """The study's trackers, or those named instead, with the study's settings where it has any. ["none"]: no tracker.

    Raises StudyError for a name that is none, EnvironmentProblem for a tracker whose package is not installed.
    """
    if names is None:
        chosen = list(study.track)
    else:
        settings = {spec.kind: spec for spec in study.track}
        wanted = [] if list(names) == ["none"] else list(dict.fromkeys(names))
        chosen = [settings.get(name) or _with_defaults(name) for name in wanted]
    for spec in chosen:
        _check_package(spec.kind)
    return chosen


def _with_defaults(name: str) -> AnyTrackerSpec:
    if name not in TRACKERS:
        match = nearest(name, TRACKERS)
        meant = f": did you mean `{match}`?" if match else ""
        raise StudyError(f"--track: unknown tracker `{name}`{meant}", hint=f"allowed: {', '.join(TRACKERS)}, or none")
    return TypeAdapter(TrackerSpec).validate_python(name)


def _check_package(kind: str) -> None:
    package = _PACKAGES[kind]
    found = [version for name in package.distributions if (version := _version(name))]
    remedy = f"pip install 'lorascope[{kind}]', or go without: --track none"
    if not found:
        raise EnvironmentProblem(f"the tracker `{kind}` needs the package {package.distributions[0]}", hint=remedy)
    if int(found[0].split(".")[0]) < package.first:
        text = f"the tracker `{kind}` needs {package.distributions[0]} {package.first} or newer; found {found[0]}"
        raise EnvironmentProblem(text, hint=remedy)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
