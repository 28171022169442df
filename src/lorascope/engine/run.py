"""Run steps: take their locks, call their function, commit what it made. The same in every executor, and by hand.

Several steps of one kind can be computed together, as a gang: one call of the kind's gang function yields (index, result
or failure, or `HandedBack`) for each, in any order. To the store they stay single steps: each has its own lock, staging
and work directory, events, commit and failure. An exception that leaves the gang function fails those it had not yielded.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import gc
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lorascope import registry
from lorascope.engine import provenance
from lorascope.engine.context import HandedBack, StepContext
from lorascope.engine.events import Event, StepFinished, StepHandedBack, StepStarted
from lorascope.engine.executor import Completion
from lorascope.engine.failure import Failure
from lorascope.engine.figures import figures_in
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.bucket import BucketTrouble
from lorascope.engine.store.directory import Store, StoreProblem
from lorascope.engine.store.lock import Owner
from lorascope.engine.workplace import Workplace
from lorascope.errors import LorascopeError, OutOfMemory, StudyError
from lorascope.plugins import check_stamps

# How CUDA's libraries say it where torch does not: a handle needs a workspace.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory", "cublasCreate", "cusolverDnCreate", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


class StepBusy(Exception):
    """Another process works on this step."""

    def __init__(self, step_id: str, owner: Owner | None) -> None:
        super().__init__(f"{step_id} is under way in {owner or 'another process'}")
        self.step_id = step_id


Settled = Literal["done", "found"] | Exception
GangFunction = Callable[[Sequence[StepContext]], Generator[tuple[int, dict[str, Any] | Exception]]]


def run_step(step: Step, workplace: Workplace, *, attempt: int = 1) -> Artifact:
    """The artifact of `step`, computed here unless it is there already. Its dependencies must be committed.

    A failure is recorded in the store and raised: a LorascopeError as it is, running out of memory or disk as the
    LorascopeError that says what to do, anything else unchanged. Raises StepBusy while another process works on it.
    """
    troubles: list[Exception] = []

    def settle(step: Step, outcome: Settled) -> None:
        if isinstance(outcome, Exception):
            troubles.append(outcome)

    _run([step], workplace, attempt=attempt, settle=settle)
    for trouble in troubles:
        raise trouble
    return workplace.store.artifact(step.id)


def try_steps(
    steps: Sequence[Step], workplace: Workplace, *, report: Callable[[Completion], None], attempt: int = 1
) -> None:
    """`run_step` for an executor: several steps are computed together, and what became of each is reported the moment
    it is known, instead of an exception. Every step is reported once.
    """
    failed: list[str] = []

    def settle(step: Step, outcome: Settled) -> None:
        if isinstance(outcome, StepBusy):
            report(Completion(step.id, "busy"))
        elif isinstance(outcome, HandedBack):
            report(Completion(step.id, "handed back"))
        elif isinstance(outcome, Exception):
            failed.append(step.id)
            report(Completion(step.id, "failed", Failure.of(step.id, outcome, log=workplace.log)))
        else:
            report(Completion(step.id, outcome))

    _run(steps, workplace, attempt=attempt, settle=settle)
    if failed:
        gc.collect()  # the tensors that their tracebacks kept alive


def step_function(kind: str) -> Callable[[StepContext], dict[str, Any]]:
    """The function behind a step kind. Raises StudyError where nothing of that name is installed."""
    if kind not in registry.STEP_KINDS:
        raise StudyError(
            f"there is no step kind `{kind}` here",
            hint="A plug-in brought it: install that one on every machine that runs this study.",
        )
    return registry.resolve(registry.STEP_KINDS, kind)


def can_gang(kind: str) -> bool:
    """Whether steps of this kind can be computed together. Imports nothing."""
    return kind in registry.GANG_FUNCTIONS


def gang_function(kind: str) -> GangFunction:
    """The function that computes several steps of a kind together."""
    return registry.resolve(registry.GANG_FUNCTIONS, kind)


def _load_code(kind: str) -> None:
    """Imports what is behind a kind before the clock of its step starts: loading libraries is the worker's time. What
    fails here fails again where the step is run, and is its failure there.
    """
    with contextlib.suppress(Exception):
        step_function(kind)


def _alone(function: Callable[[StepContext], dict[str, Any]]) -> GangFunction:
    """A step's function as that of a gang of one."""

    def gang(contexts: Sequence[StepContext]) -> Generator[tuple[int, dict[str, Any] | Exception]]:
        (context,) = contexts
        yield 0, function(context)

    return gang


