"""What the serving steps of a study left, as one table and flat facts: what its analysis and its report read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from lorascope.engine.store.artifact import Artifact

_PROCESS = ("arm", "repeat", "workload", "setting", "order")


@dataclass(frozen=True)
class ServingRecord:
    """figures: one row a (process, load, metric). gates: what was checked of a started engine. engines: one an engine
    process that ran. failures: those that did not, with the reason as `text`. trials: of searches for a faster setting.
    merging: what merging alone changes of an adapter's answers, one a (workload, comparison, dtype)."""

    figures: pd.DataFrame
    gates: list[dict[str, Any]]
    engines: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    merging: list[dict[str, Any]]


def read_serving(served: Iterable[tuple[Mapping[str, str | None], Artifact]]) -> ServingRecord | None:
    """The record of all models' serving steps, given as (label, artifact); None if nothing was served."""
    frames, gates, engines, failures, trials, merging = [], [], [], [], [], []
    for label, artifact in served:
        model = label["model"]
        frames.append(pd.read_parquet(artifact.file("serving.parquet")).assign(model=model))
        merging += [{"model": model, **row} for row in artifact.result["merging"]]
        for process in json.loads(artifact.file("processes.json").read_text()):
            if process["setting"] == "trial":  # what a search tried is no arm, whatever became of it
                trials.append({"model": model, **process})
                continue
            named = {"model": model, **{key: process[key] for key in _PROCESS}}
            gates += [{**named, **gate} for gate in process["gates"]]
            if process["failure"] is not None:
                failures.append({**named, "kind": process["failure"]["kind"], "text": process["failure"]["text"]})
            else:
                engine = artifact.result["engine"]["name"]
                engines.append({**named, **process["engine"], "engine": engine, "device": artifact.result["device"]})
    if not frames:
        return None
    return ServingRecord(pd.concat(frames, ignore_index=True), gates, engines, failures, trials, merging)
