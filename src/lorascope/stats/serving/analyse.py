"""The analysis of serving: the long table of figures in, `ServingAnalysis` out.

One idea: a repeat is a block. Within it every arm ran once in a fresh process and answered the same requests, so an arm
is compared with another repeat by repeat, and what is estimated is a mean over repeats of logs. Arms that failed a gate
are in no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.metrics.serving import SERVED
from lorascope.stats.serving.advice import recommend
from lorascope.stats.serving.analysis import (
    LeftOut,
    ServingAnalysis,
    ServingCell,
    ServingOverhead,
    Switching,
    Tuning,
)
from lorascope.stats.serving.fit import fit_overheads
from lorascope.stats.serving.repeats import (
    bootstrap_interval,
    interval_of,
    median_and_mad,
    paired_logs,
    too_few,
)
from lorascope.stats.serving.trade import machine_comparisons, task_memory, tasks_break_evens, traffic_comparisons

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "model",
    "arm",
    "repeat",
    "workload",
    "loop",
    "level",
    "choice",
    "sampling",
    "setting",
    "metric",
    "value",
    "unit",
)
REFERENCES = ("merged", "base")
THROUGHPUTS = tuple(row.name for row in SERVED.values() if row.higher_is_better)
_TIMES = ("latency_ms", "ttft_ms", "itl_ms")
_NONE = "none"
_DEFAULT = "default"


def analyse_serving(
    frame: pd.DataFrame,
    *,
    gates: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]] = (),
    alpha: float = 0.05,
) -> ServingAnalysis:
    """Cells, overheads, fit, break-even, switching, tuning and what follows from them.

    frame: COLUMNS, one row a (process, load, metric). gates: {model, arm, workload, what, value, tolerance, passed, n,
    detail}. facts: one dict an engine process; one that failed has its reason as `text`.
    """
    left_out = [*_failed_gates(gates), *_failures(facts)]
    cells = _without_broken(read_cells(frame), _failed_gates(gates))
    overheads = [*_overheads(cells)]
    analysis = ServingAnalysis(
        alpha=alpha,
        num_repeats=max((cell.num_repeats for cell in cells), default=0),
        engines=list(dict.fromkeys(_engine(fact) for fact in facts if fact.get("versions"))),
        cells=cells,
        overheads=overheads,
        regressions=fit_overheads(cells),
        one_machine=machine_comparisons(cells),
        tasks=tasks_break_evens(cells),
        memory=task_memory(cells),
        traffic=traffic_comparisons(cells),
        switching=list(_switching(cells)),
        tuning=list(_tuning(cells)),
        recommendations=[],
        left_out=left_out,
    )
    return replace(analysis, recommendations=recommend(analysis))


def _failed_gates(gates: Iterable[Mapping[str, Any]]) -> list[LeftOut]:
    found: dict[tuple[str, str, str, str], LeftOut] = {}
    for gate in gates:
        key = (gate["model"], gate["arm"], gate["workload"], gate.get("setting", _DEFAULT))
        if not gate["passed"]:
            detail = f" ({gate['detail']})" if gate.get("detail") else ""
            found.setdefault(key, LeftOut(*key, f"failed its equivalence gate: {gate['what']}{detail}"))
    return list(found.values())


def _without_broken(cells: Iterable[ServingCell], broken: Iterable[LeftOut]) -> list[ServingCell]:
    """A failed gate takes its setting's figures; in the default setting, all of the arm's."""
    places = {(found.model, found.arm, found.workload, found.setting) for found in broken}
    return [
        cell
        for cell in cells
        if not any((cell.model, cell.arm, cell.workload, setting) in places for setting in (cell.setting, _DEFAULT))
    ]


def _failures(facts: Iterable[Mapping[str, Any]]) -> list[LeftOut]:
    """Arms whose engine failed, with its first reason and how often."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for fact in facts:
        if fact.get("text"):
            key = (fact["model"], fact["arm"], fact["workload"], fact.get("setting", _DEFAULT))
            found.setdefault(key, []).append(str(fact["text"]))
    return [
        LeftOut(*key, f"its engine failed in {len(texts)} {'process' if len(texts) == 1 else 'processes'}: {texts[0]}")
        for key, texts in found.items()
    ]


def _engine(fact: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in fact["versions"].items())
    return f"{fact['engine']} ({versions}) on {fact['device_name']}"


# ------------------------------------------------------------------------------------------------------------ cells


def read_cells(frame: pd.DataFrame) -> list[ServingCell]:
    """One cell a (model, arm, load, setting, metric), in the table's order. `num_requests` becomes a fact of the others.

    A figure that two rows give for the same repeat is their mean: two lives of one process.
    """
    values: dict[tuple, dict[str, list[float]]] = {}
    units: dict[tuple, str] = {}
    for *key, value, unit in zip(*(frame[name] for name in COLUMNS), strict=True):
        model, arm, repeat, workload, loop, level, choice, sampling, setting, metric = key
        if not math.isfinite(value):
            continue
        load = (workload, _text(loop), None if _is_absent(level) else float(level), _text(choice), _text(sampling))
        cell = (model, arm, *load, _text(setting), metric)
        values.setdefault(cell, {}).setdefault(str(int(repeat)), []).append(float(value))
        units[cell] = _text(unit)
    return [
        _cell(key, units[key], {repeat: float(np.mean(found)) for repeat, found in by_repeat.items()}, values)
        for key, by_repeat in values.items()
        if key[-1] != "num_requests"
    ]