def _run(steps: Sequence[Step], workplace: Workplace, *, attempt: int, settle: Callable[[Step, Settled], None]) -> None:
    """Compute steps of one kind together and settle each, once, the moment it is committed or has failed."""
    _load_code(steps[0].kind)
    with contextlib.ExitStack() as ending:
        members: list[_Member] = []
        contexts: list[StepContext] = []
        for step in steps:
            member = _Member(step, workplace, settle=settle)
            ending.callback(member.end)
            if context := member.begin(attempt=attempt):
                members.append(member)
                contexts.append(context)
        if not members:
            return
        kind = members[0].step.kind
        try:
            function = _alone(step_function(kind)) if len(members) == 1 else gang_function(kind)
            with contextlib.closing(function(contexts)) as results:
                num_together = len(members)
                for index, result in results:
                    if isinstance(result, HandedBack):
                        num_together -= 1
                        members[index].hand_back()
                    else:
                        members[index].take(result, gang=num_together)
            missing = sum(not member.is_settled for member in members)
            if missing:
                raise RuntimeError(f"the gang ended without a result of {missing} of its {len(members)} steps")
        except Exception as error:
            workplace.warm.clear()  # a model changed halfway must not serve the next step
            for member in members:
                if not member.is_settled:
                    # One that lost its lock and stopped the whole gang: the others are free to be taken up again.
                    busy = isinstance(error, StepBusy)
                    member.fail(StepBusy(member.step.id, None) if busy else error, gang=len(members))


