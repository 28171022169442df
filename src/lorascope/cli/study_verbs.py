"""Verbs about a study: `validate`, `run`, `report`, `analyse`, `verify`; each a thin skin over `lorascope.api`.

The API is imported inside the verbs: `--help` and `validate` must answer at once.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lorascope.cli.options import (
    DEFAULT_RESULTS,
    DEFAULT_STORE,
    Address,
    AllowProgram,
    AsJson,
    DataDir,
    Devices,
    Executor,
    Only,
    Overrides,
    Repair,
    ResultsDir,
    StoreAt,
    StudyFile,
    Track,
    checked_data_dir,
    load,
    load_with_data,
)
from lorascope.cli.outcome import outcome_as_json, print_outcome, print_verdicts
from lorascope.cli.steps import counted, num_runs, print_data, study_in_words
from lorascope.engine.store.integrity import REPAIR_HINT
from lorascope.errors import StudyError
from lorascope.tracking.console import output, rendering

if TYPE_CHECKING:
    from lorascope.engine.step import Step
    from lorascope.plan.verification import Verification

    StepState = tuple[Step, str]


def validate(study_file: StudyFile, overrides: Overrides = None, data: DataDir = None, as_json: AsJson = False) -> None:
    """Check a study and open the data it names, without starting anything. Says what could not be checked here."""
    from lorascope.models.catalog import missing_package
    from lorascope.plan.suitability import not_checked
    from lorascope.study.checks.notices import study_notices

    study, seen = load_with_data(study_file, overrides, checked_data_dir(data))
    notices = study_notices(study)
    missing = [problem for model in study.models if (problem := missing_package(model))]
    if as_json:
        lacks = [{"message": problem.message, "hint": problem.hint} for problem in missing]
        open_points = [*not_checked(study), *seen.not_checked]
        found = {"valid": True, "num_runs": num_runs(study), "missing_here": lacks, "not_checked": open_points}
        found |= {**seen.to_json(), "notices": notices}
        print(json.dumps({**found, "study": study.model_dump(mode="json")}, indent=2))
        return
    print(f"{study_file} is a valid study: {study_in_words(study)}")
    for problem in missing:
        print(f"but it cannot run here yet: {problem}")
    print_data(seen)
    for remark in not_checked(study):
        print(remark)
    for notice in notices:
        print(f"note: {notice}")


def run(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    results: ResultsDir = DEFAULT_RESULTS,
    executor: Executor = "local",
    device: Devices = None,
    address: Address = None,
    only: Only = None,
    track: Track = None,
    allow_program: AllowProgram = None,
    repair: Repair = False,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a study and write its report. Interrupt it at any time; the same command goes on."""
    from lorascope import api
    from lorascope.pipeline import Workers

    study = load(study_file, overrides, models=True)
    workers = Workers(executor, devices=device, address=address, programs=allow_program or ())
    if repair:
        found = api.repair(study, store=store, data_dir=checked_data_dir(data))
        print("\n".join(found) or "no finished step is damaged", file=sys.stderr)
    with _saying_how_to_go_on(), rendering(Console(stderr=True)) as emit:
        outcome = api.run(
            study,
            store=store,
            results=results,
            data_dir=checked_data_dir(data),
            executor=workers,
            only=only,
            track=None if track is None else [name.strip() for name in track.split(",") if name.strip()],
            emit=emit,
        )
    if as_json:
        print(json.dumps(outcome_as_json(outcome), indent=2))
    else:
        print_outcome(outcome, output(), store=store)
    if outcome.failed or outcome.blocked:
        raise typer.Exit(1)


def report(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    results: ResultsDir = DEFAULT_RESULTS,
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished study again, from the store alone."""
    from lorascope import api

    study = load(study_file, overrides)
    path = api.report(study, store=store, results=results, data_dir=checked_data_dir(data))
    print(json.dumps({"report": str(path)}) if as_json else f"report: {path}")


def analyse(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a report, such as results/NAME.", show_default=False)
    ],
    study_file: Annotated[
        Path | None,
        typer.Option("--study", metavar="STUDY", help="The study as it was declared, where DIR does not say it."),
    ] = None,
    overrides: Overrides = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Where to write. Default: in place; the last report is kept in previous/."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Redo the statistics and the report of a finished study from the folder of its report, without the store."""
    from lorascope import api
    from lorascope.study.loading.load import read_old_study

    if overrides and study_file is None:
        raise StudyError("--set has no effect on a study that is not named", hint="name its file with --study")
    study = read_old_study(study_file, overrides=overrides or ()) if study_file else None
    found = api.analyse(directory, study=study, to=to)
    if as_json:
        verdicts = [dataclasses.asdict(result) for result in found.verdicts]
        told = {"report": str(found.report), "lacks": list(found.lacks), "conclusion": found.conclusion}
        print(json.dumps({**told, "verdicts": verdicts}, indent=2))
        return
    print_verdicts(found.verdicts, output(), metrics=found.metrics)
    print("\n".join([*(f"lacks {text}" for text in found.lacks), f"report: {found.report}"]))


def verify(
    study_file: StudyFile,
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check every finished step of a study against its record. Exit code 1 if one does not agree, or nothing is finished."""
    from lorascope import api

    study = load(study_file, overrides)
    found = api.verify(study, store=store, data_dir=checked_data_dir(data))
    print(json.dumps(dataclasses.asdict(found), indent=2) if as_json else "\n".join(_verified_in_words(found, store)))
    if not found.is_good:
        raise typer.Exit(1)


def _verified_in_words(found: Verification, store: str) -> Iterator[str]:
    yield from found.problems
    of_all = f"{found.num_checked} of {counted(found.num_steps, 'step')}"
    if not found.num_checked:
        yield f"nothing to verify: none of {counted(found.num_steps, 'step')} is finished in {store}"
    elif found.problems:
        yield f"{of_all} checked, {counted(len(found.problems), 'problem')}"
        yield f"hint: {REPAIR_HINT}"
    else:
        are = "is" if found.num_checked == 1 else "are"
        yield f"{of_all} checked: {'it' if found.num_checked == 1 else 'all'} {are} as committed"
    if found.num_unsealed:
        yield f"{counted(found.num_unsealed, 'record')} without a seal, of an older lorascope: only the files were compared"
    if found.num_packed:
        yield f"{counted(found.num_packed, 'step')} without the files that were left out when the store was packed"


@contextmanager
def _saying_how_to_go_on() -> Iterator[None]:
    """An interrupt (Ctrl-C) ends with exit code 130 and the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["lorascope", *sys.argv[1:]])
        print(f"\ninterrupted; what is finished is kept. To go on: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
