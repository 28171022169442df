"""The `train` step: one run, from the base model to an exported checkpoint and its validation scores.

It never opens the test set. What it commits: `export/` (adapter or checkpoint, with tokenizer), `curves.parquet`,
`losses.npy` (every update), `validation_predictions.parquet`, `snapshots.parquet` where the study takes any, and
`reference_logits.npy`: the logits of the model in memory on a few validation examples, which the `evaluate` step must find
again in the exported one.
"""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lorascope.data.columns import ColumnStore
from lorascope.data.tasks import task_from_result
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice
from lorascope.errors import EnvironmentProblem, GateFailure
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.dropout import DropoutStreams, replace_dropouts
from lorascope.models.loading import BaseModel, load_base
from lorascope.models.tokenizer import load_tokenizer
from lorascope.registry import METHODS, OBSERVER, resolve
from lorascope.study.spec import MethodSpec, Seeds, TrainSpec
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Departure, Gang
from lorascope.training.hardware import peak_flops
from lorascope.training.member import Member
from lorascope.training.predict import logits_of, predict, scores
from lorascope.training.sizing import Cost, gang_size, partition, pays_to_compile, split

REFERENCE_EXAMPLES = 64
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def method_from_params(params: Mapping[str, Any]) -> Method:
    """The method whose spec a step carries."""
    from pydantic import TypeAdapter

    spec = TypeAdapter(MethodSpec).validate_python({**params, "name": params["kind"]})
    return resolve(METHODS, spec.kind)(spec)


def base_for(context: StepContext, task: Any) -> BaseModel:
    """The step's base model with the task's head, warm if the step before used it."""
    params, locations = context.step.params, context.step.locations
    tokenizer = tokenizer_for(context)
    return load_base(
        params["model"],
        head=task.head,
        head_config=task.head_config(),
        pad_token_id=tokenizer.pad_token_id,
        device=context.device,
        locations=locations,
        cache_dir=context.cache_dir,
        warm=context.warm,
    )


def tokenizer_for(context: StepContext) -> Any:
    """The step's tokenizer, kept warm."""
    key = f"tokenizer:{sorted(context.step.params['model'].items())}"
    if key not in context.warm:
        context.warm[key] = load_tokenizer(
            context.step.params["model"], locations=context.step.locations, cache_dir=context.cache_dir
        )
    return context.warm[key]


def prepared_model(
    base: BaseModel, methods: Sequence[Method], seeds: Sequence[Seeds]
) -> tuple[PreTrainedModel, DropoutStreams]:
    """The model of one run, or of a gang, ready to train, and the streams of its dropout masks (`model.streams` too).

    methods, seeds: one of each a run; the methods are alike in kind and sites. Each run's head and method are drawn from
    its initialisation seed, as they would be alone. Raises NotStackable where the runs cannot be trained together.
    """
    first, generators = methods[0], [torch.Generator().manual_seed(s.initialisation) for s in seeds]
    if len(methods) > 1 and not first.stacks:
        raise NotStackable(f"{type(first).__name__} trains one run at a time")
    specs = {"specs": [method.spec for method in methods]} if first.stacks else {}
    model = base.copy(generators[0], share_frozen=first.shares_base)
    first.prepare(model, head=base.head, generators=generators, **specs)
    streams = DropoutStreams(len(methods), base.device)
    replace_dropouts(model, streams)
    return model, streams


def train_run(context: StepContext) -> dict[str, Any]:
    """Trains one run: a gang of one. params: model, method, seeds, train, learning_rate; deps: data, tokens (and sanity,
    to wait for).

    Raises GateFailure (NaN, a base weight that moved), EnvironmentProblem (out of memory: says what to lower).
    """
    ((_, outcome),) = train_gang([context])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_gang(contexts: Sequence[StepContext]) -> Generator[tuple[int, dict[str, Any] | Exception]]:
    """Trains runs of one base, method kind and sites together, as many at a time as pays (training/sizing.py). Yields
    (index of the context, its result or why it failed) the moment a run is through."""
    make_deterministic(contexts[0].device)
    _make_room(contexts[0].warm)
    runs: list[_Run] = []
    for index, context in enumerate(contexts):
        try:
            runs.append(_set_up(index, context))
        except Exception as error:  # this run's alone
            yield index, error
    for alike in partition(runs, member=lambda run: run.member):
        for group in split(alike, _size(alike)):
            yield from _train_together(group)


def _make_room(warm: dict[str, Any]) -> None:
    """What drift keeps of a base for its next arm would count in the memory of these runs."""
    for key in [key for key in warm if key.startswith("drift:")]:
        del warm[key]


def _size(runs: Sequence[_Run]) -> int:
    """How many of the runs to train at a time; each learns what it needs alone."""
    first, limit = runs[0], runs[0].context.step.resources.gang_limit
    if not first.member.method.stacks:
        return 1
    try:
        size, alone = gang_size(
            [run.member for run in runs],
            device=first.context.device,
            limit=limit,
            build=lambda members: _gang(runs, members, is_captured=False),
        )
    except NotStackable as reason:
        first.context.emit(
            Notice(step=first.context.step.id, level="info", text=f"{reason}: its runs train one by one")
        )
        return 1
    for run in runs:
        run.alone = alone
    return size


