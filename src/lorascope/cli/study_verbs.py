"""Verbs about a study: `validate`, `plan`, `run`, `status`, `report`, `verify`; each a thin skin over `lorascope.api`.

The API is imported inside the verbs: `--help` and `validate` must answer at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorascope.cli.console import output, rendering
from lorascope.cli.options import (
    DEFAULT_RESULTS,
    DEFAULT_STORE,
    AsJson,
    DataDir,
    Devices,
    Executor,
    Only,
    Overrides,
    ResultsDir,
    StoreDir,
    StudyFile,
    checked_data_dir,
    load,
)
from lorascope.cli.outcome import outcome_as_json, print_outcome, states_by_kind
from lorascope.cli.search_lines import search_lines
from lorascope.errors import StudyError
from lorascope.registry import EXECUTORS, nearest

if TYPE_CHECKING:
    from lorascope.engine.step import Step
    from lorascope.study.spec import Study

    StepState = tuple[Step, str]


def validate(study_file: StudyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a study, and that the files it names exist, without starting anything."""
    study = load(study_file, overrides)
    if as_json:
        print(
            json.dumps({"valid": True, "num_runs": num_runs(study), "study": study.model_dump(mode="json")}, indent=2)
        )
        return
    print(f"{study_file} is a valid study: {_in_words(study)}")


def plan(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    data: DataDir = None,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Show the steps a study consists of and which are in the store already. Starts nothing."""
    from lorascope import api

    study = load(study_file, overrides)
    data_dir = checked_data_dir(data)
    planned = api.graph(study, store=store, data_dir=data_dir)
    labels = planned.labels
    states = _matching(api.status(study, store=store, data_dir=data_dir), only, labels)
    if as_json:
        steps = [{**step.to_json(), "id": step.id, "label": str(labels[step.id]), "state": s} for step, s in states]
        print(json.dumps(steps, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("state", "step", "id"):
        table.add_column(column, no_wrap=column != "id", overflow="fold")
    for step, state in states:
        table.add_row(state, Text(f"{step.kind}: {labels[step.id]}"), step.id)
    print(f"{_in_words(study)}\n")
    output().print(table)
    missing = sum(state != "done" for _, state in states)
    print("".join(f"\n{line}" for line in search_lines(planned)))
    print(f"{_count(len(states), 'step')}, {missing} to compute, then the analysis and the report")


def run(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    data: DataDir = None,
    results: ResultsDir = DEFAULT_RESULTS,
    executor: Executor = "local",
    device: Devices = None,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a study and write its report. Interrupt it at any time; the same command goes on."""
    from lorascope import api

    study = load(study_file, overrides)
    _check_executor(executor)
    with _saying_how_to_go_on(), rendering(Console(stderr=True)) as emit:
        outcome = api.run(
            study,
            store=store,
            results=results,
            data_dir=checked_data_dir(data),
            executor=executor,
            devices=device,
            only=only,
            emit=emit,
        )
    if as_json:
        print(json.dumps(outcome_as_json(outcome), indent=2))
    else:
        print_outcome(outcome, output())
    if outcome.failed or outcome.blocked:
        raise typer.Exit(1)


def status(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    data: DataDir = None,
    only: Only = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a study has come: steps done, running, failed, blocked, missing."""
    from lorascope import api

    study = load(study_file, overrides)
    data_dir = checked_data_dir(data)
    planned = api.graph(study, store=store, data_dir=data_dir)
    labels = planned.labels
    states = _matching(api.status(study, store=store, data_dir=data_dir), only, labels)
    if as_json:
        print(json.dumps([{"step": step.id, "kind": step.kind, "state": state} for step, state in states], indent=2))
        return
    _print_kinds(states, title=study.name)
    for line in search_lines(planned):
        print(line)
    for wanted in ("running", "failed", "blocked"):
        for step, state in states:
            if state == wanted:
                print(f"{state}: {step.id}")
    if any(state == "failed" for _, state in states):
        print("why a step failed: lorascope show STEP")


def report(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    data: DataDir = None,
    results: ResultsDir = DEFAULT_RESULTS,
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished study again, from the store alone."""
    from lorascope import api

    study = load(study_file, overrides)
    path = api.report(study, store=store, results=results, data_dir=checked_data_dir(data))
    print(json.dumps({"report": str(path)}) if as_json else f"report: {path}")


def verify(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = DEFAULT_STORE,
    data: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every artifact of a study against the checksums in its record. Exit code 1 if one does not agree."""
    from lorascope import api

    study = load(study_file, overrides)
    problems = api.verify(study, store=store, data_dir=checked_data_dir(data))
    if as_json:
        print(json.dumps({"problems": problems}, indent=2))
    else:
        print("\n".join(problems) or "every artifact of the study is as it was committed")
    if problems:
        raise typer.Exit(1)


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """An interrupt (Ctrl-C) ends with exit code 130 and the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["lorascope", *sys.argv[1:]])
        print(f"\ninterrupted; what is finished is kept. To go on: {command}", file=sys.stderr)
        raise typer.Exit(130) from None


def num_runs(study: Study) -> int:
    """models x tasks x methods x seeds."""
    return len(study.models) * len(study.tasks) * len(study.methods) * len(study.seeds)


def _in_words(study: Study) -> str:
    parts = (
        (study.models, "model"),
        (study.tasks, "task"),
        (study.methods, "method"),
        (study.seeds, "seed"),
    )
    product = " x ".join(_count(len(items), noun) for items, noun in parts)
    if study.search is not None:
        searched = sum(method.hyperparameters is None for method in study.methods)
        num_searches = len(study.models) * len(study.tasks) * searched
        product = (
            f"{_count(num_searches, 'search', 'searches')} of {_count(study.search.trials, 'trial')}, then {product}"
        )
    hypotheses = "1 hypothesis" if len(study.hypotheses) == 1 else f"{len(study.hypotheses)} hypotheses"
    return f"{product} = {_count(num_runs(study), 'run')}, {hypotheses}, protocol {study.protocol}"


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def _check_executor(name: str) -> None:
    if name not in EXECUTORS:
        match = nearest(name, EXECUTORS)
        meant = f": did you mean `{match}`?" if match else ""
        raise StudyError(f"--executor: unknown executor `{name}`{meant}", hint=f"allowed: {', '.join(EXECUTORS)}")


def _matching(states: Sequence[StepState], only: str | None, labels: Mapping[str, Any]) -> Sequence[StepState]:
    """The steps whose id, or "kind: label", matches the glob, as in `api.run`. Raises StudyError if none does."""
    if only is None:
        return states
    found = [
        (step, state)
        for step, state in states
        if any(fnmatch(name, only) for name in (step.id, f"{step.kind}: {labels[step.id]}"))
    ]
    if not found:
        kinds = ", ".join(dict.fromkeys(step.kind for step, _ in states))
        raise StudyError(f"--only: no step matches `{only}`", hint=f"ids begin with their kind: {kinds}")
    return found


def _print_kinds(states: Sequence[StepState], *, title: str) -> None:
    rows = states_by_kind(states)
    known = ("done", "running", "failed", "blocked", "missing")
    columns = [state for state in known if any(state in row for row in rows.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("steps")
    for column in columns:
        table.add_column(column, justify="right")
    for kind, row in rows.items():
        table.add_row(kind, *(str(row.get(column, "")) for column in columns))
    console = output()
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
