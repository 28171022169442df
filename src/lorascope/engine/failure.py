"""A step's failure as data: it crosses from a worker to the coordinator, and stays in the store to be shown."""

from __future__ import annotations

import json
import time
import traceback as traceback_module
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lorascope.errors import LorascopeError, StepFailure
from lorascope.plugins import imported
from lorascope.printable import printable


@dataclass(frozen=True)
class Failure:
    """error: "module:Class" of what was raised. message, hint, where: as in LorascopeError. exit_code: of the command
    line. traceback: None for an error that a person can correct. log: the worker's log file, if it has one. time_s: Unix time.
    """

    step_id: str
    error: str
    message: str
    hint: str | None = None
    where: str | None = None
    exit_code: int = 1
    traceback: str | None = None
    log: str | None = None
    time_s: float = field(default_factory=time.time)

    @classmethod
    def of(cls, step_id: str, error: BaseException, *, log: str | None = None) -> Failure:
        """The failure that `error`, just raised, is. What is no LorascopeError keeps its traceback."""
        name = f"{type(error).__module__}:{type(error).__qualname__}"
        if isinstance(error, LorascopeError):
            return cls(step_id, name, error.message, error.hint, error.where, error.exit_code, log=log)
        text = printable("".join(traceback_module.format_exception(error)))
        message, hint = (
            printable(f"{type(error).__name__}: {error}"),
            f"`lorascope show {step_id}` shows the traceback.",
        )
        return cls(step_id, name, message, hint, traceback=text, log=log)

    @property
    def error_name(self) -> str:
        """The class name alone, for people."""
        return self.error.rpartition(":")[2]

    @property
    def text(self) -> str:
        """What a person reads: place, message, hint."""
        return str(StepFailure(self.message, hint=self.hint, where=self.where))

    def to_error(self) -> LorascopeError:
        """The error to raise here: of the original class if that is a LorascopeError, else a StepFailure."""
        kind = _error_class(self.error)
        return kind(self.message, hint=self.hint, where=self.where)

    def to_json(self) -> dict[str, Any]:
        """The failure as JSON."""
        return asdict(self)

    @classmethod
    def read(cls, content: bytes, step_id: str) -> Failure:
        """The failure on record. One that cannot be read says so."""
        try:
            return cls.from_json(json.loads(content))
        except (ValueError, TypeError):
            error = StepFailure(
                "the step failed, but what was recorded of it cannot be read",
                hint="Give the same command again: the step is tried again, and the record replaced.",
            )
            return cls(step_id, "lorascope.errors:StepFailure", error.message, error.hint)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """The failure that `to_json` wrote."""
        return cls(**data)


def _error_class(name: str) -> type[LorascopeError]:
    if not name.startswith("lorascope."):
        return StepFailure
    try:
        found = imported(name)
    except AttributeError:  # a class that is local to a function
        return StepFailure
    return found if isinstance(found, type) and issubclass(found, LorascopeError) else StepFailure