class _Member:
    """One step under way in this process: its lock, its staging directory, and how it ends."""

    def __init__(self, step: Step, workplace: Workplace, *, settle: Callable[[Step, Settled], None]) -> None:
        self.step = step
        self.is_settled = False
        self._workplace = workplace
        self._store = workplace.store
        self._settle = settle
        self._lock = workplace.store.lock(step.id)
        self._staging: Path | None = None
        self._started: tuple[str, float] | None = None  # when, in words and on the monotonic clock

    def begin(self, *, attempt: int) -> StepContext | None:
        """Take the lock and make room for the files. None if nothing is to be computed here: that is settled."""
        step, store, workplace = self.step, self._store, self._workplace
        try:
            if store.has(step.id):
                self._end_with("found")
                return None
            with store.guard():
                if not self._lock.try_acquire():
                    raise StepBusy(step.id, self._lock.holder())
            if store.has(step.id):  # committed between our look and our lock
                self._end_with("found")
                return None
            check_stamps(step.params)
            store.clear_failure(step.id)
            workplace.emit(StepStarted(step=step.id, worker=workplace.worker, attempt=attempt))
            self._started = _now(), time.monotonic()
            self._staging = store.stage(step.id)
            return StepContext(
                step=step,
                out=self._staging,
                work=store.work_dir(step.id),
                deps={role: store.artifact(step_id) for role, step_id in step.deps.items()},
                emit=self._emit_while_ours,
                device=workplace.device,
                data_dir=workplace.data_dir,
                cache_dir=store.cache_dir,
                warm=workplace.warm,
            )
        except Exception as error:
            self.fail(error, gang=1)
            return None

    def take(self, result: Mapping[str, Any] | Exception, *, gang: int) -> None:
        """Commit the result, or record the failure. gang: how many steps were computed together."""
        assert not self.is_settled, f"{self.step.id} was given a second result"
        if isinstance(result, Exception):
            self.fail(result, gang=gang)
            return
        assert self._staging is not None
        assert self._started is not None
        started, started_s = self._started
        workplace = self._workplace
        try:
            origin = {
                **provenance.describe(device=workplace.device),
                "gang": gang,
                "started": started,
                "finished": _now(),
            }
            self._store.commit(self.step, self._staging, result=result, provenance=origin)
            seconds = time.monotonic() - started_s
            workplace.emit(
                StepFinished(step=self.step.id, seconds=seconds, worker=workplace.worker, figures=figures_in(result))
            )
        except Exception as error:
            self.fail(error, gang=gang)
        else:
            self._end_with("done")

    def hand_back(self) -> None:
        """Let go of it, for whoever is free."""
        self._workplace.emit(StepHandedBack(step=self.step.id))
        self._end_with(HandedBack())

    def fail(self, error: Exception, *, gang: int) -> None:
        step, store = self.step, self._store
        try:
            with store.guard():
                is_there, is_lost = store.has(step.id), self._lock.is_lost
                holder = self._lock.holder() if is_lost else None
        except StoreProblem as problem:  # the store itself is out of reach, which is the news then
            self._end_with(_because_of(error, problem))
            return
        if is_there:  # another process, which held our lock while we were suspended, was quicker
            self._end_with("found" if self._started is None else "done")
        elif isinstance(error, StepBusy):
            self._end_with(error)
        elif is_lost:
            self._end_with(_because_of(error, StepBusy(step.id, holder)))
        else:
            explained = _explain(error, step=step, workplace=self._workplace, gang=gang)
            try:
                if not isinstance(explained, StoreProblem):
                    store.record_failure(step.id, Failure.of(step.id, explained, log=self._workplace.log))
            except StoreProblem as problem:
                explained = problem
            self._end_with(_because_of(error, explained))

    def end(self) -> None:
        """Let go of the lock and what was not committed. Harmless a second time."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
        is_there = False
        with contextlib.suppress(StoreProblem):  # out of reach: the lock goes stale
            is_there = self._store.has(self.step.id)
        self._lock.release(discard=is_there)

    def _end_with(self, outcome: Settled) -> None:
        self.end()
        self.is_settled = True
        self._settle(self.step, outcome)

    def _emit_while_ours(self, event: Event) -> None:
        """Stops a step at its next event once its lock was taken over, before it disturbs the holder's checkpoints."""
        if self._lock.was_taken_over:
            raise StepBusy(self.step.id, None)
        self._workplace.emit(event)


def _because_of(error: Exception, explained: Exception) -> Exception:
    """`explained`, as `raise explained from error` leaves it."""
    if explained is not error:
        explained.__cause__ = error
    return explained


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _explain(error: Exception, *, step: Step, workplace: Workplace, gang: int) -> Exception:
    """The same misfortune as an error that names the remedy, where we know one; else `error` itself."""
    if isinstance(error, LorascopeError):
        return error
    store, causes = workplace.store, list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and _concerns(cause, store) and (problem := store.problem(cause)):
            return problem
    # Writers in C++ and Rust (torch.save, safetensors) lose the error number and keep its text at best.
    if any("No space left on device" in str(cause) for cause in causes):
        return store.problem(OSError(errno.ENOSPC, "No space left on device")) or error
    if any(map(_is_out_of_memory, causes)):
        return OutOfMemory(
            f"{step.id} ran out of memory on {workplace.device}: {str(error).splitlines()[0] if str(error) else 'MemoryError'}",
            hint=f"Lower {'train.gang or ' if gang > 1 else ''}train.micro_batch_size (same result, less memory), then "
            "train.max_length or train.batch_size, or use a device with more memory.",
        )
    return error


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY))
    )


def _concerns(error: OSError, store: Store) -> bool:
    """Whether `error` is about the store: its bucket, any full disk, but only refusals of paths within it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, BucketTrouble):
        return True
    return isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(store.root)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
