"""The files and result keys of the `serving` step: the one place that knows them, for the step and for all who read it.

No torch: an analysis reads what was served on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lorascope.stats.facts.served import ServingFacts

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.engine.store.artifact import Artifact

FIGURES = "serving.parquet"
"""A row a process, load and metric: FIGURE_COLUMNS."""
REQUESTS = "requests.parquet"
"""A row a request, with what names its process and load."""
PROCESSES = "processes.json"
"""A row a process without its figures and requests, then the trials of searches for a faster setting."""

PROCESS_KEYS = ("arm", "repeat", "workload", "setting")
"""What names an engine process."""
FIGURE_COLUMNS = (
    "arm", "repeat", "workload", "loop", "level", "choice", "sampling", "setting", "metric", "value", "unit",
)  # fmt: skip
TRIAL = "trial"
"""The setting of a process that a search for a faster one tried: no arm, whatever became of it."""


@dataclass(frozen=True)
class ServingResult:
    """The result of a serving step. gates_failed: arms. tuned: workload -> the setting found, None where none was faster.
    merging: what merging alone changes of an adapter's answers, one a (workload, comparison, dtype)."""

    engine: Mapping[str, Any]
    device: str
    arms: Sequence[str]
    repeats: int
    num_processes: int
    num_failed: int
    num_gates: int
    gates_failed: Sequence[str]
    tuned: Mapping[str, str | None]
    merging: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The step's result."""
        return asdict(self)

    @classmethod
    def read(cls, artifact: Artifact) -> Self:
        """Of a committed serving step."""
        found: dict[str, Any] = {part.name: artifact.result.get(part.name) for part in fields(cls)}
        return cls(**found)


@dataclass(frozen=True)
class ServingRecord:
    """figures: one row a (process, load, metric), with the model. gates: what was checked of a started engine. engines: one
    an engine process that ran. failures: those that did not, with the reason as `text`. trials: of searches for a faster
    setting. merging: what merging alone changes of an adapter's answers, one a (workload, comparison, dtype)."""

    figures: pd.DataFrame
    gates: list[dict[str, Any]]
    engines: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    trials: list[dict[str, Any]]
    merging: list[dict[str, Any]]

    @property
    def facts(self) -> ServingFacts:
        """All but the figures."""
        kinds = (part.name for part in fields(self) if part.name != "figures")
        return ServingFacts.from_json({kind: getattr(self, kind) for kind in kinds})


def write_serving(
    out: Path, found: Sequence[Mapping[str, Any]], *, requests: pd.DataFrame, trials: Iterable[Mapping[str, Any]]
) -> None:
    """found: what each process found. requests: of all of them. trials: of searches, each with the setting TRIAL."""
    figures_table(found).to_parquet(out / FIGURES, index=False, compression="zstd")
    requests.to_parquet(out / REQUESTS, index=False, compression="zstd")
    processes = [{key: value for key, value in p.items() if key not in ("figures", "requests")} for p in found]
    (out / PROCESSES).write_text(json.dumps([*processes, *trials], indent=1))


def figures_table(found: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Long: a row a process, load and metric."""
    import pandas as pd

    rows = [{**named(process), **figure} for process in found for figure in process["figures"]]
    frame = pd.DataFrame(rows, columns=list(FIGURE_COLUMNS))
    return frame.astype({"repeat": "int64", "level": "float64", "value": "float64"})


def named(process: Mapping[str, Any]) -> dict[str, Any]:
    """What names a process."""
    return {key: process[key] for key in PROCESS_KEYS}


def read_serving(served: Iterable[tuple[Mapping[str, str | None], Artifact]]) -> ServingRecord | None:
    """The record of all models' serving steps, given as (label, artifact); None if nothing was served."""
    import pandas as pd

    frames, gates, engines, failures, trials, merging = [], [], [], [], [], []
    for label, artifact in served:
        model, result = {"model": label["model"]}, ServingResult.read(artifact)
        frames.append(pd.read_parquet(artifact.file(FIGURES)).assign(**model))
        merging += [{**model, **row} for row in result.merging]
        for process in json.loads(artifact.file(PROCESSES).read_text()):
            if process["setting"] == TRIAL:
                trials.append({**model, **process})
                continue
            place = {**model, **named(process), "order": process["order"]}
            gates += [{**place, **gate} for gate in process["gates"]]
            if process["failure"] is not None:
                failures.append({**place, "kind": process["failure"]["kind"], "text": process["failure"]["text"]})
            else:
                engines.append({**place, **process["engine"], "engine": result.engine["name"], "device": result.device})
    if not frames:
        return None
    return ServingRecord(pd.concat(frames, ignore_index=True), gates, engines, failures, trials, merging)
