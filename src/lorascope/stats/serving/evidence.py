"""What serving says on each part of a hypothesis about overhead: a part is a (model, workload, batch size).

The unit of replication is the repeat. Parts of a repeat share its processes, so an average over parts is taken within each
repeat before its variance over repeats is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lorascope.metrics.serving import CLAIMED
from lorascope.stats.hypotheses import Evidence
from lorascope.stats.quality.multibootstrap import average_estimates
from lorascope.stats.serving.analyse import cost_logs
from lorascope.stats.serving.analysis import ServingAnalysis, ServingCell
from lorascope.stats.serving.cells import pick, standard_cells
from lorascope.stats.serving.repeats import FEWEST, estimate_of_logs, too_few
from lorascope.study.hypothesis import Overhead
from lorascope.study.spec import Study

REMEDY = f"at least {FEWEST} repeats of both arms"
_NOT_SERVED = Evidence("*", "*", None, False, "nothing was served", "`measure.serving` in the study, and a run of it")


def overhead_evidence(
    study: Study, hypothesis: Overhead, serving: ServingAnalysis | None
) -> tuple[list[Evidence], Evidence]:
    """Evidence for each (model, workload, batch size) that either arm was measured at, and for their average."""
    if serving is None:
        return [_NOT_SERVED], _NOT_SERVED
    metric = metric_of(hypothesis.on)
    cells = standard_cells(serving.cells)
    parts: list[Evidence] = []
    averages: list[dict[str, float] | None] = []
    for model in study.models:
        found = [cell for cell in cells if cell.model == model.name and cell.metric == metric]
        logs = dict(_logs_by_load(found, hypothesis))
        if not logs:
            why = "; ".join(
                _why_absent(serving, model.name, arm, None) for arm in (hypothesis.overhead, hypothesis.over)
            )
            parts.append(Evidence(model.name, "any workload", None, False, why, REMEDY))
        for (workload, level), by_repeat in logs.items():
            parts.append(_part(serving, hypothesis, (model.name, workload, level), by_repeat))
        averages.append(_average_of(list(logs.values())))
    return parts, _average(parts, averages)


def metric_of(on: str) -> str:
    """ "latency_p95" -> "latency_ms_p95"; throughput is called the same."""
    return CLAIMED[on].name


Loads = dict[tuple[str, float], dict[str, float] | None]


def _logs_by_load(cells: Sequence[ServingCell], hypothesis: Overhead) -> Loads:
    """Logs of the overhead by repeat, for each (workload, batch size) that either arm has; None where only one has it."""
    arms = {
        arm: {(cell.workload, cell.level or math.nan): cell for cell in cells if cell.arm == arm}
        for arm in (hypothesis.overhead, hypothesis.over)
    }
    first, second = arms[hypothesis.overhead], arms[hypothesis.over]
    loads = sorted({*first, *second})
    return {load: cost_logs(first[load], second[load]) if load in first and load in second else None for load in loads}


def _part(
    serving: ServingAnalysis,
    hypothesis: Overhead,
    place: tuple[str, str, float],
    logs: dict[str, float] | None,
) -> Evidence:
    model, workload, level = place
    where = f"{workload}, batch {level:g}"
    if logs is None:
        cells = pick(serving.cells, model, workload, metric=metric_of(hypothesis.on))
        absent = [a for a in (hypothesis.overhead, hypothesis.over) if not _has(cells, a, level)]
        why = "; ".join(_why_absent(serving, model, arm, workload) for arm in absent)
        return Evidence(model, where, None, False, why, "a run of both arms that passes its gates")
    if len(logs) < FEWEST:
        why = too_few(len(logs)) if logs else "the two arms share no repeat"
        return Evidence(model, where, None, False, why, REMEDY)
    return Evidence(model, where, estimate_of_logs(np.array(list(logs.values()))), True)


def _has(cells: Sequence[ServingCell], arm: str, level: float) -> bool:
    return any(cell.arm == arm and cell.level == level for cell in standard_cells(cells))


def _why_absent(serving: ServingAnalysis, model: str, arm: str, workload: str | None) -> str:
    reasons = [
        f"{arm} {found.reason}"
        for found in serving.left_out
        if (found.model, found.arm) == (model, arm) and workload in (None, found.workload)
    ]
    return reasons[0] if reasons else f"{arm} was not measured"


def _average_of(logs: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Mean over loads in every repeat that has them all; None if a load has none."""
    complete = [found for found in logs if found is not None]
    if not complete or len(complete) < len(logs):
        return None
    repeats = [repeat for repeat in complete[0] if all(repeat in found for found in complete)]
    return {repeat: float(np.mean([found[repeat] for found in complete])) for repeat in repeats}


def _average(parts: Sequence[Evidence], averages: Sequence[dict[str, float] | None]) -> Evidence:
    """Models are served in repeats of their own, so their averages are independent."""
    unusable = next((part for part in parts if not part.usable), None)
    if unusable is not None:
        why = f"{unusable.model}, {unusable.task}: {unusable.why}"
        return Evidence("*", "*", None, False, why, unusable.remedy)
    if any(found is None or len(found) < FEWEST for found in averages):
        return Evidence("*", "*", None, False, f"fewer than {FEWEST} repeats have every batch size", REMEDY)
    estimates = [estimate_of_logs(np.array(list(found.values()))) for found in averages if found]
    return Evidence("*", "*", average_estimates(estimates), True)
