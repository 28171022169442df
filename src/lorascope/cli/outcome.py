"""The end of a run: the verdicts, what failed and the remedy, where the report is."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lorascope.cli.options import DEFAULT_STORE, at_store
from lorascope.engine.step import Step
from lorascope.printable import printable
from lorascope.stats.analysis import HypothesisResult
from lorascope.tracking.progress import in_words

_STYLES = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}


def print_outcome(outcome: Any, console: Console, *, store: str = DEFAULT_STORE) -> None:
    """outcome: api.Outcome (done, cached, failed, blocked, seconds, report, verdicts). store: where its steps are."""
    print_verdicts(outcome.verdicts or (), console, metrics=outcome.metrics)
    for step_id, failure in outcome.failed.items():
        console.print(f"\n[bold red]failed[/]: {escape(step_id)}", highlight=False, soft_wrap=True)
        show = f"lorascope show {step_id}"
        text = failure.text.replace(show, at_store(show, store))
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        if failure.traceback:
            told = f"  the traceback: {at_store(show, store)}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
    for cause, count in Counter(outcome.blocked.values()).items():
        noun = "step" if count == 1 else "steps"
        console.print(f"{count} {noun} could not run without {cause}", markup=False, soft_wrap=True)
    settled = {"computed": outcome.done, "from the store": outcome.cached, "failed": outcome.failed}
    settled["not run"] = outcome.blocked
    counts = [f"{len(steps)} {what}" for what, steps in settled.items() if steps]
    console.print(f"\nsteps: {', '.join(counts)}; {in_words(outcome.seconds)}", highlight=False)
    if outcome.report:
        console.print(f"report: {outcome.report}", markup=False, highlight=False, soft_wrap=True)
    if outcome.failed:
        console.print("what is finished is kept: correct the cause and give the same command again", highlight=False)


def print_verdicts(
    verdicts: Iterable[HypothesisResult], console: Console, *, metrics: Mapping[str, str | None]
) -> None:
    """A line for each hypothesis. metrics: hypothesis -> what its estimate is of."""
    from lorascope.report.page import wording

    verdicts = list(verdicts)
    if not verdicts:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("hypothesis", "verdict", "estimate, interval", "claim"):
        table.add_column(column, overflow="fold")
    for result in verdicts:
        style = _STYLES[result.verdict]
        estimate = wording.estimate_text(result, metrics.get(result.name))
        claim = escape(printable(result.claim))
        table.add_row(escape(result.name), f"[{style}]{result.verdict}[/]", escape(estimate), claim)
    console.print()
    console.print(table)
    for result in verdicts:
        if result.verdict == "inconclusive" and result.would_decide:
            line = f"{result.name} would be decided by: {result.would_decide}"
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def outcome_as_json(outcome: Any) -> dict[str, Any]:
    """The outcome as JSON literals."""
    return {
        "computed": list(outcome.done),
        "cached": list(outcome.cached),
        "failed": {
            step_id: {"error": failure.error_name, "message": failure.message, "hint": failure.hint}
            for step_id, failure in outcome.failed.items()
        },
        "blocked": dict(outcome.blocked),
        "seconds": outcome.seconds,
        "report": str(outcome.report) if outcome.report else None,
        "verdicts": [dataclasses.asdict(result) for result in outcome.verdicts or ()],
    }


def states_by_kind(states: Iterable[tuple[Step, str]]) -> dict[str, Mapping[str, int]]:
    """kind -> state -> how many steps, kinds in the order of the graph."""
    table: dict[str, dict[str, int]] = {}
    for step, state in states:
        row = table.setdefault(step.kind, {})
        row[state] = row.get(state, 0) + 1
    return dict(table)
