"""How arms are compared: fresh engine processes, arms in random order within each repeat, proof before any time is taken.

A repeat is a block: every arm is started once in it, answers the same requests, and is ended. What one process found is
written down the moment it ends, so a comparison that is interrupted goes on with the others. An engine that fails is
started again; one that cannot serve an arm at all, or computes something else than the run does, is reported and not timed.
Engines may be started several at once, since most of their time goes into starting. Only one is asked at a time all the
same: those of a block answer load by load in turns, so that a slow phase of the machine meets every arm alike, while all
others wait without a request.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from lorascope.serving.arms import EngineArm
from lorascope.serving.engines import EngineProcess
from lorascope.serving.equivalence import EquivalenceGate
from lorascope.serving.exchange import EngineConfig, EngineFailure, EngineName
from lorascope.serving.levers import Lever
from lorascope.serving.load import Load, draw_batches, generator_of, in_random_order, loads_of
from lorascope.serving.switching import CPU_SLOTS, SLOTS, draw_probes, states_of
from lorascope.serving.timing import load_figures, request_rows
from lorascope.serving.together import OUT_OF_MEMORY, Started, Turns, measured_in_turns, started
from lorascope.study.measure import ServingSpec, arm_name

ATTEMPTS = 3
FINAL = ("adapter-rejected", OUT_OF_MEMORY, "model")
"""Failures that another attempt would only repeat."""


@dataclass(frozen=True)
class Process:
    """One engine process of the comparison. order: its place among the arms of its repeat. setting: "default", "tuned", or
    "switching" for the one that is asked for adapters one by one."""

    workload: str
    repeat: int
    arm: str
    order: int
    setting: str = "default"

    @property
    def name(self) -> str:
        return f"{self.workload}-{self.repeat}-{self.arm}-{self.setting}"


@dataclass(frozen=True)
class ServingComparison:
    """What all processes of one workload share. prompts: token ids. check: whether a started engine computes what an arm
    should. engine, python, device: who serves, and where. config: an engine's configuration but for what an arm decides.
    kernel_tables: where a search for the tuned setting finds some. tuned: that setting, once it is found.
    """

    spec: ServingSpec
    workload: str
    arms: Mapping[str, EngineArm]
    prompts: Sequence[Sequence[int]]
    check: Callable[[EngineProcess, EngineArm], list[EquivalenceGate]]
    engine: EngineName
    python: Path
    config: EngineConfig
    directory: Path
    kernel_tables: Path | None = None
    tuned: Lever | None = None

    @property
    def output_tokens(self) -> int:
        return self.spec.output_tokens if self.workload == "generation" else 0

    @property
    def rests(self) -> bool:
        """Whether there is a rest after every start: after those of one where others start many, for they are compared."""
        return self.spec.engines_at_once > 1

    def processes(self) -> Iterator[Process]:
        """All of them, repeat by repeat."""
        largest = f"adapters-{self.spec.most_adapters}"
        kinds = [(arm, "default") for arm in self.arms]
        # A server reads its adapters when it starts and cannot be made to forget one without losing its name.
        if self.spec.switching and self.spec.most_adapters > 1 and self.engine != "vllm-server":
            kinds.append((largest, "switching"))
        if self.tuned is not None:
            kinds.append((arm_name(self.spec.tuned_adapters), "tuned"))
        for repeat in range(self.spec.repeats):
            for order, (arm, setting) in enumerate(in_random_order(kinds, repeat=repeat)):
                yield Process(self.workload, repeat, arm, order, setting)

    def path(self, process: Process) -> Path:
        """Where what the process found is written down."""
        return self.directory / f"{process.name}.json"


def groups_started_together(processes: Sequence[Process], *, at_once: int) -> Iterator[Sequence[Process]]:
    """As many whole repeats as fit, so that all of a repeat takes turns; where not even one fits, what does. processes: all
    of a comparison, repeat by repeat."""
    per_repeat = sum(process.repeat == 0 for process in processes)
    size = at_once // per_repeat * per_repeat or at_once
    for first in range(0, len(processes), size):
        yield processes[first : first + size]


def run_processes(
    comparison: ServingComparison, processes: Sequence[Process]
) -> Iterator[tuple[Process, dict[str, Any]]]:
    """What each process found: from its file if it ended before, else by running it. All that have to run are started at
    once; those of one repeat are measured in turns, in their order. One for which the others left no memory comes after them,
    alone. Never raises EngineFailure: a failure is part of what was found."""
    missing = [process for process in processes if not comparison.path(process).exists()]
    for process in processes:
        if process not in missing:
            yield process, json.loads(comparison.path(process).read_text())
    blocks = [list(block) for _, block in groupby(missing, key=lambda process: process.repeat)]
    make, measure = partial(_engine, comparison), partial(_with_attempts, comparison)
    for process, found in measured_in_turns(blocks, make, measure, rest=comparison.rests):
        _write_down(comparison.path(process), found)
        yield process, json.loads(comparison.path(process).read_text())


def _engine(comparison: ServingComparison, process: Process) -> EngineProcess:
    return EngineProcess(
        comparison.engine, _config(comparison, process, comparison.arms[process.arm]), python=comparison.python,
        directory=comparison.directory / "logs" / process.name,
    )  # fmt: skip


def _write_down(path: Path, found: dict[str, Any]) -> None:
    requests, rows = found.pop("requests"), path.with_suffix(".parquet")
    rows.unlink(missing_ok=True)  # of a run of this process that was killed before its figures were written down
    if requests:
        pd.DataFrame(requests).to_parquet(rows, index=False)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(found))
    os.replace(draft, path)


def _with_attempts(
    comparison: ServingComparison, process: Process, engine: Started, *, is_beside_others: bool
) -> Turns[dict[str, Any]]:
    """Raises EngineFailure where other engines left no memory."""
    lost: list[str] = []
    while True:
        try:
            if isinstance(engine, EngineFailure):
                raise engine
            try:
                found = yield from _found(comparison, process, engine)
            finally:
                engine.end()
            return {**asdict(process), **found, "failure": None, "lost": lost}
        except EngineFailure as failure:
            if is_beside_others and failure.kind == OUT_OF_MEMORY:
                raise
            lost.append(f"{failure.kind}: {failure.message}")
            if failure.kind in FINAL or len(lost) == ATTEMPTS:
                told = {"kind": failure.kind, "text": failure.message, "log": str(failure.log)}
                return {**asdict(process), "figures": [], "gates": [], "requests": [], "failure": told, "lost": lost}
        engine = started(_engine(comparison, process), rest=comparison.rests)


def _found(comparison: ServingComparison, process: Process, engine: EngineProcess) -> Turns[dict[str, Any]]:
    arm = comparison.arms[process.arm]
    figures, requests = [], []
    if process.setting == "switching":  # the check would ask for adapters before we have seen them come from disk
        figures = _switching(comparison, engine, arm, repeat=process.repeat)
    gates = comparison.check(engine, arm)
    if not all(gate.passed for gate in gates):
        figures = []
    elif process.setting != "switching":
        figures, requests = yield from _timed(comparison, engine, arm, repeat=process.repeat)
        if comparison.spec.engines_at_once == 1:  # else the time to load is that of a busy machine
            figures.insert(0, _fact("load_s", engine.ready.load_s, "s"))
    return {
        "engine": asdict(engine.ready), "gates": [asdict(gate) for gate in gates], "figures": figures,
        "requests": requests,
    }  # fmt: skip


def _timed(
    comparison: ServingComparison, engine: EngineProcess, arm: EngineArm, *, repeat: int
) -> Turns[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """(figures, rows of requests) of everything this arm is asked, and of the process's memory; pauses before every load."""
    warm_up(comparison, engine, arm)
    figures, requests = [], []
    for load in loads_of(comparison.spec, workload=comparison.workload, num_adapters=len(arm.adapters)):
        yield
        rows, found = _answered(comparison, engine, arm, load, repeat=repeat)
        requests += rows
        figures += found
    return figures + [_fact(name, value, "byte") for name, value in engine.memory().items()], requests


