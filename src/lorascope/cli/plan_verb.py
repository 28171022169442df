"""`lorascope plan`: what a study will take and why, before it takes anything."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.cli.options import (
    DEFAULT_STORE,
    AsJson,
    DataDir,
    Devices,
    Only,
    Overrides,
    StoreAt,
    StudyFile,
    checked_data_dir,
    load_with_data,
)
from lorascope.cli.steps import counted, matching, print_data, study_in_words
from lorascope.errors import EnvironmentProblem
from lorascope.tracking.console import output, rendering

if TYPE_CHECKING:
    from lorascope.plan.outlook import PlannedStep, StudyPlan

Like = Annotated[
    Path | None,
    typer.Option(
        "--like", metavar="DIR", help="A results folder whose effects and variances the chances are taken from."
    ),
]


def plan(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    machines: Annotated[int, typer.Option("--machines", metavar="N", help="Plan for N machines like this one.")] = 1,
    gpus_per_machine: Annotated[
        int | None,
        typer.Option("--gpus-per-machine", metavar="G", help="Workers on each. Default: as many GPUs as this one has."),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="First run the study's data, tokens and gates, a few updates of every arm, and each measurement once.",
        ),
    ] = False,
    like: Like = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write the plan as a document (plan.md), with its schedule."),
    ] = None,
    device: Devices = None,
    only: Only = None,
    steps: Annotated[bool, typer.Option("--steps", help="List every step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a study consists of, what of it is done, and what the rest will take. Runs nothing but what --calibrate
    asks for."""
    from lorascope import api
    from lorascope.study.checks.notices import study_notices

    data_dir = checked_data_dir(data)
    study, seen = load_with_data(study_file, overrides, data_dir)
    given: dict[str, Any] = {"store": store, "data_dir": data_dir, "devices": device}
    if calibrate:
        with rendering(Console(stderr=True)) as emit:
            api.calibrate(study, emit=emit, **given)
    found = api.plan(study, machines=machines, workers_each=gpus_per_machine, like=like, **given)
    chosen = matching({p.step.id: (p.step, p.label) for p in found.steps}, only)
    written = _write(found, write) if write else []
    if as_json:
        notices = {"notices": study_notices(study)}
        print(json.dumps({**plan_as_json(found, chosen), **seen.to_json(), **notices}, indent=2))
        return
    print(study_in_words(study))
    if only is not None or steps:
        listed = set(chosen)
        print()
        _print_steps([p for p in found.steps if p.step.id in listed])
    else:
        print_data(seen)
        print()
        _print_plan(found)
    for notice in study_notices(study):
        print(f"note: {notice}")
    for path in written:
        print(f"wrote {path}")


def _write(found: StudyPlan, target: Path) -> list[Path]:
    from lorascope.report.plan.document import write_plan
    from lorascope.version import __version__

    try:
        return write_plan(found, target, command=shlex.join(["lorascope", *sys.argv[1:]]), version=__version__)
    except OSError as error:
        raise EnvironmentProblem(
            f"{target} cannot be written: {error.strerror}", hint="choose another --write"
        ) from None


def _print_steps(steps: list[PlannedStep]) -> None:
    from lorascope.report.page import wording

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("state", "time", "step", "id"):
        table.add_column(column, no_wrap=column != "id", overflow="fold")
    for p in steps:
        seconds = "unknown" if p.estimate.seconds is None else wording.duration(p.estimate.seconds)
        state = "done" if p.is_cached else "missing"
        table.add_row(state, "" if p.is_cached else seconds, Text(f"{p.step.kind}: {p.label}"), p.step.id)
    output().print(table)
    print(f"\n{counted(len(steps), 'step')}, {sum(not p.is_cached for p in steps)} to compute")


def _decided(found: StudyPlan) -> list[str]:
    """How likely each claim is to be decided."""
    from lorascope.plan import deciding

    if found.deciding is None:
        return []
    return ["", *deciding.sentences(found.deciding), f"Basis: {found.deciding.basis}."]


def _print_plan(found: StudyPlan) -> None:
    from lorascope.plan.power import BASIS
    from lorascope.report.plan import wording as plan_wording
    from lorascope.report.plan.document import kinds_table

    console, summary = output(), kinds_table(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in summary.columns:
        table.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
    for place, row in enumerate(summary.rows):
        is_total = place == len(summary.rows) - 1
        table.add_row(*(Text(cell) for cell in row), style="bold" if is_total else None)
    console.print(table)
    print()
    sentences = [
        plan_wording.unknown_sentence(found),
        *plan_wording.schedule_sentences(found),
        plan_wording.basis_sentence(found),
        plan_wording.memory_sentence(found),
        plan_wording.disk_sentence(found),
        "",
        *(plan_wording.power_sentence(task) for task in found.power),
        f"Basis: {BASIS}.",
        *_decided(found),
    ]
    for sentence in sentences:
        if sentence is not None:
            console.print(sentence, markup=False, soft_wrap=True)


def plan_as_json(found: StudyPlan, chosen: list[str]) -> dict[str, Any]:
    """The plan as JSON literals. chosen: ids of the steps to list."""
    schedule, total, listed = found.schedule, found.total, set(chosen)
    return {
        "study": found.graph.study.name,
        "steps": [
            {
                **p.step.to_json(),
                "id": p.step.id,
                "label": str(p.label),
                "state": "done" if p.is_cached else "missing",
                "estimate": None if p.is_cached else dataclasses.asdict(p.estimate),
            }
            for p in found.steps
            if p.step.id in listed
        ],
        "kinds": [dataclasses.asdict(part) for part in found.kinds()],
        "phases": [dataclasses.asdict(part) for part in found.phases()],
        "total": dataclasses.asdict(total),
        "undecided": [p.step.id for p in found.undecided],
        "machines": {**dataclasses.asdict(found.machines), "measured_on": list(found.measured_on)},
        "worker_start_seconds": found.worker_start_seconds,
        "makespan_seconds": found.makespan_seconds if not total.num_unknown else None,
        "known_makespan_seconds": found.makespan_seconds,
        "schedule": {
            "makespan_seconds": schedule.makespan,
            "bound_seconds": schedule.bound,
            "bound_from": schedule.limit,
            "gap": schedule.gap,
            "busy_fraction": schedule.busy_fraction,
            "in_turns_seconds": found.in_turns_seconds,
            "makespan_by_machines": {str(n): seconds for n, seconds in found.by_machines.items()},
            "jobs": [
                {
                    "worker": found.machines.name(p.worker),
                    "steps": list(p.job.steps),
                    "start_s": p.start,
                    "end_s": p.end,
                }
                for p in schedule.placed
            ],
        },
        "disk": {
            "needed_bytes": total.disk_bytes,
            "num_unknown": total.num_disk_unknown,
            "free_bytes": found.free_bytes,
        },
        "power": [
            {**dataclasses.asdict(task), "with_more_seeds": {str(n): d for n, d in task.with_more_seeds.items()}}
            for task in found.power
        ],
        "deciding": None if found.deciding is None else dataclasses.asdict(found.deciding),
    }
