"""The finished steps of a study, found by what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.engine.store.artifact import Artifact
from lorascope.metrics.quality import DEFAULT
from lorascope.tasks.description import task_from_result
from lorascope.tasks.task import Task


@dataclass(frozen=True)
class Finished:
    """The artifacts of a study by what they are: (label, artifact) of each kind."""

    parts: list[tuple[str, Mapping[str, str | None], Artifact]]

    def of(self, kind: str, **label: str | None) -> list[tuple[Mapping[str, str | None], Artifact]]:
        """Those of one kind whose label agrees with what is given."""
        return [
            (found, artifact)
            for role, found, artifact in self.parts
            if role.partition(":")[0] == kind and all(found[key] == value for key, value in label.items())
        ]

    def task(self, name: str | None) -> Task:
        return task_from_result(self.of("data", task=name)[0][1].result)


def primary_metric(finished: Finished, task: str) -> str:
    """The task's primary metric. One whose data could not be prepared has no score at all; what it would be called does
    not matter then."""
    return finished.task(task).primary_metric if finished.of("data", task=task) else DEFAULT
