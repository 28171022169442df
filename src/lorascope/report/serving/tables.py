"""Tables of serving: figures by load, overheads, equivalence, engines, memory, the fit, switching, failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorascope.metrics.serving import SERVED
from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import (
    arm_name,
    arms_of,
    load_name,
    percent,
    place_name,
    places_of,
    serving_of,
)
from lorascope.report.study.ledger import number_columns
from lorascope.stats.facts.served import ServedGateFacts
from lorascope.stats.interval import Interval
from lorascope.stats.serving.advice import STATES
from lorascope.stats.serving.analysis import ServingCell, ServingOverhead

_SHOWN = (
    ("latency_ms_p50", "latency p50 (ms)"),
    ("latency_ms_p95", "p95"),
    ("latency_ms_p99", "p99"),
    ("ttft_ms_p50", "first token p50 (ms)"),
    ("ttft_ms_p95", "p95"),
    ("itl_ms_p50", "between tokens p50 (ms)"),
    ("itl_ms_p95", "p95"),
    ("tokens_per_second", "tokens/s"),
    ("requests_per_second", "requests/s"),
)
_OVERHEADS = ("latency_ms_p95", "tokens_per_second")


def results_table(facts: Facts) -> Table | None:
    """Medians over repeats of every load."""
    order = arms_of(facts)
    loads: dict[tuple, dict[str, ServingCell]] = {}
    for cell in serving_of(facts).cells:
        if cell.loop in ("batch", "rate"):
            key = (cell.model, cell.workload, cell.loop, cell.level, cell.choice, cell.sampling, cell.setting, cell.arm)
            loads.setdefault(key, {})[cell.metric] = cell
    shown = [(metric, heading) for metric, heading in _SHOWN if any(metric in row for row in loads.values())]
    rows = []
    for place in places_of(facts):
        here = [(key, row) for key, row in loads.items() if key[:2] == place and "latency_ms_p50" in row]
        here.sort(key=lambda item: (order.index(item[0][-1]), item[0][-2], item[0][2], item[0][4], item[0][3]))
        for _, row in here:
            first = row["latency_ms_p50"]
            values = (wording.significant(row[m].median, 3) if m in row else wording.ABSENT for m, _ in shown)
            named = (place_name(facts, place), arm_name(first.arm), load_name(first))
            rows.append((*named, *values, wording.count(first.num_repeats)))
    if not rows:
        return None
    return Table(
        name="serving_results",
        title="Serving: figures by load",
        columns=number_columns("workload", "arm", "load", *(h for _, h in shown), "repeats", numeric_from=3),
        rows=tuple(rows),
        note="Medians over repeats of each process' own figure. Greedy, default setting and adapters in turn (round "
        "robin) unless the load says otherwise. Tokens/s: generated tokens, or prompt tokens where nothing is generated.",
    )


def overhead_table(facts: Facts, reference: str) -> Table | None:
    """Paired overheads over one reference, p95 latency and throughput, every closed or open loop."""
    order, places = arms_of(facts), places_of(facts)
    found = [o for o in serving_of(facts).overheads if o.reference == reference and o.metric in _OVERHEADS]
    found.sort(
        key=lambda o: (places.index((o.model, o.workload)), _OVERHEADS.index(o.metric), order.index(o.arm), o.loop,
                       o.setting, o.choice, o.level or 0.0)
    )  # fmt: skip
    rows = tuple(
        (
            place_name(facts, (o.model, o.workload)),
            arm_name(o.arm),
            load_name(o),
            _metric(o),
            percent(o.estimate),
            _range(o.interval),
            _range(o.bootstrap),
            f"{percent(o.median)} ({wording.decimal(100 * o.mad)} points)",
            wording.count(o.num_repeats) + (f" ({o.num_dropped} dropped)" if o.num_dropped else ""),
        )
        for o in found
    )
    if not rows:
        return None
    return Table(
        name=f"serving_overhead_{reference}",
        title=f"Overhead over {arm_name(reference)}",
        columns=number_columns(
            "workload", "arm", "load", "of", "overhead", "95% t interval", "bootstrap interval", "median (MAD)",
            "repeats", numeric_from=4,
        ),
        rows=rows,
        note="Above 0: more expensive; throughput is turned into time per token. Geometric mean of the ratios within "
        "repeats. The t interval (log scale, over repeats) decides. The percentile bootstrap over repeats decides nothing: in "
        "simulation it contains the true value in 84% of comparisons of 5 repeats and 90% of 10, where it says 95%.",
    )  # fmt: skip


def _metric(o: ServingOverhead) -> str:
    return SERVED[o.metric].cost


def _range(interval: Interval | None) -> str:
    return wording.ABSENT if interval is None else f"{percent(interval.low)} to {percent(interval.high)}"


def gates_table(facts: Facts) -> Table | None:
    """Equivalence with the offline model, the repeats of a gate in one row; what failed is marked."""
    groups: dict[tuple[str, ...], list[ServedGateFacts]] = {}
    for gate in facts.served.gates:
        key = (gate.model, gate.workload, gate.arm, gate.setting, gate.what)
        groups.setdefault(key, []).append(gate)
    rows, marked = [], set()
    for (model, workload, arm, setting, what), gates in groups.items():
        failed = sum(not gate.passed for gate in gates)
        if failed:
            marked.add(len(rows))
        worst = min(gates, key=lambda gate: (gate.passed, gate.value * (1 if what == "token match" else -1)))
        least = "at least" if what == "token match" else "at most"
        rows.append(
            (
                place_name(facts, (model, workload)),
                arm_name(arm) if setting == "default" else f"{arm_name(arm)}, {setting}",
                what,
                "failed" if failed else "passed",
                wording.drift(worst.value),
                f"{least} {wording.drift(worst.tolerance)}",
                wording.count(worst.n),
                f"{len(gates) - failed} of {len(gates)}",
                worst.detail or wording.ABSENT,
            )
        )
    if not rows:
        return None
    return Table(
        name="serving_gates",
        title="Equivalence of served and offline outputs",
        columns=(
            *number_columns(
                "workload", "arm", "what", "verdict", "worst value", "allowed", "n", "passed", numeric_from=4
            ),
            Column("remark"),
        ),
        rows=tuple(rows),
        marked=frozenset(marked),
        note="No arm is timed before its outputs equal those of transformers and peft on the same files; the worst "
        "process is shown. n: tokens or examples compared.",
    )


def engines_table(facts: Facts) -> Table | None:
    """What served each arm, with the settings in effect; processes that are alike in one row."""
    groups: dict[tuple[str, ...], int] = {}
    for fact in facts.served.engines:
        if not fact.versions:
            continue
        key = (
            place_name(facts, (fact.model, fact.workload)),
            arm_name(fact.arm),
            fact.setting,
            f"{fact.engine} ({', '.join(f'{k} {v}' for k, v in fact.versions.items())})",
            str(fact.device_name),
            _settings(fact.settings),
            fact.head or wording.ABSENT,
            "; ".join(fact.notes) or wording.ABSENT,
        )
        groups[key] = groups.get(key, 0) + 1
    if not groups:
        return None
    headings = ("workload", "arm", "setting", "engine", "device", "settings in effect", "head", "notes")
    return Table(
        name="serving_engines",
        title="Engines",
        columns=(*(Column(heading) for heading in headings), Column("processes", numeric=True)),
        rows=tuple((*key, wording.count(count)) for key, count in groups.items()),
        note="Settings as the engine reports them after it started. Head: where the classification head is, in the adapter "
        "or in the model.",
    )


def _settings(settings: Mapping[str, Any]) -> str:
    spoken = {True: "yes", False: "no", None: "unset"}
    return ", ".join(
        f"{key} {spoken[value] if value is None or isinstance(value, bool) else value}"
        for key, value in settings.items()
    )


_FACTS = (
    "load_s",
    "weights_bytes",
    "adapter_bytes",
    "process_bytes",
    "peak_process_bytes",
    "device_bytes",
    "peak_device_bytes",
)


def memory_table(facts: Facts) -> Table | None:
    """Memory and load times of engine processes, medians over repeats."""
    cells = [cell for cell in serving_of(facts).cells if cell.loop == "none" and cell.setting == "default"]
    shown = [metric for metric in _FACTS if any(cell.metric == metric for cell in cells)]
    rows = []
    for place in places_of(facts):
        for arm in arms_of(facts):
            here = {c.metric: c for c in cells if (c.model, c.workload, c.arm) == (*place, arm)}
            if here:
                values = (
                    wording.ABSENT if m not in here
                    else wording.duration(here[m].median) if m == "load_s"
                    else wording.bytes_text(here[m].median)
                    for m in shown
                )  # fmt: skip
                repeats = wording.count(max(cell.num_repeats for cell in here.values()))
                rows.append((place_name(facts, place), arm_name(arm), *values, repeats))
    if not rows:
        return None
    return Table(
        name="serving_memory",
        title="Memory and load times",
        columns=number_columns("workload", "arm", *(SERVED[m].title for m in shown), "repeats", numeric_from=2),
        rows=tuple(rows),
        note="Medians over repeats. Adapters: all slots together. Peaks include the key-value cache that was reserved.",
    )


def regression_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            place_name(facts, (fit.model, fit.workload)),
            SERVED[fit.metric].title,
            _factor(fit.per_adapter),
            _factor(fit.per_doubling),
            wording.decimal(fit.r_squared, 2),
            wording.count(fit.num_cells),
            wording.count(fit.num_repeats),
            fit.reason or wording.ABSENT,
        )
        for fit in serving_of(facts).regressions
    )
    if not rows:
        return None
    return Table(
        name="serving_regression",
        title="How the overhead over merging grows",
        columns=(
            *number_columns(
                "workload", "of", "per further adapter (95%)", "per doubling of the batch (95%)", "R²", "cells",
                "repeats", numeric_from=2,
            ),
            Column("remark"),
        ),
        rows=rows,
        note="log overhead = a + b N + c log2(batch), fitted in every repeat; coefficients with a t interval over repeats, "
        "shown as a change in percent.",
    )  # fmt: skip


def _factor(log: Interval | None) -> str:
    import math

    if log is None:
        return wording.ABSENT
    estimate, low, high = (percent(math.exp(value)) for value in (log.estimate, log.low, log.high))
    return f"{estimate} ({low} to {high})"


def switching_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            place_name(facts, (row.model, row.workload)),
            arm_name(row.arm),
            STATES.get(row.state, row.state),
            wording.significant(row.median_ms, 3),
            f"{wording.significant(row.latency_ms.low, 3)} to {wording.significant(row.latency_ms.high, 3)}"
            if row.latency_ms
            else wording.ABSENT,
            f"{wording.ratio(row.ratio.estimate)} ({wording.ratio_range(row.ratio)})" if row.ratio else wording.ABSENT,
            wording.count(row.num_repeats),
        )
        for row in serving_of(facts).switching
    )
    headings = ("median latency (ms)", "95% interval", "times a resident one's (95%)", "repeats")
    return Table(
        name="serving_switching",
        title="Latency by where the adapter lies",
        columns=number_columns("workload", "arm", "the adapter is", *headings, numeric_from=3),
        rows=rows,
    ) if rows else None  # fmt: skip


def failures_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            place_name(facts, (row.model, row.workload)),
            arm_name(row.arm),
            row.setting,
            wording.count(row.repeat + 1) if row.repeat is not None else wording.ABSENT,
            " ".join(row.text.split()),
        )
        for row in facts.served.failures
    )
    return Table(
        name="serving_failures",
        title="Engine processes that failed",
        columns=tuple(Column(heading) for heading in ("workload", "arm", "setting", "repeat", "why")),
        rows=rows,
        marked=frozenset(range(len(rows))),
    ) if rows else None  # fmt: skip
