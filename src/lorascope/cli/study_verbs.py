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
    AsJson,
    DataDir,
    Devices,
    Executor,
    Only,
    Overrides,
    ResultsDir,
    StoreAt,
    StudyFile,
    Track,
    checked_data_dir,
    load,
)
from lorascope.cli.outcome import outcome_as_json, print_outcome, print_verdicts
from lorascope.cli.steps import num_runs, study_in_words
from lorascope.errors import StudyError
from lorascope.tracking.console import output, rendering

if TYPE_CHECKING:
    from lorascope.engine.step import Step

    StepState = tuple[Step, str]


def validate(study_file: StudyFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a study, and that the files it names exist, without starting anything. Says which packages it lacks here."""
    from lorascope.models.catalog import missing_package
    from lorascope.plan.suitability import not_checked
    from lorascope.study.checks.notices import study_notices

    study = load(study_file, overrides, models=True)
    notices = study_notices(study)
    missing = [problem for model in study.models if (problem := missing_package(model))]
    if as_json:
        lacks = [{"message": problem.message, "hint": problem.hint} for problem in missing]
        found = {"valid": True, "num_runs": num_runs(study), "missing_here": lacks, "not_checked": not_checked(study)}
        found["notices"] = notices
        print(json.dumps({**found, "study": study.model_dump(mode="json")}, indent=2))
        return
    print(f"{study_file} is a valid study: {study_in_words(study)}")
    for problem in missing:
        print(f"but it cannot run here yet: {problem}")
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
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a study and write its report. Interrupt it at any time; the same command goes on."""
    from lorascope import api
    from lorascope.pipeline import Workers

    study = load(study_file, overrides, models=True)
    workers = Workers(executor, devices=device, address=address)
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
