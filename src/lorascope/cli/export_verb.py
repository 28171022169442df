"""`lorascope export`: a finished run as a directory that transformers, peft and vLLM load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lorascope.cli.options import DEFAULT_STORE, AsJson, DataDir, Overrides, StoreAt, checked_data_dir, load
from lorascope.errors import StudyError
from lorascope.serving.forms import Dtype, Form
from lorascope.study.measure import Workload
from lorascope.tracking.console import output

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN|STUDY",
        help="A run's id (`lorascope ls steps`: train-...), or how it begins; or a study's file, with options that say which "
        "of its runs.",
    ),
]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Of a study: the run's model.")]
Task = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Of a study: the run's task.")]
Arm = Annotated[str | None, typer.Option("--arm", metavar="NAME", help="Of a study: the run's method, by its name.")]
Seed = Annotated[str | None, typer.Option("--seed", metavar="SEED", help="Of a study: the run's seed.")]
Best = Annotated[bool, typer.Option("--best", help="Of a study: of the runs that are meant, the best on validation.")]
Format = Annotated[
    Form | None,
    typer.Option(
        "--format",
        help="The adapter; the base with it merged in; a fully fine-tuned model; the base, to serve adapters on. "
        "Default: what the run trained.",
    ),
]
Target = Annotated[
    Path | None, typer.Option("--to", metavar="DIR", help="A directory that is empty or new. Default: ./RUN-FORMAT.")
]
AtWork = Annotated[
    Workload, typer.Option("--workload", help="With the task's head, or with the base's language-model head.")
]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision of every weight.")]


def export(
    run: Run,
    model: Model = None,
    task: Task = None,
    arm: Arm = None,
    seed: Seed = None,
    best: Best = False,
    form: Format = None,
    to: Target = None,
    workload: AtWork = "classification",
    dtype: Precision = "float32",
    overrides: Overrides = None,
    store: StoreAt = DEFAULT_STORE,
    data: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run as an adapter or a checkpoint that transformers, peft and vLLM load."""
    from lorascope import api
    from lorascope.engine.find import find_artifact
    from lorascope.engine.store.opening import open_store

    chosen = {"--model": model, "--task": task, "--arm": arm, "--seed": seed, "--best": best, "--set": overrides}
    if Path(run).suffix in (".yaml", ".yml"):
        study, where = load(Path(run), overrides), {"store": store, "data_dir": checked_data_dir(data)}
        run = api.find_run(study, **where, model=model, task=task, arm=arm, seed=seed, best=best)
    elif given := [option for option, value in chosen.items() if value]:
        text = f"{given[0]} has no effect on the run {run}"
        raise StudyError(text, hint="give the study's file in place of the run's id")
    find_artifact(run, open_store(store), kind="train")  # a wrong id is answered before transformers is loaded
    import transformers

    transformers.logging.disable_progress_bar()
    published = api.export(run, store=store, form=form, to=to, workload=workload, dtype=dtype)
    if as_json:
        print(json.dumps({**dataclasses.asdict(published), "directory": str(published.directory)}, indent=2))
        return
    _print(published)


def _print(published: Any) -> None:
    console = output()
    console.print(
        f"wrote {published.directory}: {published.form} of {published.run} for {published.workload}, "
        f"{published.dtype}, {published.num_bytes / 1e6:,.1f} MB of weights",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if published.precision:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("compared", "dtype", "max |logit difference|", "max |probability difference|", "flips"):
            table.add_column(column)
        for row in published.precision.rows:
            flips = f"{row.flip_rate:.2%} of {row.n}"
            differences = (f"{row.max_abs_logit_difference:.2g}", f"{row.max_probability_difference:.2g}")
            table.add_row(row.what, row.dtype, *differences, flips)
        console.print()
        console.print(table)
    for tool, text in published.load.items():
        console.print(f"\n{tool}:", highlight=False)
        console.print(
            "\n".join(f"  {line}" for line in text.splitlines()), markup=False, highlight=False, soft_wrap=True
        )
