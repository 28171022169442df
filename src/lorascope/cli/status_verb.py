"""`lorascope status`: how far a study is, read from outside while it runs, once or again and again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lorascope.cli.options import (
    DEFAULT_RESULTS,
    DEFAULT_STORE,
    AsJson,
    DataDir,
    Only,
    Overrides,
    ResultsDir,
    StoreAt,
    StudyFile,
    at_store,
    checked_data_dir,
    load,
)
from lorascope.cli.search_lines import search_lines
from lorascope.cli.steps import matching
from lorascope.tracking.console import output
from lorascope.tracking.progress import in_words

if TYPE_CHECKING:
    from lorascope.plan.running import RunningGang
    from lorascope.plan.status import StatusReader, StudyStatus

_STATES = ("done", "running", "failed", "blocked", "missing")
_BAR_WIDTH = 24
_INTERVAL_S = 2.0


def status(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    results: ResultsDir = DEFAULT_RESULTS,
    only: Only = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until nothing is left to run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a study has come: steps by phase, what runs where, the time left. Reads the store and the log alone, so
    it works from any process or machine that sees them."""
    from lorascope import api

    study = load(study_file, overrides)
    reader = api.watch(study, store=store, results=results, data_dir=checked_data_dir(data))
    if not watch:
        found = reader.read()
        print(json.dumps(status_as_json(found, only), indent=2)) if as_json else _print(found, only, store)
        return
    try:
        _watch_as_json(reader, only) if as_json else _watch(reader, only, output(), store)
    except KeyboardInterrupt:  # the study does not notice: it was only looked at
        raise typer.Exit(130) from None


def _watch(reader: StatusReader, only: str | None, console: Console, store: str) -> None:
    """Redraws on a terminal; elsewhere the state is printed whenever a step ends or begins."""
    if not console.is_terminal:
        shown = None
        while True:
            found = reader.read()
            if (states := [state for _, _, state in found.states]) != shown:
                shown = states
                _print(found, only, store)
            if found.is_over:
                return
            time.sleep(_INTERVAL_S)
    found = reader.read()
    with Live(rendered(found, only, store=store), console=console, auto_refresh=False) as live:
        while not found.is_over:
            time.sleep(_INTERVAL_S)
            found = reader.read()
            live.update(rendered(found, only, store=store), refresh=True)


def _watch_as_json(reader: StatusReader, only: str | None) -> None:
    """One line a look."""
    while True:
        found = reader.read()
        print(json.dumps(status_as_json(found, only)), flush=True)
        if found.is_over:
            return
        time.sleep(_INTERVAL_S)


def _print(found: StudyStatus, only: str | None, store: str) -> None:
    output().print(rendered(found, only, store=store))


def rendered(found: StudyStatus, only: str | None, *, store: str = DEFAULT_STORE) -> RenderableType:
    """The status for a terminal or a page of text. store: which the commands in it name."""
    chosen = set(matching({step.id: (step, label) for step, label, _ in found.states}, only))
    states = [(step, label, state) for step, label, state in found.states if step.id in chosen]
    done = sum(state == "done" for _, _, state in states)
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(found.study, style="bold"),
        ProgressBar(total=max(1, len(states)), completed=done, width=_BAR_WIDTH),
        Text(f"{done}/{len(states)} steps"),
        Text(left_in_words(found), style="dim"),
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    columns = [state for state in _STATES if any(own == state for _, _, own in states)]
    for column in columns:
        table.add_column(column, justify="right")
    for phase, counts in found.phases(chosen).items():
        table.add_row(phase, *(str(counts.get(column, "")) for column in columns))
    lines: list[RenderableType] = [head, Text(), table]
    gangs = [gang for gang in found.running if any(m.step_id in chosen for m in gang.members) or not gang.is_of_study]
    if gangs:
        lines += [Text(), _running_table(gangs, now_s=found.at_s)]
    lines += [Text(line) for line in search_lines(found.graph)]
    lines += _problems(states, store)
    return Group(*lines)


def left_in_words(found: StudyStatus) -> str:
    """ "about 3 min left (from ...)"."""
    if found.left is None:
        return ""
    words = ["at least"] if found.left.is_least else [] if found.left.is_rough else ["about"]
    words += ["roughly"] if found.left.is_rough else []
    amount = f"{' '.join(words)} {in_words(found.left.seconds)} left"
    return (
        f"{amount} (from {found.left.basis})" if found.running else f"{amount} once it runs (from {found.left.basis})"
    )


def _running_table(gangs: Sequence[RunningGang], *, now_s: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("running", "progress", "loss", "for", "where"):
        table.add_column(heading, no_wrap=heading != "running", overflow="fold")
    for gang in gangs:
        where, since = f"{gang.host}, process {gang.pid}", in_words(max(0.0, now_s - gang.since_s))
        for place, member in enumerate(gang.members):
            progress = ""
            if member.done is not None:
                total = f"/{member.total:,.0f}" if member.total else ""
                progress = f"{member.done:,.0f}{total} {member.unit}s"
            table.add_row(
                Text(f"{gang.kind}: {member.label}" if member.label is not None else f"{member.step_id} (not of it)"),
                progress,
                f"{member.loss:.4f}" if member.loss is not None else "",
                *((since, where) if place == 0 else ("together", "")),
            )
    return table


def _problems(states: Sequence[Any], store: str) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(f"{wanted}: {step.id}") for wanted in ("failed", "blocked") for step, _, state in states if state == wanted
    ]
    if any(state == "failed" for _, _, state in states):
        lines.append(Text(f"why a step failed: {at_store('lorascope show STEP', store)}"))
    return [Text(), *lines] if lines else []


def status_as_json(found: StudyStatus, only: str | None) -> dict[str, Any]:
    """The status as JSON literals."""
    chosen = set(matching({step.id: (step, label) for step, label, _ in found.states}, only))
    return {
        "study": found.study,
        "time_s": found.at_s,
        "is_over": found.is_over,
        "steps": [
            {"step": step.id, "kind": step.kind, "label": str(label), "state": state}
            for step, label, state in found.states
            if step.id in chosen
        ],
        "phases": {phase: dict(counts) for phase, counts in found.phases(chosen).items()},
        "running": [dataclasses.asdict(gang) for gang in found.running],
        "workers": [{"host": host, "pid": pid} for host, pid in found.workers],
        "left": dataclasses.asdict(found.left) if found.left else None,
    }
