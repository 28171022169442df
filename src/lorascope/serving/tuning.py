"""The search for the setting that serves an arm's adapters fastest: levers one by one, then those that helped together.

Every trial is a fresh engine process that must first be seen to answer what the runs do, and is then asked for requests of
its own. So the study's own requests are new to whatever wins, and what it gains is measured like everything else: in a
fresh process of every repeat, next to the default setting. A lever that only seemed to help is found out there.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorascope.serving.arms import EngineArm
from lorascope.serving.engines import EngineProcess
from lorascope.serving.exchange import EngineFailure
from lorascope.serving.levers import Lever, combine, known_levers
from lorascope.serving.load import draw_batches, loads_of
from lorascope.serving.protocol import ServingComparison, engine_config, warm_up
from lorascope.serving.record import TRIAL
from lorascope.serving.together import OUT_OF_MEMORY, Started, Turns, measured_in_turns
from lorascope.study.measure import arm_name

HELPS_FRACTION = 0.01
"""By how much a trial has to be faster than the default to count as such: less is within a process' luck."""
_PROBE_REPEAT = -2  # repeats count from 0, and -1 is the warm-up
_PROBE_BATCHES = 4  # of each size

Outcome = Literal["measured", "idle", "unknown", "failed", "unproven"]


@dataclass(frozen=True)
class TuningTrial:
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

    trials: tuple[TuningTrial, ...]
    chosen: Lever | None


def search_levers(comparison: ServingComparison) -> Search:
    """The fastest setting of the arm to tune in one workload. Trials that ended before are not run again, and one whose
    engine fails is written down, not raised."""
    spec = comparison.spec
    arm = comparison.arms[arm_name(spec.tuned_adapters)]
    levers = known_levers(
        arm.adapters, device=comparison.config.device, batch_sizes=spec.batch_sizes, slots=spec.slots,
        longest_prompt=max(map(len, comparison.prompts)), kernel_tables=comparison.kernel_tables,
    )  # fmt: skip
    settings = [_Setting(comparison, arm, (), 0)]
    settings += [_Setting(comparison, arm, (lever,), order) for order, lever in enumerate(levers, start=1)]
    trials: list[TuningTrial] = []
    for first in range(0, len(settings), spec.engines_at_once):
        trials += _trials(settings[first : first + spec.engines_at_once])
        if trials[0].cost_ms is None:  # nothing can be held against a default that does not serve
            return Search(tuple(trials), None)
    helped = [s for s, trial in zip(settings, trials, strict=True) if _beats(trial, trials[0])]
    if len(helped) > 1:
        both = tuple(lever for setting in helped for lever in setting.levers)
        settings.append(_Setting(comparison, arm, both, len(settings)))
        trials += _trials(settings[-1:])
    better = [(trial.cost_ms, s.order) for s, trial in zip(settings, trials, strict=True) if _beats(trial, trials[0])]
    if not better:
        return Search(tuple(trials), None)
    _, best = min(better)
    chosen = tuple(replace(trial, chosen=trial.order == best) for trial in trials)
    return Search(chosen, combine(settings[best].levers))


def _beats(trial: TuningTrial, default: TuningTrial) -> bool:
    if trial.cost_ms is None or default.cost_ms is None:
        return False
    return trial.cost_ms < default.cost_ms * (1 - HELPS_FRACTION)


