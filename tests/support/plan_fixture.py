"""A store with made-up times: the steps of the small study as if they had been run, without running any."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from small_study import write_small_study

from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.plan.graph import Graph, build_graph
from lorascope.study.loading.load import load_study

EXAMPLES = {"train": 480, "validation": 60, "test": 60}
TOKENS = {"train": 4800, "validation": 600, "test": 600}
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
_DATA = {"num_examples": EXAMPLES, "task": {"metrics": ["accuracy", "f1"]}}
_TOKENS = {"num_tokens": TOKENS, "mean_length": {split: TOKENS[split] / EXAMPLES[split] for split in TOKENS}}


def small_graph(directory: Path, *overrides: str) -> Graph:
    """The graph of the small study: 2 methods, 2 seeds, 480 training examples in batches of 16, 4 epochs."""
    path = directory / "study.yaml"
    if not path.exists():
        write_small_study(directory)
    return build_graph(load_study(path, overrides=list(overrides)), data_dir=None)


def finish(
    store: Store, step: Step, *, seconds: float, result: Mapping[str, Any] | None = None, gang: int = 1, at_s: float = 0,
    device: str = "cpu", machine: str = "a processor", size: int = 1000, workers_on_device: int = 1,
) -> None:  # fmt: skip
    """Commits a step as if it had taken `seconds` from `at_s` after START."""
    directory = store.stage(step.id)
    (directory / "weights").write_bytes(bytes(size))
    begin = START + datetime.timedelta(seconds=at_s)
    origin = {
        "started": begin.isoformat(), "finished": (begin + datetime.timedelta(seconds=seconds)).isoformat(),
        "gang": gang, "host": "abc", "device": device, "device_name": machine, "workers_on_device": workers_on_device,
    }  # fmt: skip
    store.commit(step, directory, result=dict(result or {}), provenance=origin)


def finish_preparation(store: Store, graph: Graph, kinds: Iterable[str] = ("data", "tokens", "sanity")) -> None:
    """The data, tokens and gates of the graph, one second each."""
    results = {"data": _DATA, "tokens": _TOKENS}
    for step in graph.steps:
        if step.kind in kinds:
            finish(store, step, seconds=1, result=results.get(step.kind))


def trained(
    *, training: float, evaluation: float, updates: int = 120, epochs: float = 4, **changes: Any
) -> dict[str, Any]:
    """The figures of a finished run's record."""
    return {
        "training_seconds": training, "evaluation_seconds": evaluation, "updates": updates, "epochs": epochs, "resumed": 0,
        "gang": 1, "peak_memory_bytes": 50, "gang_peak_memory_bytes": 70, **changes,
    }  # fmt: skip
