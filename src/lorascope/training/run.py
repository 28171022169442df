"""The `train` step: runs from the base model to exported checkpoints, several at a time where that pays.

What a run starts from is in training/preparation.py, what it commits in training/result.py; here is who trains with whom,
and what happens when one of them, or the memory, fails. Training never opens the test set.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lorascope.data.columns import ColumnStore
from lorascope.engine.context import HandedBack, StepContext
from lorascope.engine.events import Notice
from lorascope.errors import GateFailure, OutOfMemory
from lorascope.methods.base import NotStackable
from lorascope.methods.dropout import DropoutStreams
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.loading import BaseModel
from lorascope.registry import OBSERVERS, resolve
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.tasks.description import task_from_result
from lorascope.training.checkpoint import Checkpointer
from lorascope.training.gang import Departure, Gang
from lorascope.training.gang_decision import GangDecision
from lorascope.training.member import Callbacks, Member, Recipe
from lorascope.training.preparation import (
    base_for,
    make_deterministic,
    method_from_params,
    prepared_model,
    reading_for,
)
from lorascope.training.reading import Reading
from lorascope.training.result import commit_result
from lorascope.training.sizing import gang_size, partition, pays_to_compile, split
from lorascope.training.started import Run as Run

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def train_run(context: StepContext) -> dict[str, Any]:
    """Trains one run: a gang of one. params: model, method, seeds, train, learning_rate; deps: data, tokens (and sanity,
    to wait for).

    Raises Diverged (NaN), GateFailure (a base weight that moved), OutOfMemory (says what to lower).
    """
    ((_, outcome),) = train_gang([context])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


Outcome = dict[str, Any] | Exception
Ending = Callable[["Run", Departure, Gang], Outcome]
Keep = Callable[[dict[str, Any]], None]


def train_gang(
    contexts: Sequence[StepContext],
    *,
    beginning: Callable[[StepContext], None] = lambda context: None,
    ending: Ending | None = None,
    keeping: Callable[[StepContext], Keep | None] = lambda context: None,
) -> Generator[tuple[int, Outcome]]:
    """Trains runs of one base, method kind and sites together, as many as pays (training/sizing.py), and hands the others
    back, for a worker that has nothing else to do would have to watch. Yields (index of the context, its result or why it
    failed) the moment a run is through.

    beginning: what is done for a run before it is set up. ending: what becomes of a run that left its gang; default: it is
    committed with its export. keeping: what to do with the state that a run ends in.
    """
    make_deterministic(contexts[0].device)
    contexts[0].warm.make_room()  # what is spare would count in the memory of these runs
    runs: list[Run] = []
    for index, context in enumerate(contexts):
        try:
            beginning(context)
            runs.append(set_up(index, context, keep=keeping(context)))
        except Exception as error:  # this run's alone
            yield index, error
    if runs:
        alike = partition(runs, member=lambda run: run.member)[0]
        size = size_together(alike)
        together = split(alike, size)[0]
        yield from ((run.index, HandedBack()) for run in runs if run not in together)
        yield from _train_together(together, size, ending or commit_run)


def commit_run(run: Run, departure: Departure, gang: Gang) -> Outcome:
    """The ending of a run of the study's own grid: its files, or the problem that broke it."""
    if departure.model is None:
        return departure.problem or AssertionError("a member left without a model")
    return commit_result(run, departure.model, gang)


def size_together(runs: Sequence[Run]) -> int:
    """How many of the runs to train at a time; each learns what it needs alone."""
    first, resources = runs[0], runs[0].context.step.resources
    if not first.member.method.stacks:
        return 1
    try:
        size, alone = gang_size(
            [run.member for run in runs],
            device=first.context.device,
            limit=resources.gang_limit,
            build=lambda members: gang_of(runs, members, is_captured=False),
            decision=GangDecision.of(
                first.context.cache_dir,
                gang_key=resources.gang_key,
                tokens=[run.context.deps["tokens"].id for run in runs],
                device=first.context.device,
            ),
        )
    except NotStackable as reason:
        first.context.emit(
            Notice(step=first.context.step.id, level="info", text=f"{reason}: its runs train one by one")
        )
        return 1
    for run in runs:
        run.alone = alone
    return size


def _say(runs: Sequence[Run], text: str, *, level: str = "info") -> None:
    """A notice about all of them, through the first that can still speak: one that lost its lock cannot."""
    for run in runs:
        with suppress(Exception):
            run.context.emit(Notice(step=run.context.step.id, level=level, text=text))
            return


