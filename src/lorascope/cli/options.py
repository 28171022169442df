"""The options that verbs share. There is no flag per field of a study: `--set` reaches them all."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorascope.errors import EnvironmentProblem

if TYPE_CHECKING:
    from lorascope.plan.data_checks import DataFindings
    from lorascope.study.loading.document import Mistake
    from lorascope.study.spec import Study

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Replace one value, e.g. methods.lora.rank=16 (repeatable)."),
]
StoreAt = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR",
        envvar="LORASCOPE_STORE",
        help="Where finished steps are kept: a directory, or s3://BUCKET/PREFIX.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="LORASCOPE_DATA", help="Task files {task}_{split}.parquet, before the hub."
    ),
]
ResultsDir = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Reports are written to DIR/<name of the study>.")
]
Executor = Annotated[str, typer.Option("--executor", metavar="NAME", help="Who runs the steps: local, inline or ray.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="The head of the Ray cluster. Default: RAY_ADDRESS, else the cluster that this machine is part of.",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="One worker on this device, such as cuda:0; with ray: cuda or cpu (repeatable; twice the same: two workers). "
        "Default: every GPU.",
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="NAMES",
        help="Show the runs in these trackers, in place of the study's: trackio,wandb,mlflow,tensorboard, or none.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="GLOB", help="Only steps whose id or label matches, and what they need: '*mrpc*'."),
]
AllowProgram = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-program",
        metavar="PATH",
        help="Let the study have this program run, as the interpreter of its engine (repeatable).",
    ),
]
Repair = Annotated[
    bool,
    typer.Option("--repair", help="First set aside finished steps that are damaged, and compute them again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON to standard output.")]

DEFAULT_STORE = "store"
DEFAULT_RESULTS = Path("results")


def at_store(command: str, store: str) -> str:
    """A command as it must be given to look at the same store."""
    return command if store == DEFAULT_STORE else f"{command} --store {shlex.quote(store)}"


def load(study_file: Path, overrides: list[str] | None, *, models: bool = False) -> Study:
    """The study as the command line states it; the files it names must be there. models: and its models must suit what the
    study does with them, as far as that can be seen here. Raises StudyError."""
    from lorascope.plan.suitability import check_models
    from lorascope.study.loading.load import load_study  # pydantic's models take a while to build: not for --help

    given = overrides or []
    if not models:
        return load_study(study_file, overrides=given, files=True)
    return load_study(study_file, overrides=given, files=True, further=check_models)


def load_with_data(study_file: Path, overrides: list[str] | None, data_dir: Path | None) -> tuple[Study, DataFindings]:
    """The study, whose models must suit what it does with them, and what its data are. Raises StudyError for data that its
    first steps would refuse."""
    from lorascope.plan.data_checks import look_at_data
    from lorascope.plan.suitability import check_models
    from lorascope.study.loading.load import load_study

    seen: list[DataFindings] = []

    def further(study: Study) -> list[Mistake]:
        seen.append(look_at_data(study, data_dir=data_dir))
        return [*check_models(study), *seen[0].mistakes]

    study = load_study(study_file, overrides=overrides or [], files=True, further=further)
    return study, seen[0]


def checked_data_dir(data: Path | None) -> Path | None:
    """`data` if it is a directory. Raises EnvironmentProblem: falling back to the hub would hide a typing mistake."""
    if data is not None and not data.is_dir():
        found = "is a file" if data.exists() else "does not exist"
        raise EnvironmentProblem(
            f"--data {data} {found}", hint="give the directory that holds {task}_{split}.parquet, or leave it out"
        )
    return data