def _cell(key: tuple, unit: str, repeats: dict[str, float], values: Mapping[tuple, Mapping]) -> ServingCell:
    numbers = np.array(list(repeats.values()))
    median, mad = median_and_mad(numbers)
    requests = values.get((*key[:-1], "num_requests"))
    positive = bool((numbers > 0).all()) and float(numbers.std()) > 0
    return ServingCell(
        *key,
        unit=unit,
        median=median,
        mad=mad,
        interval=interval_of(np.log(numbers)) if positive else None,
        repeats=dict(sorted(repeats.items(), key=lambda item: int(item[0]))),
        num_requests=round(sum(sum(found) / len(found) for found in requests.values())) if requests else None,
    )


def _is_absent(value: Any) -> bool:
    return value is None or value != value


def _text(value: Any) -> str:
    return _NONE if _is_absent(value) else str(value)


# -------------------------------------------------------------------------------------------------------- overheads


def is_cost(cell: ServingCell) -> bool:
    """Whether an overhead of it means anything: times, and throughput where the engine sets the pace."""
    timed = cell.loop in ("batch", "rate") and cell.metric.startswith(_TIMES)
    return timed or (cell.loop == "batch" and cell.metric in THROUGHPUTS)


def cost_logs(cell: ServingCell, reference: ServingCell) -> dict[str, float]:
    """Log of how much dearer `cell` is than `reference` in every repeat that has both: times as they are, throughput
    turned over."""
    if cell.metric in THROUGHPUTS:
        return paired_logs(reference.repeats, cell.repeats)
    return paired_logs(cell.repeats, reference.repeats)


def _overheads(cells: Sequence[ServingCell]) -> Iterator[ServingOverhead]:
    beside = by_load(cells)
    for cell in cells:
        for arm in REFERENCES if is_cost(cell) else ():
            reference = counterpart(beside, cell, arm)
            if reference is not None and cell.arm not in (arm, "base"):
                found = _overhead(cell, reference)
                if found is not None:
                    yield found


Load = tuple[str, str, str, str, float | None, str, str]


def by_load(cells: Iterable[ServingCell]) -> dict[Load, list[ServingCell]]:
    """Cells by (arm, model, workload, loop, level, sampling, metric): what `counterpart` looks up."""
    found: dict[Load, list[ServingCell]] = {}
    for cell in cells:
        found.setdefault(_load(cell, cell.arm), []).append(cell)
    return found


def _load(cell: ServingCell, arm: str) -> Load:
    return (arm, cell.model, cell.workload, cell.loop, cell.level, cell.sampling, cell.metric)


def counterpart(cells: Mapping[Load, Sequence[ServingCell]], cell: ServingCell, arm: str) -> ServingCell | None:
    """The same load on another arm. An arm without adapters is asked under one choice and in the default setting only:
    then that one."""
    same = [other for other in cells.get(_load(cell, arm), ()) if other.setting in (cell.setting, "default")]
    return min(same, key=lambda o: (o.setting != cell.setting, o.choice != cell.choice), default=None)


def _overhead(cell: ServingCell, reference: ServingCell) -> ServingOverhead | None:
    logs = cost_logs(cell, reference)
    if not logs:
        return None
    values = np.array(list(logs.values()))
    median, mad = median_and_mad(np.exp(values))
    return ServingOverhead(
        model=cell.model,
        arm=cell.arm,
        reference=reference.arm,
        workload=cell.workload,
        loop=cell.loop,
        level=cell.level,
        choice=cell.choice,
        sampling=cell.sampling,
        setting=cell.setting,
        reference_setting=reference.setting,
        metric=cell.metric,
        estimate=math.exp(float(values.mean())),
        interval=interval_of(values),
        bootstrap=bootstrap_interval(values),
        median=median,
        mad=mad,
        num_repeats=len(values),
        num_dropped=len({*cell.repeats, *reference.repeats}) - len(values),
        reason=too_few(len(values)),
    )


# ---------------------------------------------------------------------------------------------- switching and tuning


def _switching(cells: Sequence[ServingCell]) -> Iterator[Switching]:
    probed = [cell for cell in cells if cell.loop == "switch" and cell.metric == "latency_ms"]
    resident = {(c.model, c.arm, c.workload, c.setting): c.repeats for c in probed if c.choice == "resident"}
    for cell in probed:
        beside = resident.get((cell.model, cell.arm, cell.workload, cell.setting), {})
        logs = np.array(list(paired_logs(cell.repeats, beside).values()))
        yield Switching(
            model=cell.model,
            arm=cell.arm,
            workload=cell.workload,
            state=cell.choice,
            setting=cell.setting,
            median_ms=cell.median,
            latency_ms=cell.interval,
            ratio=interval_of(logs) if cell.choice != "resident" else None,
            num_repeats=cell.num_repeats,
            reason=too_few(cell.num_repeats),
        )


def _tuning(cells: Sequence[ServingCell]) -> Iterator[Tuning]:
    beside = by_load(cells)
    for tuned in cells:
        if tuned.setting != "tuned" or not is_cost(tuned):
            continue
        same = beside[_load(tuned, tuned.arm)]
        default = next((c for c in same if c.setting == "default" and c.choice == tuned.choice), None)
        logs = np.array(list(cost_logs(default, tuned).values())) if default else np.array([])
        if len(logs):
            yield Tuning(
                model=tuned.model,
                arm=tuned.arm,
                workload=tuned.workload,
                loop=tuned.loop,
                level=tuned.level,
                choice=tuned.choice,
                sampling=tuned.sampling,
                metric=tuned.metric,
                estimate=math.exp(float(logs.mean())),
                interval=interval_of(logs),
                num_repeats=len(logs),
                reason=too_few(len(logs)),
            )
