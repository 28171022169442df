"""The search for the setting that serves the largest adapter arm fastest: levers one by one, then those that helped together.

Every trial is a fresh engine process that must first be seen to answer what the runs do, and is then asked for requests of
its own. So the study's own requests are new to whatever wins, and what it gains is measured like everything else: in a
fresh process of every repeat, beside the default setting. A lever that only seemed to help is found out there.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lorascope.serving.arms import Arm
from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure
from lorascope.serving.levers import Lever, combine, known_levers
from lorascope.serving.load import draw_batches, loads_of
from lorascope.serving.protocol import Comparison, engine_config, warm_up
from lorascope.study.measure import arm_name

TRIAL = "trial"
"""The setting under which trials are written down beside the processes of a comparison."""
HELPS_FRACTION = 0.01
"""By how much a trial has to be faster than the default to count as such: less is within a process' luck."""
_PROBE_REPEAT = -2  # repeats count from 0, and -1 is the warm-up
_PROBE_BATCHES = 4  # of each size

Outcome = Literal["measured", "idle", "unknown", "failed", "unproven"]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried. levers: by name; none: the default. outcome: "measured", or why not: "idle" (it can change
    nothing here), "unknown" (to this version of vLLM), "failed", "unproven" (it answers otherwise); then reason says it.
    batch_ms: the median time of a batch by its size. cost_ms: their geometric mean. chosen: whether it is the one to measure.
    """

    workload: str
    arm: str
    order: int
    levers: tuple[str, ...]
    outcome: Outcome
    reason: str
    batch_ms: dict[str, float]
    cost_ms: float | None
    chosen: bool
    gates: list[dict[str, Any]]
    engine: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Told apart from a process of the comparison by its setting."""
        return {**asdict(self), "setting": TRIAL}


@dataclass(frozen=True)
class Search:
    """trials: the default first. chosen: what served fastest; None where nothing beat the default."""

    trials: tuple[Trial, ...]
    chosen: Lever | None


def search_levers(comparison: Comparison) -> Search:
    """The fastest setting of the arm with most adapters in one workload. Trials that ended before are not run again, and
    one whose engine fails is written down, not raised."""
    spec = comparison.spec
    arm = comparison.arms[arm_name(spec.most_adapters)]
    levers = known_levers(
        arm.adapters, device=comparison.config.device, batch_sizes=spec.batch_sizes, slots=spec.slots,
        longest_prompt=max(map(len, comparison.prompts)), kernel_tables=comparison.kernel_tables,
    )  # fmt: skip
    tried: list[tuple[Lever, Trial]] = [(Lever("default"), _trial(comparison, arm, (), order=0))]
    default = tried[0][1]
    if default.cost_ms is None:
        return Search((default,), None)
    for lever in levers:
        tried.append((lever, _trial(comparison, arm, (lever,), order=len(tried))))
    helped = [lever for lever, trial in tried if _beats(trial, default)]
    if len(helped) > 1:
        tried.append((combine(helped), _trial(comparison, arm, helped, order=len(tried))))
    better = [(lever, trial) for lever, trial in tried if _beats(trial, default)]
    chosen = min(better, key=lambda pair: pair[1].cost_ms or 0.0)[0] if better else None
    return Search(tuple(replace(trial, chosen=lever is chosen) for lever, trial in tried), chosen)


def _beats(trial: Trial, default: Trial) -> bool:
    if trial.cost_ms is None or default.cost_ms is None:
        return False
    return trial.cost_ms < default.cost_ms * (1 - HELPS_FRACTION)


def _trial(comparison: Comparison, arm: Arm, levers: Sequence[Lever], *, order: int) -> Trial:
    """From its file if it ended before, else by running it."""
    name = re.sub(r"\W+", "-", "-".join(lever.name for lever in levers) or "default")
    path = comparison.directory / f"{TRIAL}-{comparison.workload}-{order}-{name}.json"
    if not path.exists():
        found = _ran(comparison, arm, levers, order=order, log=f"{TRIAL}-{comparison.workload}-{order}-{name}")
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(found)))
        os.replace(draft, path)
    read = json.loads(path.read_text())
    return Trial(**{**read, "levers": tuple(read["levers"])})


def _ran(comparison: Comparison, arm: Arm, levers: Sequence[Lever], *, order: int, log: str) -> Trial:
    nothing = Trial(
        comparison.workload, arm.name, order, tuple(lever.name for lever in levers), outcome="idle", reason="",
        batch_ms={}, cost_ms=None, chosen=False, gates=[], engine=None,
    )  # fmt: skip
    if idle := next((lever.idle for lever in levers if lever.idle), ""):
        return replace(nothing, reason=idle)
    config = combine(levers).applied_to(engine_config(comparison, arm))
    directory = comparison.directory / "logs" / log
    try:
        with EngineProcess(comparison.engine, config, python=comparison.python, directory=directory) as engine:
            gates = comparison.check(engine, arm)
            found = replace(nothing, gates=[asdict(gate) for gate in gates], engine=asdict(engine.ready))
            if failed := next((gate for gate in gates if not gate.passed), None):
                return replace(found, outcome="unproven", reason=f"{failed.what}: {failed.detail}")
            warm_up(comparison, engine, arm)
            batch_ms = dict(_probed(comparison, engine, arm))
    except EngineFailure as failure:
        outcome: Outcome = "unknown" if failure.kind == "option" else "failed"
        return replace(nothing, outcome=outcome, reason=failure.message.partition("\n")[0])
    return replace(found, outcome="measured", batch_ms=batch_ms, cost_ms=statistics.geometric_mean(batch_ms.values()))


def _probed(comparison: Comparison, engine: EngineProcess, arm: Arm) -> Iterator[tuple[str, float]]:
    """(batch size, median milliseconds of a batch), on requests that no repeat is asked."""
    spec = comparison.spec
    loads = loads_of(spec, workload=comparison.workload, num_adapters=len(arm.adapters))
    for load in loads[: len(spec.batch_sizes)]:  # the closed loop, in the first choice and sampling
        size = int(load.level)
        batches = draw_batches(
            load, comparison.prompts, adapters=list(arm.adapters), num_requests=_PROBE_BATCHES * size,
            output_tokens=comparison.output_tokens, repeat=_PROBE_REPEAT,
        )  # fmt: skip
        yield f"{size}", 1e3 * statistics.median(engine.serve(batches).wall_s)