def _config(comparison: ServingComparison, process: Process, arm: EngineArm) -> EngineConfig:
    config = engine_config(comparison, arm)
    if process.setting == "switching":
        return replace(config, slots=SLOTS, cpu_slots=CPU_SLOTS)
    if process.setting == "tuned":
        assert comparison.tuned is not None
        return comparison.tuned.applied_to(config)
    return config


def engine_config(comparison: ServingComparison, arm: EngineArm) -> EngineConfig:
    """What an arm is served with in the default setting."""
    slots = comparison.spec.slots
    few = slots if slots is not None and slots < len(arm.adapters) else None
    return replace(comparison.config, model=arm.model, adapters=dict(arm.adapters), slots=few)


def _answered(
    comparison: ServingComparison, engine: EngineProcess, arm: EngineArm, load: Load, *, repeat: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of requests, figures) of one load."""
    batches = draw_batches(
        load, comparison.prompts, adapters=list(arm.adapters), num_requests=load.num_requests(comparison.spec.requests),
        output_tokens=comparison.output_tokens, repeat=repeat,
    )  # fmt: skip
    served = engine.serve(batches)
    rows = request_rows(batches, served.requests)
    keys = load.keys()
    figures = [
        {**keys, "metric": name, "value": value, "unit": unit}
        for name, value, unit in load_figures(rows, served.requests, wall_s=served.wall_s)
    ]
    return [{**keys, **row} for row in rows], figures


def warm_up(comparison: ServingComparison, engine: EngineProcess, arm: EngineArm) -> None:
    """Requests that nobody counts, of every batch size, so that what is made at a first use is made."""
    spec = comparison.spec
    for size in spec.batch_sizes:
        count = max(size, spec.warmup // len(spec.batch_sizes)) if spec.warmup else 0
        if count:
            load = Load(comparison.workload, "batch", size, "round-robin", "greedy")
            batches = draw_batches(
                load, comparison.prompts, adapters=list(arm.adapters), num_requests=count,
                output_tokens=comparison.output_tokens, repeat=-1,
            )  # fmt: skip
            engine.serve(batches)


def _switching(
    comparison: ServingComparison, engine: EngineProcess, arm: EngineArm, *, repeat: int
) -> list[dict[str, Any]]:
    """The median latency of a single short request by where its adapter lay."""
    names = list(arm.adapters)
    if comparison.engine == "vllm":  # it read them all when it started
        for name in names:
            engine.unload(name)
    probes = draw_probes(
        len(names), keeps_all=comparison.engine == "transformers", generator=generator_of("switching", repeat)
    )
    load = Load(comparison.workload, "batch", 1, "fixed", "greedy")
    ((request,),) = draw_batches(
        load, comparison.prompts[:1], adapters=names[:1], num_requests=1,
        output_tokens=min(1, comparison.output_tokens), repeat=repeat,
    )  # fmt: skip
    batches = [[replace(request, id=index, adapter=names[probe.adapter])] for index, probe in enumerate(probes)]
    answers = engine.serve(batches).requests
    frame = pd.DataFrame({"state": [p.state for p in probes], "latency_ms": [1e3 * a.last_s for a in answers]})
    medians = frame.groupby("state")["latency_ms"].median().to_dict()
    return [
        {"workload": comparison.workload, "loop": "switch", "level": None, "choice": state, "sampling": "greedy",
         "metric": "latency_ms", "value": medians[state], "unit": "ms"}
        for state in states_of(probes)
    ]  # fmt: skip


def _fact(metric: str, value: float, unit: str) -> dict[str, Any]:
    """A figure of the process itself, not of a load."""
    return {
        "loop": "none", "level": None, "choice": "none", "sampling": "none", "metric": metric, "value": float(value),
        "unit": unit,
    }  # fmt: skip
