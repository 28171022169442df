"""What every tracker offers: runs that can be opened, given points of curves and figures, and closed.

A tracker is a thin skin over one package. It lives in a process of its own (`lorascope.tracking.program`) and is called by
`Recorder` alone, one call at a time; whatever it raises ends that process and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RunStatus = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class TrackingPlace:
    """Where a tracker works: the study's name, and the folder next to its report that is the tracker's own. tell: says
    something to the person who runs the study."""

    study: str
    directory: Path
    tell: Callable[[str], None]


@dataclass(frozen=True)
class TrackedRun:
    """What is shown as one run: its name, the group it stands in (the phase), what it is, under which settings.

    known_as: the tracker's own id of it, where an earlier process has opened it already.
    """

    name: str
    group: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    known_as: str | None = None


class OpenRun(ABC):
    """A run that is being shown. id: by which this tracker finds it again."""

    id: str

    @abstractmethod
    def log(self, values: Mapping[str, float], *, at: int) -> None:
        """Points of curves, all at update `at`."""

    @abstractmethod
    def summarise(self, values: Mapping[str, float | str]) -> None:
        """Figures and texts of the run as a whole, such as its score on the test set."""

    def attach(self, files: Mapping[str, Path], *, name: str, kind: str) -> None:
        """Keeps files with the run, each under the name it is given. Only where the tracker's settings have `artifacts`."""
        raise NotImplementedError(f"{type(self).__name__} keeps no files")

    @abstractmethod
    def close(self, status: RunStatus) -> None: ...


class Tracker(ABC):
    """settings: the study's (`study.track`). Constructing one may import its package and look for an account."""

    @abstractmethod
    def __init__(self, settings: Any, place: TrackingPlace) -> None: ...

    @abstractmethod
    def open(self, run: TrackedRun) -> OpenRun:
        """The run of this name, begun now or taken up again."""
        ...


def flat(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}: for trackers whose settings are a list of names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, prefix=f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
