"""Errors for people: what is wrong, where, and what to do about it.

Every error a user can cause carries a `hint` (the remedy) and, where one exists, a `where` (file:line). The exit code
belongs to the class, so the command line needs no table of its own.
"""

from __future__ import annotations

from typing import Any

from lorascope.printable import printable


class LorascopeError(Exception):
    """A mistake, or a failure that a person can correct. Never shown with a traceback.

    message: one sentence that names what was found. hint: the remedy, one or more sentences.
    where: "file:line" or the dotted place in a study ("methods[1].rank"), if there is one.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(printable(message))
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        self.where = None if where is None else printable(where)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.where))


def _rebuild(kind: type[LorascopeError], message: str, hint: str | None, where: str | None) -> LorascopeError:
    return kind(message, hint=hint, where=where)


class StepFailure(LorascopeError):
    """A step could not be completed (exit code 1)."""

    exit_code = 1


class GateFailure(StepFailure):
    """A validity gate did not hold: the numbers behind it would mean nothing, so that part of the study stops."""


class Diverged(GateFailure):
    """A loss became NaN or infinite: the hyper-parameters broke the model."""


class StudyError(LorascopeError):
    """The study, or the data it names, is wrong (exit code 2). Raised before anything starts wherever possible."""

    exit_code = 2


class DataError(StudyError):
    """The examples a study names cannot be used as they are (missing column, one class only, empty split ...)."""


class EnvironmentProblem(LorascopeError):
    """The machine cannot do this: missing package, model not found offline, disk full, store not writable (exit 3)."""

    exit_code = 3


class NotStackable(LorascopeError):
    """Several runs of this method cannot be trained together on this model: each has to run alone."""


class OutOfMemory(EnvironmentProblem):
    """The device had too little memory. With other workers on the device this says little, and the step is tried again
    when it has the device to itself."""