def _say(runs: Sequence[_Run], text: str, *, level: str = "info") -> None:
    """A notice about all of them, through the first that can still speak: one that lost its lock cannot."""
    for run in runs:
        with suppress(Exception):
            run.context.emit(Notice(step=run.context.step.id, level=level, text=text))
            return


@dataclass(eq=False)
class _Run:
    """One run to train, and where it belongs. started: when its gang began. alone: what an update costs without a
    gang, where that was measured."""

    index: int
    context: StepContext
    member: Member
    base: BaseModel
    validation: ColumnStore
    checkpointer: Checkpointer
    started: float = 0.0
    alone: Cost | None = None

    @property
    def reading(self) -> dict[str, Any]:
        precision = self.member.train.precision
        return {"pad_token_id": self.base.pad_token_id, "device": self.context.device, "precision": precision}


def _set_up(index: int, context: StepContext) -> _Run:
    params = context.step.params
    task = task_from_result(context.deps["data"].result)
    columns, validation = (ColumnStore.open(context.deps["tokens"].path / s) for s in ("train", "validation"))
    base = base_for(context, task)
    train = TrainSpec.model_validate(params["train"])
    snapshots = params.get("snapshots")
    observe = _observer(context, base, task).observe if snapshots else None
    reading = {"pad_token_id": base.pad_token_id, "device": context.device, "precision": train.precision}

    def validate(model: nn.Module) -> dict[str, float]:
        return scores(task, predict(model, task, validation, **reading))

    member = Member(
        method=method_from_params(params["method"]),
        task=task,
        columns=columns,
        train=train,
        learning_rate=params["learning_rate"],
        seeds=Seeds.model_validate(params["seeds"]),
        validate=validate,
        emit=context.emit,
        step_id=context.step.id,
        observe=observe,
        num_snapshots=snapshots["count"] if snapshots else 0,
    )
    return _Run(index, context, member, base, validation, Checkpointer(context.work))


def _observer(context: StepContext, base: BaseModel, task: Any) -> Any:
    """What looks at a run in the course of its training: drift's, which lies above this layer."""
    module, _, name = OBSERVER.partition(":")
    return getattr(importlib.import_module(module), name)(
        context.step.params["snapshots"],
        base=base,
        task=task,
        validation=context.deps["tokens"].path / "validation",
        warm=context.warm,
    )


