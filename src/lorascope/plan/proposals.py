"""What samplers have proposed, kept in the store: a search stays the same search under another version of its sampler.

A `proposals` step is made of the question that was asked: ranges, the trials told, the sampler and its seed. Its artifact
has the answer and the version that gave it. It is not part of a plan: a plan is made from it. Where a store holds an answer,
nobody is asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lorascope.engine.events import fan_out
from lorascope.engine.run import StepBusy, run_step
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.workplace import Workplace
from lorascope.plan.labels import VERSIONS
from lorascope.search.propose import Question, ask_sampler

_LOOK_S = 0.05


class Proposals:
    """Asks the store, then the sampler. keeps: whether an answer that the store lacks is committed to it; who only looks
    at a study leaves no trace."""

    def __init__(self, store: Store, *, keeps: bool) -> None:
        self._store, self._keeps = store, keeps
        self._known: dict[str, Mapping[str, Any]] = {}

    @property
    def found(self) -> list[str]:
        """The ids of the answers that were read from the store."""
        return list(self._known)

    def __call__(self, question: Question) -> Mapping[str, Any]:
        """The answer. Raises EnvironmentProblem where there is none and Optuna is not installed."""
        step = Step(
            kind="proposals",
            version=VERSIONS["proposals"],
            params=question,
            slug=f"{question['sampler']}-{question['round']}",
        )
        if step.id not in self._known:
            if self._keeps:
                self._commit(step)
            if not self._store.has(step.id):
                return ask_sampler(question)
            self._known[step.id] = self._store.artifact(step.id).result
        return self._known[step.id]

    def _commit(self, step: Step) -> None:
        while not self._store.has(step.id):
            try:
                run_step(step, Workplace(store=self._store, device="cpu", emit=fan_out(), worker="coordinator"))
            except StepBusy:  # another coordinator asks the same
                time.sleep(_LOOK_S)
