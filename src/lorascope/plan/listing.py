"""The finished steps of a store as people tell them apart: by study, task, arm, seed and score.

A step knows no names: they are what a study calls it. The analyses in the store say what each study called its steps; a step
of no analysis (its study was stopped) is called by what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorascope.engine.store.artifact import Artifact

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store


@dataclass(frozen=True)
class ListedStep:
    """study: of several, all. model, task, arm, seed: None where the step is not of one. metric, score: of a run on the test
    set, of a trial on validation; None where nothing was scored. num_bytes: of its files."""

    id: str
    kind: str
    study: str | None
    model: str | None
    task: str | None
    arm: str | None
    seed: str | None
    metric: str | None
    score: float | None
    num_bytes: int


def listed_steps(store: Store) -> list[ListedStep]:
    """Every finished step, in the order of ids."""
    artifacts = {artifact.id: artifact for artifact in store.artifacts()}
    named = _names_in_analyses(artifacts.values())
    scores = _scores(artifacts)
    return [
        ListedStep(
            id=step_id,
            kind=artifact.step.kind,
            **(named.get(step_id) or {"study": None, **_names_of_its_own(artifact, artifacts)}),
            **scores.get(step_id, {"metric": None, "score": None}),
            num_bytes=sum(artifact.record["files"].values()),
        )
        for step_id, artifact in artifacts.items()
    ]


def _names_in_analyses(artifacts: Iterable[Artifact]) -> dict[str, dict[str, str | None]]:
    """Step -> its names. Studies that call a step differently are all named, and the first one's names are given."""
    found: dict[str, dict[str, str | None]] = {}
    studies: dict[str, dict[str, None]] = {}
    for artifact in artifacts:
        record = artifact.record["step"]
        if record["kind"] != "analysis":
            continue
        study = record["params"]["study"]["name"]
        found[artifact.id] = {"model": None, "task": None, "arm": None, "seed": None}
        studies.setdefault(artifact.id, {})[study] = None
        for role, label in record["params"]["steps"].items():
            names = {"arm" if key == "method" else key: name for key, name in label.items()}
            found.setdefault(record["deps"][role], names)
            studies.setdefault(record["deps"][role], {})[study] = None
    return {step_id: {"study": ", ".join(studies[step_id]), **names} for step_id, names in found.items()}


def _names_of_its_own(artifact: Artifact, artifacts: Mapping[str, Artifact]) -> dict[str, str | None]:
    record = artifact.record["step"]
    params, deps = record["params"], record["deps"]
    data = artifact if record["kind"] == "data" else artifacts.get(deps.get("data", ""))
    task = data.record["step"]["params"].get("task") if data else None
    method = params.get("method")
    kind = method.get("kind") if isinstance(method, Mapping) else None
    # The numbers that a run starts from are derived from its seed, which only its slug names.
    before, _, seed = artifact.step.slug.rpartition(f"-{kind}-")
    return {
        "model": None,
        "task": task.get("name") if isinstance(task, Mapping) else None,
        "arm": kind,
        "seed": seed if before and record["kind"] in ("train", "evaluate") else None,
    }


def _scores(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Of a run and its evaluation the test score by the task's primary metric; of a trial its validation score."""
    found: dict[str, dict[str, Any]] = {}
    for artifact in artifacts.values():
        record = artifact.record["step"]
        if record["kind"] == "trial":
            found[artifact.id] = {"metric": artifact.result.get("metric"), "score": artifact.result.get("value")}
        data = artifacts.get(record["deps"].get("data", ""))
        if record["kind"] == "evaluate" and data is not None:
            metric = primary_metric_of(data.result)
            scored = {"metric": metric, "score": artifact.result["test"].get(metric)}
            found |= {artifact.id: scored, record["deps"]["train"]: scored}
    return found


def primary_metric_of(data: Mapping[str, Any]) -> str:
    """The primary metric of the task that a `data` step prepared. data: its result."""
    return data["primary_metric"] if "primary_metric" in data else data["task"]["metrics"][0]  # older records