def _train_together(runs: Sequence[_Run]) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Trains the runs as one gang; when memory does not suffice, one half after the other."""
    states: Mapping[Member, dict[str, Any]] | None = None
    groups = [list(runs)]
    while groups:
        group = groups.pop(0)
        training = _Training(group, states)
        try:
            yield from training.outcomes()
        except NotStackable as reason:  # found before anything was trained
            _say(group, f"{reason}: its runs train one by one")
            groups[:0] = [[run] for run in group]
            continue
        if training.out_of_memory is None:
            continue
        left, states = training.left, {**(states or {}), **training.states}
        if len(left) == 1:
            yield left[0].index, out_of_memory(left[0].context, training.out_of_memory)
            continue
        half = (len(left) + 1) // 2
        groups[:0] = [left[:half], left[half:]]
        text = f"{left[0].context.device} ran out of memory with {len(left)} runs together; going on with {half}"
        _say(left, text, level="warning")


def _gang(runs: Sequence[_Run], members: Sequence[Member], **options: Any) -> Gang:
    """A gang of some of the runs."""
    first = runs[0]
    base, device = first.base, first.context.device

    def prepare(members: Sequence[Member]) -> tuple[PreTrainedModel, DropoutStreams]:
        return prepared_model(base, [m.method for m in members], [m.seeds for m in members])

    return Gang(
        members,
        prepare=prepare,
        pad_token_id=base.pad_token_id,
        device=device,
        **options,
    )


class _Training:
    """One gang from here to its end, or to the end of the memory: then `left` and `states` say what remains."""

    def __init__(self, runs: list[_Run], states: Mapping[Member, dict[str, Any]] | None) -> None:
        self.left = list(runs)
        for run in runs:
            run.started = time.perf_counter()
        self.states: dict[Member, dict[str, Any]] = {}
        self.out_of_memory: str | None = None
        self._start_states = {m: states[m] for run in runs if states and (m := run.member) in states}

    def outcomes(self) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
        device = self.left[0].context.device
        gang = None
        try:
            members = [run.member for run in self.left]
            gang = _gang(self.left, members, compiles=pays_to_compile, states=self._start_states or None)
            fingerprint = frozen_fingerprint(gang.model)
            for departure in gang.run([run.checkpointer for run in self.left]):
                run = next(run for run in self.left if run.member is departure.member)
                try:
                    outcome = self._outcome(run, departure, gang, fingerprint)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # this run's alone
                    outcome = error
                del departure  # its model holds the weights of a gang that may be built anew
                self.left.remove(run)
                yield run.index, outcome
        except torch.OutOfMemoryError as error:
            self.out_of_memory = str(error).splitlines()[0]
        if self.out_of_memory is not None:  # outside the handler, whose traceback holds the tensors
            self.states = gang.rescue() if gang is not None else self._start_states
            gc.collect()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()

    def _outcome(
        self, run: _Run, departure: Departure, gang: Gang, fingerprint: list[int]
    ) -> dict[str, Any] | Exception:
        if departure.problem is not None or departure.model is None:
            return departure.problem or AssertionError("a member left without a model")
        if frozen_fingerprint(gang.model) != fingerprint:
            return GateFailure(
                "a weight of the frozen base changed during training",
                hint="this is a defect of the method's implementation: it must train only the parameters it declares",
            )
        return _result(run, departure.model, gang)


def _result(run: _Run, model: PreTrainedModel, gang: Gang) -> dict[str, Any]:
    """Writes the run's files; the record's figures."""
    context, member, base = run.context, run.member, run.base
    method, task, progress = member.method, member.task, member.progress
    predictions = predict(model, task, run.validation, **run.reading)
    _write_files(run, model, predictions)
    rows = np.arange(min(REFERENCE_EXAMPLES, len(run.validation)))
    logits = logits_of(model, task, run.validation, rows=rows, **run.reading)
    np.save(context.out / "reference_logits.npy", logits)
    flops = method.flops_per_parameter * linear_parameters(base.model)
    peak = peak_flops(context.device, precision=member.train.precision, warm=context.warm)
    measured = member.meters.summary(flops_per_token=flops, peak=peak)
    # The pristine weights stay on the device for the next run; one that has weights of its own does not need them.
    is_idle = context.device.startswith("cuda") and not method.shares_base
    idle = sum(p.numel() * p.element_size() for p in base.model.parameters()) if is_idle else 0
    gang_peak = measured["peak_memory_bytes"] - idle
    is_probed = run.alone is not None and measured["gang"] > 1
    measured["peak_memory_bytes"] = run.alone.peak_bytes - idle if is_probed and run.alone else gang_peak
    return {
        "validation": scores(task, predictions),
        "best_update": progress.best_update,
        "best_epoch": progress.best_update / member.updates_per_epoch,
        "updates": progress.update,
        "epochs": progress.update / member.updates_per_epoch,
        "planned_updates": member.total_updates,
        "stopped_early": progress.stopped_early,
        "resumed": progress.resumed,
        "trainable_parameters": method.expected_parameters(base.model, head=base.head),
        "total_parameters": sum(p.numel() for p in base.model.parameters()),
        "export_bytes": sum(f.stat().st_size for f in (context.out / "export").iterdir() if f.suffix == ".safetensors"),
        "device": context.device.partition(":")[0],
        "step": gang.describe_step(),
        **measured,
        "gang_peak_memory_bytes": gang_peak,
        "total_seconds": time.perf_counter() - run.started,
    }


def _write_files(run: _Run, model: PreTrainedModel, predictions: Any) -> None:
    import pandas as pd

    out, progress = run.context.out, run.member.progress
    run.member.method.export(model, out / "export", base=run.base)
    tokenizer_for(run.context).save_pretrained(out / "export")
    pd.DataFrame(progress.curve).to_parquet(out / "curves.parquet", index=False)
    if progress.snapshots:
        pd.DataFrame(progress.snapshots).to_parquet(out / "snapshots.parquet", index=False)
    predictions.to_parquet(out / "validation_predictions.parquet", index=False)
    np.save(out / "losses.npy", np.asarray(progress.losses, dtype=np.float32))


def out_of_memory(context: StepContext, what: str) -> EnvironmentProblem:
    """The device's memory did not suffice, in words a researcher can act on."""
    train = TrainSpec.model_validate(context.step.params["train"])
    micro = train.micro_batch_size or train.batch_size
    return EnvironmentProblem(
        f"{context.device} ran out of memory ({what.splitlines()[0]})",
        hint=f"lower train.micro_batch_size (now {micro}; gradients are accumulated to batch_size {train.batch_size}, "
        f"so the run stays the same experiment), then train.max_length (now {train.max_length}), or set "
        f"train.precision: bf16 (now {train.precision})",
    )


def frozen_fingerprint(model: torch.nn.Module) -> list[int]:
    """The sum of the bits, as integers, of every frozen parameter: equal before and after if nothing moved."""
    with torch.no_grad():
        sums = [
            p.detach().contiguous().view(_BITS[p.element_size()]).sum(dtype=torch.int64)
            for p in model.parameters()
            if not p.requires_grad
        ]
        return torch.stack(sums).tolist() if sums else []


def linear_parameters(model: torch.nn.Module) -> int:
    """The N of "6N FLOPs a token": weights of linear layers, embeddings not counted (Kaplan et al. 2020)."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))


def make_deterministic(device: str) -> None:
    """Chooses deterministic kernels on CUDA where they exist (CPU kernels already are). Whether that was enough, the
    gate "same seed, same losses" shows."""
    if device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] - debugging aid, slow
