"""How the overhead over merging grows with the number of adapters and with the batch: a line through logs, with intervals.

    log overhead = intercept + per_adapter N + per_doubling log2(batch)

Cells of one repeat share its process, machine and hour, so residuals are no sample. The line is therefore fitted in every
repeat by itself, and coefficients are averaged over repeats with a t interval: summary measures (Matthews et al. 1990).
With all cells in every repeat this gives the pooled least-squares line, and it needs no model of how cells of a repeat
hang together; standard errors clustered by repeat would need far more than 5 or 10 clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lorascope.metrics.serving import SERVED
from lorascope.stats.interval import Interval
from lorascope.stats.serving.analysis import FitPoint, ServingCell, ServingRegression
from lorascope.stats.serving.cells import num_adapters, pick, places, standard_cells
from lorascope.stats.serving.repeats import FEWEST, OVER_REPEATS, estimate_of_logs, paired_logs, ratio_over_repeats

METRICS = ("latency_ms_p50", "latency_ms_p95", "tokens_per_second")
_POINTS = 13


def fit_overheads(cells: Sequence[ServingCell]) -> list[ServingRegression]:
    """One fit for each (model, workload) and metric in METRICS that has adapters beside a merged arm."""
    standard = standard_cells(cells)
    return [
        fit
        for model, workload in places(standard)
        for metric in METRICS
        for fit in _fit(pick(standard, model, workload, metric=metric), (model, workload, metric))
    ]


def _fit(cells: Sequence[ServingCell], place: tuple[str, str, str]) -> Iterator[ServingRegression]:
    merged = {cell.level: cell for cell in cells if cell.arm == "merged"}
    logs: dict[tuple[int, float], dict[str, float]] = {}
    for cell in cells:
        count = num_adapters(cell.arm)
        if count is not None and cell.level and cell.level in merged:
            # the sign of throughput is turned so that above 0 is always dearer
            pair = (merged[cell.level], cell) if SERVED[cell.metric].higher_is_better else (cell, merged[cell.level])
            logs[count, cell.level] = paired_logs(pair[0].repeats, pair[1].repeats)
    if not logs:
        return
    repeats = [repeat for repeat in next(iter(logs.values())) if all(repeat in found for found in logs.values())]
    numbers, levels = {count for count, _ in logs}, {level for _, level in logs}
    design = np.array([[1.0, count, math.log2(level)] for count, level in logs])
    reason = ""
    if len(numbers) < 2 or len(levels) < 2:
        reason = f"{len(numbers)} numbers of adapters and {len(levels)} batch sizes: a slope takes two of each"
    elif len(logs) < 4 or np.linalg.matrix_rank(design) < 3:
        reason = f"{len(logs)} cells: a line with two slopes takes at least 4, not all in a row"
    elif len(repeats) < FEWEST:
        some = "1 repeat has" if len(repeats) == 1 else f"{len(repeats)} repeats have"
        reason = f"{some} every cell: an interval takes at least {FEWEST}"
    if reason:
        yield ServingRegression(*place, None, None, None, None, len(logs), len(repeats), [], reason)
        return
    values = np.array([[found[repeat] for found in logs.values()] for repeat in repeats])  # [repeats, cells]
    coefficients = np.linalg.lstsq(design, values.T, rcond=None)[0]  # [3, repeats]
    intercept, adapter, doubling = (_interval(row) for row in coefficients)
    yield ServingRegression(
        *place, intercept, adapter, doubling, _r_squared(values, design @ coefficients.mean(1)), len(logs), len(repeats),
        list(_line(coefficients, numbers, levels)),
    )  # fmt: skip


def _interval(values: np.ndarray) -> Interval:
    return estimate_of_logs(values).interval(0.95, method=OVER_REPEATS)


def _r_squared(values: np.ndarray, fitted: np.ndarray) -> float:
    """Of the pooled line, over all repeats and cells."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - fitted) ** 2).sum()) / total if total else 1.0


def _line(coefficients: np.ndarray, numbers: set[int], levels: set[float]) -> Iterator[FitPoint]:
    for level in sorted(levels):
        for count in np.linspace(min(numbers), max(numbers), _POINTS):
            logs = np.array([1.0, count, math.log2(level)]) @ coefficients
            yield FitPoint(float(count), level, ratio_over_repeats(estimate_of_logs(logs)))
