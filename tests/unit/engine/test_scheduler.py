"""The scheduler, with an executor that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine_steps import make

from lorascope.engine.scheduler import execute
from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.workers.inline import InlineExecutor


class BecomesFree(InlineExecutor):
    """Its worker becomes free between the first question and the second."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, devices=["cpu"])
        self.num_asked = 0
        self.submitted: list[str] = []

    def warmth(self, step: Step) -> int | None:
        self.num_asked += 1
        return None if self.num_asked == 1 else super().warmth(step)

    def submit(self, steps: Sequence[Step]) -> None:
        self.submitted += [step.id for step in steps]
        super().submit(steps)


def test_a_worker_that_becomes_free_meanwhile_changes_no_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    executor = BecomesFree(store)
    steps = [make("count", value=value) for value in (5, 3, 9)]
    execute(steps, store=store, executor=executor, emit=lambda event: None, poll_s=0.01)
    assert executor.submitted == [step.id for step in steps]


def test_what_can_be_planned_after_a_failure_is_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bad, instead = make("wrong"), make("count", value=1)

    def more() -> list[Step]:
        return [bad, instead] if store.failure(bad.id) else []

    executor = InlineExecutor(store, devices=["cpu"])
    outcome = execute([bad], store=store, executor=executor, emit=lambda event: None, poll_s=0.01, more=more)
    assert outcome.done == [instead.id] and list(outcome.failed) == [bad.id]
