"""The `trial` step: a training run that is judged and forgotten.

It is trained as any run is, in gangs with other trials, but what it commits is its validation score and its curve, not its
weights: a search of hundreds of trials must not fill a disk. It never reads the test set. A trial that diverges is an
outcome, not a failure. One that ends early leaves its state in the store's cache, from which it goes on if it is promoted;
without it (an emptied cache, a state too large to be worth writing) the next stage trains from the beginning, to the same
result.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorascope.engine.context import StepContext
from lorascope.engine.step import Step, canonical_json
from lorascope.errors import Diverged
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Departure, Gang
from lorascope.training.member import Member
from lorascope.training.result import gang_peak_bytes
from lorascope.training.run import Keep, Outcome, Run, train_gang

LARGEST_STATE_BYTES = 2**30
"""A larger state takes longer to write and read than a stage's share of the training is worth, and fills disks."""


def train_trial(context: StepContext) -> dict[str, Any]:
    """Trains one trial. params: as of a `train` step, and stops: the shares of its updates after which it is scored; it ends
    at the last of them. Raises what `train_run` raises, but for divergence."""
    ((_, outcome),) = train_trials([context])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_trials(contexts: Sequence[StepContext]) -> Generator[tuple[int, Outcome]]:
    """Trains trials of one base, method kind and shape of a batch together."""
    yield from train_gang(contexts, beginning=_take_up, ending=judge, keeping=_keeping)


def judge(run: Run, departure: Departure, gang: Gang) -> Outcome:
    """The trial's record. value: the best validation score of the primary metric, and loss that of the same evaluation.
    tokens: since the beginning, those of earlier stages included, whose state was taken up or not (`taken_up`)."""
    del gang
    member, problem = run.member, departure.problem
    if problem is not None and not isinstance(problem, Diverged):
        return problem
    progress, meters, metric = member.progress, member.meters, member.task.primary_metric
    curve = [
        {"update": point["update"], "epoch": point["epoch"], "value": point["value"]}
        for point in progress.curve
        if point["name"] == f"validation/{metric}" and math.isfinite(point["value"])
    ]
    return {
        "metric": metric,
        "value": progress.best_score if problem is None else None,
        "loss": progress.best_loss if problem is None else None,
        "diverged": None if problem is None else str(problem),
        "best_epoch": progress.best_update / member.updates_per_epoch,
        "updates": progress.update,
        "epochs": progress.update / member.updates_per_epoch,
        "planned_updates": member.total_updates,
        "tokens": meters.real_tokens,
        "taken_up": _mark(run.context).exists(),
        "planned_tokens": planned_tokens(member),
        "examples": len(member.columns),
        "stopped_early": progress.stopped_early,
        "resumed": progress.resumed,
        "training_seconds": meters.training_seconds,
        "evaluation_seconds": meters.evaluation_seconds,
        "gang": meters.largest_gang,
        "gang_peak_memory_bytes": gang_peak_bytes(run),
        "device": run.context.device.partition(":")[0],
        "curve": curve,
    }


def planned_tokens(member: Member) -> int:
    """Real tokens of the whole training, had it not ended early."""
    lengths = np.asarray(member.columns.lengths)
    epochs, rest = divmod(member.total_updates, member.updates_per_epoch)
    begun = [member.rows(epochs * member.updates_per_epoch + update) for update in range(rest)]
    return int(lengths.sum()) * epochs + sum(int(lengths[rows].sum()) for rows in begun)


# ------------------------------------------------------------------------------------------------- going on after a stop


def state_file(cache_dir: Path, step: Step, stops: Sequence[float]) -> Path:
    """Where the state of this trial waits after the last of `stops`."""
    training = {"version": step.version, "params": {**step.params, "stops": list(stops)}, "deps": dict(step.deps)}
    return cache_dir / "trials" / f"{hashlib.sha256(canonical_json(training).encode()).hexdigest()[:24]}.pt"


def forget_states(cache_dir: Path, step: Step) -> None:
    """Removes what a trial, and its earlier stages, left to go on from."""
    stops = step.params["stops"]
    for count in range(1, len(stops) + 1):
        state_file(cache_dir, step, stops[:count]).unlink(missing_ok=True)


def _keeping(context: StepContext) -> Keep | None:
    stops = context.step.params["stops"]
    if stops[-1] >= 1:
        return None
    target = state_file(context.cache_dir, context.step, stops)

    def keep(state: dict[str, Any]) -> None:
        if _num_bytes(state) > LARGEST_STATE_BYTES:
            return
        draft = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        with suppress(OSError):  # without it the next stage trains from the start: no reason to stop a gang
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, draft)
            os.replace(draft, target)

    return keep


def _num_bytes(state: Any) -> int:
    if isinstance(state, Mapping):
        return sum(_num_bytes(value) for value in state.values())
    return state.numel() * state.element_size() if isinstance(state, torch.Tensor) else 0


def _mark(context: StepContext) -> Path:
    """Lies next to the checkpoint of a stage that began with the state of the one before."""
    return context.work / "taken-up"


def _take_up(context: StepContext) -> None:
    """Begins with the state that the stage before left, unless this one was under way already. The state may vanish at any
    time: a cache is emptied, another coordinator's search is over and forgets its states."""
    stops, own = context.step.params["stops"], Checkpointer(context.work).path
    if len(stops) == 1 or own.exists():
        return
    draft = own.with_suffix(".new")
    try:
        shutil.copyfile(state_file(context.cache_dir, context.step, stops[:-1]), draft)
    except FileNotFoundError:
        return
    _mark(context).touch()  # first: with it, the stage before is not counted again
    os.replace(draft, own)