def set_up(index: int, context: StepContext, *, keep: Keep | None = None) -> Run:
    """What a step's run starts from, and where its results go."""
    params = context.step.params
    task = task_from_result(context.deps["data"].result)
    columns, validation = (ColumnStore.open(context.deps["tokens"].file(s)) for s in ("train", "validation"))
    base = base_for(context, task)
    train = TrainSpec.model_validate(params["train"])
    snapshots = params.get("snapshots")
    reading = reading_for(context, task, base, precision=train.precision)
    observe = _observer(context, base, reading).observe if snapshots else None

    def validate(model: nn.Module) -> dict[str, float]:
        return reading.scores(reading.predict(model, validation))

    member = Member(
        method=method_from_params(params["method"]),
        reading=reading,
        columns=columns,
        recipe=Recipe(
            train=train,
            learning_rate=params["learning_rate"],
            seeds=Seeds.model_validate(params["seeds"]).derived(params["seeds_for"]),
            stops=params.get("stops", (1.0,)),
        ),
        callbacks=Callbacks(
            validate=validate,
            emit=context.emit,
            step_id=context.step.id,
            observe=observe,
            num_snapshots=snapshots["count"] if snapshots else 0,
            keep=keep,
        ),
    )
    return Run(index, context, member, base, validation, Checkpointer(context.work))


def _observer(context: StepContext, base: BaseModel, reading: Reading) -> Any:
    """What looks at a run in the course of its training: drift's, which lies above this layer."""
    return resolve(OBSERVERS, "drift")(
        context.step.params["snapshots"],
        base=base,
        directory=checkpoint_directory(
            context.step.params["model"], locations=context.step.locations, cache_dir=context.cache_dir
        ),
        reading=reading,
        validation=context.deps["tokens"].file("validation"),
        warm=context.warm,
    )


def _train_together(runs: Sequence[Run], size: int, ending: Ending) -> Iterator[tuple[int, Outcome]]:
    """Trains the runs as gangs of at most `size`. When memory does not suffice, those that were in it join the ones that
    wait, with what they have learnt, and gangs are half as large; each that goes through lets the next be twice as large
    again, for who took the memory may have left."""
    waiting, largest = list(runs), size
    states: dict[Member, dict[str, Any]] = {}
    while waiting:
        group = split(waiting, size)[0]
        training = _Training(group, states, ending)
        try:
            yield from training.outcomes()
        except NotStackable as reason:  # found before anything was trained
            _say(group, f"{reason}: its runs train one by one")
            yield from ((run.index, HandedBack()) for run in waiting[1:])
            waiting, size, largest = waiting[:1], 1, 1
            continue
        waiting = waiting[len(group) :]
        states = {run.member: states[run.member] for run in waiting if run.member in states}
        if training.out_of_memory is None:
            size = min(largest, 2 * size)
            continue
        left = training.left
        if len(left) == 1:
            yield left[0].index, out_of_memory(left[0].context, training.out_of_memory)
            continue
        size = (len(left) + 1) // 2
        waiting, states = left + waiting, {**states, **training.states}
        text = f"{left[0].context.device} ran out of memory with {len(left)} runs together; going on with {size}"
        _say(left, text, level="warning")


def gang_of(runs: Sequence[Run], members: Sequence[Member], **options: Any) -> Gang:
    """A gang of some of the runs."""
    first = runs[0]
    base = first.base

    def prepare(members: Sequence[Member]) -> tuple[PreTrainedModel, DropoutStreams]:
        return prepared_model(base, [m.method for m in members], [m.seeds for m in members])

    return Gang(
        members,
        prepare=prepare,
        **options,
    )


class _Training:
    """One gang from here to its end, or to the end of the memory: then `left` and `states` say what remains."""

    def __init__(self, runs: list[Run], states: Mapping[Member, dict[str, Any]], ending: Ending) -> None:
        self.left, self._ending = list(runs), ending
        for run in runs:
            run.started = time.perf_counter()
        self.states: dict[Member, dict[str, Any]] = {}
        self.out_of_memory: str | None = None
        self._start_states = {m: states[m] for run in runs if (m := run.member) in states}

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        device = self.left[0].context.device
        gang = None
        try:
            members = [run.member for run in self.left]
            gang = gang_of(self.left, members, compiles=pays_to_compile, states=self._start_states or None)
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

    def _outcome(self, run: Run, departure: Departure, gang: Gang, fingerprint: list[int]) -> Outcome:
        if departure.problem is None and frozen_fingerprint(gang.model) != fingerprint:
            return GateFailure(
                "a weight of the frozen base changed during training",
                hint="this is a defect of the method's implementation: it must train only the parameters it declares",
            )
        return self._ending(run, departure, gang)


def out_of_memory(context: StepContext, what: str) -> OutOfMemory:
    """The device's memory did not suffice, in words a researcher can act on."""
    train = TrainSpec.model_validate(context.step.params["train"])
    micro = train.micro_batch_size or train.batch_size
    return OutOfMemory(
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
