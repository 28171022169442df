"""One run handed to people: a checkpoint directory that says what it is, how exact it is and how to load it.

Works from the store alone. The directory appears whole or not at all, and never in place of another.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.data.columns import ColumnStore
from lorascope.engine import provenance
from lorascope.engine.find import find_artifact
from lorascope.engine.store.directory import Store
from lorascope.engine.store.integrity import REPAIR_HINT
from lorascope.engine.store.opening import StorePlace, open_store
from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.models.catalog import find_model
from lorascope.serving.card import model_card
from lorascope.serving.export import write_adapter, write_base, write_full, write_merged
from lorascope.serving.forms import Dtype, Form
from lorascope.serving.loading_lines import Places, loading_lines
from lorascope.serving.precision import MergePrecision, merge_precision
from lorascope.serving.trained import TrainedRun, open_run
from lorascope.study.measure import Workload

if TYPE_CHECKING:
    from lorascope.engine.store.artifact import Artifact

_WRITERS: Mapping[Form, Callable[..., Path]] = {
    "adapter": write_adapter,
    "merged": write_merged,
    "full": write_full,
    "base": write_base,
}


@dataclass(frozen=True)
class Published:
    """A directory that was written. num_bytes: of its weights. precision: merged v adapter, None where there is nothing
    to merge and for a task without classes. load: tool -> what to write to load it."""

    directory: Path
    run: str
    form: Form
    workload: Workload
    dtype: Dtype
    num_bytes: int
    precision: MergePrecision | None
    load: Mapping[str, str]


def publish_run(
    run: str,
    *,
    store: StorePlace,
    form: Form | None,
    to: Path | None,
    workload: Workload,
    dtype: Dtype,
    device: str = "cpu",
) -> Published:
    """Writes a finished run as a checkpoint directory. run: the id of its `train` step, or how it begins. form: default:
    the adapter where one was trained, else the full model. to: default: ./RUN-FORM. device: where precision is measured.

    Raises StudyError for a run that is not there or has no such form, EnvironmentProblem where the base is gone or the
    directory cannot be written.
    """
    opened_store = open_store(store)
    train = find_artifact(run, opened_store, kind="train")
    opened = _open(train, opened_store)
    form = form or ("adapter" if opened.has_adapter else "full")
    target = to or Path(f"{train.id}-{form}")
    _refuse_to_overwrite(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.parent / f".{target.name}-{uuid.uuid4().hex[:12]}"
        staging.mkdir()
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        _WRITERS[form](opened, staging, workload=workload, dtype=dtype)
        precision = None
        has_decisions = workload == "generation" or bool(opened.class_names)
        if opened.has_adapter and form != "base" and has_decisions:
            examples = ColumnStore.open(opened_store.artifact(train.step.deps["tokens"]).file("validation"))
            precision = merge_precision(opened, examples, workload=workload, device=device)
        size = sum(file.stat().st_size for file in staging.glob("*.safetensors"))
        places = Places(str(target.resolve()), base=str(opened.checkpoint.resolve()), store=str(store))
        load = loading_lines(opened, places, form=form, workload=workload)
        published = Published(target, train.id, form, workload, dtype, size, precision, load)
        _describe(published, opened, train, staging)
        for file in staging.iterdir():  # safetensors lets nobody else read what it writes
            file.chmod((staging / "README.md").stat().st_mode)
        os.rename(staging, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return published


def _open(train: Artifact, store: Store) -> TrainedRun:
    """The run, its files and its base as they were when it was trained."""
    if problems := store.verify(train.id):
        raise EnvironmentProblem(
            f"the run is not as it was committed: {problems[0]}",
            hint=REPAIR_HINT,
        )
    data = store.artifact(train.step.deps["data"])
    locations = find_model(train.step.params["model"], train.step.locations)
    return open_run(train, data, cache_dir=store.cache_dir, locations=locations)


def _refuse_to_overwrite(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        what = "holds files already" if target.is_dir() else "is a file"
        raise StudyError(f"{target} {what}", hint="choose another directory with --to")


def _cannot_write(target: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{target} cannot be written: {error.strerror or error}", hint="choose another directory with --to"
    )


def _describe(published: Published, run: TrainedRun, train: Artifact, directory: Path) -> None:
    """lorascope.json for programs, README.md for people."""
    description = {
        "run": published.run,
        "form": published.form,
        "workload": published.workload,
        "dtype": published.dtype,
        "base": dict(run.identity),
        "method": train.step.params["method"],
        "seeds": train.step.params["seeds"],
        "task": run.task.name,
        "classes": run.class_names,
        "validation": train.result.get("validation"),
        "merge_precision": None if published.precision is None else [asdict(row) for row in published.precision.rows],
        "versions": provenance.describe(device="cpu")["versions"],
    }
    (directory / "lorascope.json").write_text(json.dumps(description, indent=2) + "\n")
    portable = Places(published.directory.name, base=run.checkpoint.name, store="STORE")
    load = loading_lines(run, portable, form=published.form, workload=published.workload)
    card = model_card(
        run, train, form=published.form, workload=published.workload, dtype=published.dtype, load=load,
        precision=published.precision,
    )  # fmt: skip
    (directory / "README.md").write_text(card)
