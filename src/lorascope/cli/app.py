"""`lorascope`: the verbs, and what an error looks like from outside.

Exit codes: 0 done, 1 steps failed, 2 the study (or the command) is wrong, 3 the environment is wrong, 130 interrupted.
A person's mistake never shows a traceback; a traceback is always a defect of lorascope.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from lorascope.cli import export_verb, library_verbs, plan_verb, status_verb, store_verbs, study_verbs
from lorascope.errors import LorascopeError

app = typer.Typer(
    name="lorascope",
    help="Compare fine-tuning methods: one YAML study, one command, an answered question.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    library_verbs.init,
    study_verbs.validate,
    plan_verb.plan,
    study_verbs.run,
    status_verb.status,
    study_verbs.report,
    study_verbs.analyse,
    library_verbs.show,
    export_verb.export,
    study_verbs.verify,
    store_verbs.pack,
    library_verbs.ls,
    library_verbs.schema,
):
    app.command()(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lorascope.version import __version__

        typer.echo(f"lorascope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script: run a verb, turn errors for people into a message and an exit code."""
    try:
        app()
    except LorascopeError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": type(error).__name__, **_described(error)}))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _described(error: LorascopeError) -> dict[str, str | int | None]:
    return {"message": error.message, "hint": error.hint, "where": error.where, "exit_code": error.exit_code}