@dataclass(frozen=True)
class _Setting:
    """Levers to try on an arm; none: the default. order: its place in the search."""

    comparison: ServingComparison
    arm: EngineArm
    levers: tuple[Lever, ...]
    order: int

    @property
    def name(self) -> str:
        levers = re.sub(r"\W+", "-", "-".join(lever.name for lever in self.levers) or "default")
        return f"{TRIAL}-{self.comparison.workload}-{self.order}-{levers}"

    @property
    def path(self) -> Path:
        return self.comparison.directory / f"{self.name}.json"

    @property
    def idle(self) -> str:
        return next((lever.idle for lever in self.levers if lever.idle), "")

    def untried(self) -> TuningTrial:
        """What there is to say of it before an engine is asked."""
        return TuningTrial(
            self.comparison.workload, self.arm.name, self.order, tuple(lever.name for lever in self.levers),
            outcome="idle", reason=self.idle, batch_ms={}, cost_ms=None, chosen=False, gates=[], engine=None,
        )  # fmt: skip

    def engine(self) -> EngineProcess:
        comparison = self.comparison
        config = combine(self.levers).applied_to(engine_config(comparison, self.arm))
        directory = comparison.directory / "logs" / self.name
        return EngineProcess(comparison.engine, config, python=comparison.python, directory=directory)


def _trials(settings: Sequence[_Setting]) -> list[TuningTrial]:
    """From their files if they ended before, else by running them: started at once, measured in turns, the default last, so
    that no lever is chosen for being measured on a quieter machine. One for which the others left no memory comes after them,
    alone."""
    missing = [setting for setting in settings if not setting.path.exists()]
    for setting in missing:
        if setting.idle:
            _write_down(setting, setting.untried())
    asked = {s.order: s for s in sorted(missing, key=lambda s: s.order == 0) if not s.idle}

    def make(order: int) -> EngineProcess:
        return asked[order].engine()

    def measure(order: int, engine: Started, /, *, is_beside_others: bool) -> Turns[TuningTrial]:
        return _tried(asked[order], engine, is_beside_others=is_beside_others)

    for order, trial in measured_in_turns([list(asked)], make, measure, rest=settings[0].comparison.rests):
        _write_down(asked[order], trial)
    read = [json.loads(setting.path.read_text()) for setting in settings]
    return [TuningTrial(**{**one, "levers": tuple(one["levers"])}) for one in read]


def _write_down(setting: _Setting, trial: TuningTrial) -> None:
    draft = setting.path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(trial)))
    os.replace(draft, setting.path)


def _tried(setting: _Setting, engine: Started, *, is_beside_others: bool) -> Turns[TuningTrial]:
    """Raises EngineFailure where other engines left no memory."""
    comparison, arm, nothing = setting.comparison, setting.arm, setting.untried()
    try:
        if isinstance(engine, EngineFailure):
            raise engine
        try:
            gates = comparison.check(engine, arm)
            found = replace(nothing, gates=[asdict(gate) for gate in gates], engine=asdict(engine.ready))
            if failed := next((gate for gate in gates if not gate.passed), None):
                return replace(found, outcome="unproven", reason=f"{failed.what}: {failed.detail}")
            warm_up(comparison, engine, arm)
            batch_ms = yield from _probed(comparison, engine, arm)
        finally:
            engine.end()
    except EngineFailure as failure:
        if is_beside_others and failure.kind == OUT_OF_MEMORY:
            raise
        outcome: Outcome = "unknown" if failure.kind == "option" else "failed"
        return replace(nothing, outcome=outcome, reason=failure.message.partition("\n")[0])
    return replace(found, outcome="measured", batch_ms=batch_ms, cost_ms=statistics.geometric_mean(batch_ms.values()))


def _probed(comparison: ServingComparison, engine: EngineProcess, arm: EngineArm) -> Turns[dict[str, float]]:
    """The median milliseconds of a batch by its size, on requests that no repeat is asked; pauses before every size."""
    spec = comparison.spec
    batch_ms = {}
    loads = loads_of(spec, workload=comparison.workload, num_adapters=len(arm.adapters))
    for load in loads[: len(spec.batch_sizes)]:  # the closed loop, in the first choice and sampling
        yield
        size = int(load.level)
        batches = draw_batches(
            load, comparison.prompts, adapters=list(arm.adapters), num_requests=_PROBE_BATCHES * size,
            output_tokens=comparison.output_tokens, repeat=_PROBE_REPEAT,
        )  # fmt: skip
        batch_ms[f"{size}"] = 1e3 * statistics.median(engine.serve(batches).wall_s)
    return batch_ms
