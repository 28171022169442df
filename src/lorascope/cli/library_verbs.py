"""Verbs about lorascope itself and its store: `init`, `ls`, `schema`, `show`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from rich.table import Table
from rich.text import Text

from lorascope.cli.options import DEFAULT_STORE, AsJson, StoreAt
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.plugins import Entry
from lorascope.printable import printable
from lorascope.registry import TABLES
from lorascope.tracking.console import output

if TYPE_CHECKING:
    from lorascope.plan.listing import ListedStep


def init(
    template: Annotated[str, typer.Argument(metavar="[TEMPLATE]", help="One of `lorascope ls templates`.")] = (
        "quickstart"
    ),
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Default: ./TEMPLATE.yaml.")] = None,
) -> None:
    """Write a study to start from."""
    from lorascope.study.loading.templates import template_text

    text = template_text(template)
    target = to or Path(f"{template}.yaml")
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise StudyError(f"{target} is there already", hint="choose another file with --to") from None
    except OSError as error:
        raise EnvironmentProblem(f"{target} cannot be written: {error.strerror}", hint="choose another --to") from None
    typer.echo(f"wrote {target}\nnext: lorascope validate {target}")


Listed = Literal[
    "models", "tasks", "metrics", "measures", "methods", "architectures", "executors", "trackers", "templates", "steps"
]


def ls(
    kind: Annotated[Listed, typer.Argument(metavar="KIND", help=f"One of {', '.join(get_args(Listed))}.")],
    store: StoreAt = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """List what there is, built in or brought by a plug-in; or the finished steps of a store."""
    rows = _rows(kind, store)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(f"no {kind}" + (f" in {store}" if kind == "steps" else ""))
        return
    if kind == "steps":
        rows = [_for_people(row) for row in rows]
        filled = [column for column in rows[0] if any(row[column] for row in rows)]
        rows = [{column: row[column] for column in filled} for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    output().print(table)


def _rows(kind: Listed, store: str) -> list[dict[str, Any]]:
    if kind == "templates":
        from lorascope.study.loading.templates import templates

        return [{"name": name, "question": question} for name, question in templates().items()]
    if kind == "steps":
        return [{"step": found.pop("id"), **found} for found in map(dataclasses.asdict, _steps(store))]
    rows = [_row(entry) for name, entry in TABLES[kind].items() if (kind, name) != ("tasks", "classification")]
    if kind == "architectures":
        from lorascope.models import architectures

        own = {"implemented in": architectures.__name__, "brought by": "built in"}
        return [*({"name": name, **own} for name in architectures.ARCHITECTURES), *rows]
    return rows


def _steps(store: str) -> list[ListedStep]:
    from lorascope.engine.store.opening import open_store
    from lorascope.plan.listing import listed_steps

    return listed_steps(open_store(store))


def _for_people(step: dict[str, Any]) -> dict[str, str]:
    """A step as a line of `ls steps`: its kind begins its id."""
    from lorascope.report.page import wording

    score = "" if step["score"] is None else f"{step['metric']} {wording.score(step['metric'], step['score'])}"
    names = {key: step[key] or "" for key in ("study", "model", "task", "arm", "seed")}
    return {"step": step["step"], **names, "score": score, "size": wording.bytes_text(step["num_bytes"])}


def _row(entry: Entry) -> dict[str, Any]:
    if entry.literal is not None:
        return {"name": entry.name, **_model_source(entry.literal), "brought by": entry.origin}
    return {"name": entry.name, "implemented in": entry.place.partition(":")[0], "brought by": entry.origin}


def _model_source(source: Mapping[str, str]) -> dict[str, str]:
    if "hub" in source:
        return {"from": f"hub {source['hub']}", "here": f"revision {source['revision'][:12]}, when first used"}
    import importlib.metadata

    from lorascope.models.catalog import how_to_install
    from lorascope.study.spec import PackageSource

    try:
        here = f"installed, {importlib.metadata.version(source['package'])}"
    except importlib.metadata.PackageNotFoundError:
        here = how_to_install(PackageSource(**source))
    return {"from": f"package {source['package']}", "here": here}


def schema() -> None:
    """Print the JSON schema of a study, for editors."""
    from lorascope.study.loading.schema import study_schema

    print(json.dumps(study_schema(), indent=2))


def show(
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step's id, or how it begins.")],
    store: StoreAt = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show one step: what it was given, what it found, or how it failed."""
    description = _describe_step(step, store)
    if as_json:
        print(json.dumps(description, indent=2))
        return
    console = output()
    console.print(f"[bold]{description['id']}[/]  {description['state']}")
    for key, value in description.items():
        if key in ("id", "state") or value in (None, {}, []):
            continue
        console.print(f"\n[bold]{key}[/]")
        console.print(printable(value) if isinstance(value, str) else json.dumps(value, indent=2), markup=False)


def _describe_step(beginning: str, place: str) -> dict[str, Any]:
    from lorascope.engine.find import find_artifact
    from lorascope.engine.store.directory import is_step_id
    from lorascope.engine.store.opening import open_store

    store = open_store(place)
    if not is_step_id(beginning):
        raise StudyError(f"{beginning!r} is not the id of a step", hint=f"lorascope ls steps --store {place}")
    if failure := store.failure(beginning):
        return {"id": beginning, "state": "failed", "failure": failure.text, "traceback": failure.traceback}
    artifact = find_artifact(beginning, store)
    step = artifact.record["step"]
    return {
        "id": artifact.id,
        "state": "done",
        "path": artifact.place,
        "params": step["params"],
        "deps": step["deps"],
        "result": artifact.result,
        "files": artifact.record["files"],
        "provenance": artifact.provenance,
    }
