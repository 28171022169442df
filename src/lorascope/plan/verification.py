"""Whether the finished steps of a study are what was committed, and what to do about those that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorascope.engine.store.integrity import SEAL, CorruptArtifact
from lorascope.plan.growing import Planner
from lorascope.plan.steps.results import analysis_step

if TYPE_CHECKING:
    from lorascope.engine.store.directory import Store


@dataclass(frozen=True)
class Verification:
    """problems: one sentence each. num_checked: the finished steps that were compared with their records, of num_steps that
    the study has. num_unsealed: records of before there were seals. num_packed: artifacts without files that were left out
    when the store was packed."""

    problems: tuple[str, ...]
    num_checked: int
    num_steps: int
    num_unsealed: int
    num_packed: int

    @property
    def is_good(self) -> bool:
        """Whether there was something to verify, and all of it is as it was committed."""
        return bool(self.num_checked) and not self.problems


def verify_study(planner: Planner, store: Store) -> Verification:
    """Compares every finished step of the study, its analysis included, and the proposals that its searches were planned
    from, with their records."""
    ids = _ids_of(planner, store)
    there = store.present(ids)
    kept = [step_id for step_id in ids if step_id in there]
    problems, num_unsealed, num_packed = [], 0, 0
    for step_id in kept:
        if found := store.verify(step_id):
            problems += found
            continue
        artifact = store.artifact(step_id)
        num_unsealed += SEAL not in artifact.record
        num_packed += bool(artifact.left_out)
    return Verification(tuple(problems), len(kept), len(ids), num_unsealed, num_packed)


def repaired(make: Callable[[], Planner], store: Store, tell: Callable[[str], None]) -> Planner:
    """The plan, once every finished step of it that is damaged was set aside, so that it counts as missing. make: plans anew,
    since what is finished decides what a search asks for. tell: hears of each step that was set aside."""
    while True:
        try:
            planner = make()
            damaged = {
                step_id: problems[0]
                for step_id in store.present(_ids_of(planner, store))
                if (problems := store.verify(step_id))
            }
        except CorruptArtifact as error:
            if error.step_id is None:
                raise
            damaged, planner = {error.step_id: error.message}, None
        for step_id, problem in sorted(damaged.items()):
            place = store.set_aside(step_id)
            if place is not None:
                tell(f"{problem}; it was set aside in {place} and is computed again")
        if planner is not None and not damaged:
            return planner


def _ids_of(planner: Planner, store: Store) -> list[str]:
    """Of the steps of the study, its analysis, and the proposals."""
    graph = planner.graph
    ids = [step.id for step in graph.steps]
    there = store.present(ids)
    failures = store.failures(ids)
    last = analysis_step(graph, finished=[i for i in ids if i in there], failures=failures)
    return [*ids, *([last.id] if last else []), *planner.proposals]
