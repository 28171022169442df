"""Run one step: take its lock, call its function, commit what it made. The same in every executor, and by hand."""

from __future__ import annotations

import datetime
import errno
import importlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorascope import registry
from lorascope.engine import provenance
from lorascope.engine.artifact import Artifact
from lorascope.engine.context import StepContext
from lorascope.engine.events import Emit, Event, StepFinished, StepStarted
from lorascope.engine.executor import Completion
from lorascope.engine.failure import Failure
from lorascope.engine.lock import Owner, StepLock
from lorascope.engine.step import Step
from lorascope.engine.store import Store, StoreProblem
from lorascope.errors import LorascopeError, StepFailure


class StepBusy(Exception):
    """Another process works on this step."""

    def __init__(self, step_id: str, owner: Owner | None) -> None:
        super().__init__(f"{step_id} is under way in {owner or 'another process'}")
        self.step_id = step_id


def run_step(
    step: Step,
    store: Store,
    *,
    device: str,
    data_dir: Path | None,
    emit: Emit,
    warm: dict[str, Any],
    worker: str,
    attempt: int = 1,
    log: str | None = None,
) -> Artifact:
    """The artifact of `step`, computed here unless it is there already. Its dependencies must be committed.

    A failure is recorded in the store and raised: a LorascopeError as it is, running out of memory or disk as the
    LorascopeError that says what to do, anything else unchanged. Raises StepBusy while another process works on it.
    log: the worker's log file, for the record of a failure.
    """
    if store.has(step.id):
        return store.artifact(step.id)
    lock = store.lock(step.id)
    with store.guard():
        if not lock.try_acquire():
            raise StepBusy(step.id, lock.holder())
    try:
        if store.has(step.id):  # committed between our look and our lock
            return store.artifact(step.id)
        store.clear_failure(step.id)
        emit(StepStarted(step=step.id, worker=worker, attempt=attempt))
        started = time.monotonic()
        emit_while_ours = _refuse_once_lost(emit, step, lock)
        artifact = _compute(step, store, device=device, data_dir=data_dir, emit=emit_while_ours, warm=warm)
        emit(StepFinished(step=step.id, seconds=time.monotonic() - started, worker=worker))
        return artifact
    except Exception as error:
        if store.has(step.id):  # another process, which held our lock while we were suspended, was quicker
            return store.artifact(step.id)
        if lock.is_lost:
            raise StepBusy(step.id, lock.holder()) from error
        explained = _explain(error, step=step, store=store, device=device)
        if not isinstance(explained, StoreProblem):
            store.record_failure(step.id, Failure.of(step.id, explained, log=log))
        if explained is error:
            raise
        raise explained from error
    finally:
        lock.release(discard=store.has(step.id))


def try_step(
    step: Step, store: Store, *, emit: Emit, warm: dict[str, Any], log: str | None = None, **others: Any
) -> Completion:
    """`run_step` for an executor: what became of the step, instead of an exception; same arguments."""
    events: list[str] = []

    def relay(event: Event) -> None:
        events.append(event.kind)
        emit(event)

    try:
        run_step(step, store, emit=relay, warm=warm, log=log, **others)
    except StepBusy:
        return Completion(step.id, "busy")
    except Exception as error:
        warm.clear()  # a model changed halfway must not serve the next step
        return Completion(step.id, "failed", Failure.of(step.id, error, log=log))
    return Completion(step.id, "done" if StepStarted.kind in events else "found")


def step_function(kind: str) -> Callable[[StepContext], dict[str, Any]]:
    """The function behind a step kind: a key of `registry.STEP_KINDS`, or "module:function" itself."""
    if ":" in kind:
        module, _, attribute = kind.partition(":")
        return getattr(importlib.import_module(module), attribute)
    return registry.resolve(registry.STEP_KINDS, kind)


def _refuse_once_lost(emit: Emit, step: Step, lock: StepLock) -> Emit:
    """Stops a step at its next event once its lock was taken over, before it disturbs the new holder's checkpoints."""

    def emit_while_ours(event: Event) -> None:
        if lock.was_taken_over:
            raise StepBusy(step.id, None)
        emit(event)

    return emit_while_ours


def _compute(
    step: Step, store: Store, *, device: str, data_dir: Path | None, emit: Emit, warm: dict[str, Any]
) -> Artifact:
    staging = store.stage(step.id)
    try:
        started = _now()
        result = step_function(step.kind)(
            StepContext(
                step=step,
                out=staging,
                work=store.work_dir(step.id),
                deps={role: store.artifact(step_id) for role, step_id in step.deps.items()},
                emit=emit,
                device=device,
                data_dir=data_dir,
                cache_dir=store.cache_dir,
                warm=warm,
            )
        )
        origin = {**provenance.describe(device=device), "started": started, "finished": _now()}
        return store.commit(step, staging, result=result, provenance=origin)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _explain(error: Exception, *, step: Step, store: Store, device: str) -> Exception:
    """The same misfortune as an error that names the remedy, where we know one; else `error` itself."""
    if isinstance(error, LorascopeError):
        return error
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and _concerns(cause, store) and (problem := store.problem(cause)):
            return problem
    # Writers in C++ and Rust (torch.save, safetensors) lose the error number and keep its text at best.
    if any("No space left on device" in str(cause) for cause in causes):
        return store.problem(OSError(errno.ENOSPC, "No space left on device")) or error
    if any(isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" for cause in causes):
        return StepFailure(
            f"{step.id} ran out of memory on {device}: {str(error).splitlines()[0] if str(error) else 'MemoryError'}",
            hint="Lower train.micro_batch_size (same result, less memory), then train.max_length or "
            "train.batch_size, or use a device with more memory.",
        )
    return error


def _concerns(error: OSError, store: Store) -> bool:
    """Whether `error` is about the store: any full disk, but only refusals of paths within it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(store.root)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
