"""Tables of record: what runs cost, which gates held, what failed, what the protocol is worth."""

from __future__ import annotations

from statistics import median

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.report.study.cost import values
from lorascope.stats.facts.found import FailureFacts, GateFacts


def number_columns(*headings: str, numeric_from: int = 1) -> tuple[Column, ...]:
    """Columns of which those from place `numeric_from` on hold numbers."""
    return tuple(Column(heading, numeric=place >= numeric_from) for place, heading in enumerate(headings))


def _middle(facts: Facts, model: str, task: str, method: str, key: str) -> float | None:
    found = values(facts, model, method, key, task=task)
    return median(found) if found else None


def cost_table(facts: Facts) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for model, task in facts.cells:
        for method in facts.methods:
            if not facts.cell_runs(model, task, method):
                continue

            def of(key: str, model=model, task=task, method=method) -> float | None:
                return _middle(facts, model, task, method, key)

            trainable, total = of("trainable_parameters"), of("total_parameters")
            share = f" ({wording.significant(100 * trainable / total)}%)" if trainable and total else ""
            energy, step_ms = of("energy_joules"), of("step_ms_median")
            rows.append(
                (
                    facts.place(model, task),
                    wording.name(method),
                    wording.count(len(facts.cell_runs(model, task, method))),
                    wording.duration(of("training_seconds")),
                    wording.count(of("updates")),
                    wording.duration(step_ms / 1000) if step_ms else wording.ABSENT,
                    wording.count(of("tokens_per_second")),
                    wording.fraction(of("padding_fraction")),
                    wording.fraction(of("mfu")),
                    wording.bytes_text(of("peak_memory_bytes")),
                    wording.magnitude(trainable) + share,
                    wording.bytes_text(of("export_bytes")),
                    wording.ABSENT if energy is None else f"{wording.significant(energy / 1000, 3)} kJ",
                )
            )
    if not rows:
        return None
    headings = ("task", "method", "runs", "training time", "updates", "step", f"{facts.unit}s/s", "padding", "MFU")
    headings += ("peak memory", "trainable parameters", "export", "energy")
    shared = {(run.device, run.precision) for run in facts.runs}
    place = wording.listing(sorted(f"{device} in {precision}" for device, precision in shared))
    return Table(
        name="cost",
        title="Cost of one run",
        columns=number_columns(*headings, numeric_from=2),
        rows=tuple(rows),
        note=f"Medians over runs, measured on {place}. {facts.unit.capitalize()}s/s leaves padding out; MFU is the "
        "share of the device's peak arithmetic that the model's own operations use; a dash: not measured.",
    )


def gates_table(facts: Facts) -> Table | None:
    """Failed gates first; gates that held are summed up by kind, because they need no attention."""
    if not facts.gates:
        return None
    failed = [gate for gate in facts.gates if not gate.passed]
    kinds = list(dict.fromkeys(gate.gate for gate in facts.gates))
    rows: list[tuple[str, ...]] = [
        (
            gate.gate,
            "FAILED",
            _where(facts, gate),
            wording.compact(gate.value),
            wording.compact(gate.threshold),
            gate.detail,
        )
        for gate in failed
    ]
    for kind in kinds:
        held = [gate for gate in facts.gates if gate.gate == kind and gate.passed]
        if held:
            rows.append(_held_row(facts, kind, held))
    return Table(
        name="gates",
        title="Validity gates",
        columns=(
            Column("gate"),
            Column("result"),
            Column("where"),
            Column("value", numeric=True),
            Column("threshold", numeric=True),
            Column("detail"),
        ),
        rows=tuple(rows),
        note="A gate is a check that must pass before the numbers mean anything. For gates that held several "
        "times the range of "
        "values is shown.",
        marked=frozenset(range(len(failed))),
    )


def _held_row(facts: Facts, kind: str, held: list[GateFacts]) -> tuple[str, ...]:
    numbers = [number for gate in held if (number := wording.as_float(gate.value)) is not None]
    thresholds = {gate.threshold for gate in held if gate.threshold is not None}
    ends = [wording.compact(number) for number in (min(numbers), max(numbers))] if numbers else [wording.ABSENT]
    details = list(dict.fromkeys(gate.detail for gate in held))
    return (
        kind,
        "held" if len(held) == 1 else f"held, {len(held)} of {sum(g.gate == kind for g in facts.gates)}",
        _where(facts, held[0]) if len(held) == 1 else "",
        " to ".join(dict.fromkeys(ends)),
        wording.compact(thresholds.pop()) if len(thresholds) == 1 else wording.ABSENT,
        details[0] if len(details) == 1 else "",
    )


def _where(facts: Facts, row: GateFacts | FailureFacts) -> str:
    place = facts.place(row.model, row.task) if row.model and row.task else row.model or ""
    parts = [
        place,
        wording.name(row.method) if row.method else "",
        f"seed {row.seed}" if row.seed is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def failures_table(facts: Facts) -> Table | None:
    if not facts.failures:
        return None
    return Table(
        name="failures",
        title="What failed",
        columns=number_columns("step", "where", "error", "what it said", numeric_from=9),
        rows=tuple(
            (f"{row.kind} ({row.step})", _where(facts, row), row.error, " ".join(row.text.split()))
            for row in facts.failures
        ),
        marked=frozenset(range(len(facts.failures))),
    )


def protocol_gap_table(facts: Facts) -> Table | None:
    gaps = facts.stated.protocol_gap or ()
    if not gaps:
        return None
    rows = []
    for row in gaps:
        metric = facts.primary_metric(row.task)
        gap = None if row.strict is None or row.paper is None else row.paper - row.strict
        rows.append(
            (
                facts.place(row.model, row.task),
                wording.name(row.method),
                wording.score(metric, row.strict),
                wording.score(metric, row.paper),
                wording.gap(metric, gap),
            )
        )
    return Table(
        name="protocol_gap",
        title="What the protocol is worth",
        columns=number_columns("task", "method", "strict", "paper", "paper − strict", numeric_from=2),
        rows=tuple(rows),
        note="Strict: mean over seeds of the test score at the checkpoint chosen on held-out training "
        "examples. Paper: the "
        "literature's habit, the best epoch on the development set itself, median over seeds. The gap is "
        "optimism, not quality.",
    )
