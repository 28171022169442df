"""What every executor can do: take steps, and later say what became of each.

The scheduler decides what may run; an executor decides where. Results travel through the store, so a completion is only
news, and an executor on other machines needs nothing more than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lorascope.engine.events import Emit
from lorascope.engine.failure import Failure
from lorascope.engine.step import Step, canonical_json


@dataclass(frozen=True)
class Completion:
    """What became of a submitted step. found: another process had committed it. busy: another process holds its lock.
    handed back: its worker was given more than it computes together, and has not begun it. failure: set if and only if
    `outcome` is "failed".
    """

    step_id: str
    outcome: Literal["done", "found", "busy", "handed back", "failed"]
    failure: Failure | None = None


class Executor(Protocol):
    """Runs steps whose dependencies are committed. Used by one scheduler, from one thread."""

    def prepare(self) -> None:
        """Find out whether steps could run here, before the first is submitted. Raises EnvironmentProblem if not."""
        ...

    def warmth(self, step: Step) -> int | None:
        """How much of what `step` needs the best free worker has loaded; None if no worker can take it now."""
        ...

    def num_free(self, step: Step) -> int:
        """Among how many workers steps like `step` may be divided now: those free, one an accelerator."""
        ...

    def submit(self, steps: Sequence[Step]) -> None:
        """Start a step, or several of one kind and gang key together on one worker; only after the `warmth` of the
        first was not None. Each has its own completion.
        """
        ...

    def poll(self, emit: Emit, *, timeout_s: float) -> list[Completion]:
        """Wait up to `timeout_s` for news; relay the events of running steps; the completions since the last call."""
        ...

    def close(self) -> None:
        """Stop whatever runs, release its locks, end the workers. Harmless a second time."""
        ...


def needs(step: Step) -> frozenset[str]:
    """What a worker keeps loaded for `step`: its model and its dependencies. Steps that share these go together."""
    model = step.params.get("model")
    shared = {f"model {canonical_json(model)}"} if model is not None else set()
    return frozenset(shared | set(step.deps.values()))
