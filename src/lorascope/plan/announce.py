"""Says what a step is in its study before it says that the step has started, so that the stream of events explains itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from lorascope.engine.events import Emit, Event, StepPlanned, StepStarted
from lorascope.engine.step import Step
from lorascope.plan.graph import Graph
from lorascope.plan.phases import PHASES

_PREPARATION = ("data", "tokens")  # of which there is nothing to show


def announcing(emit: Emit, graph: Callable[[], Graph]) -> Emit:
    """An Emit that sends a `StepPlanned` ahead of each step's first `StepStarted`, and of those that belong with it: a run
    and its score are announced together. graph: the plan as it is by now. Steps that it does not know pass as they are.
    """
    announced: set[str] = set()
    families: dict[str, list[Step]] = {}

    def emit_announced(event: Event) -> None:
        if isinstance(event, StepStarted) and event.step is not None and event.step not in announced:
            planned = graph()
            if event.step not in families:
                families.update(_families(planned.steps))
            for step in families.get(event.step, ()):
                announced.add(step.id)
                emit(_announcement(step, planned))
        emit(event)

    return emit_announced


def _families(steps: Sequence[Step]) -> dict[str, list[Step]]:
    """Step -> the steps that are shown as one run with it, itself among them."""
    members: dict[str, list[Step]] = {}
    for step in steps:
        members.setdefault(_completed_by(step) or step.id, []).append(step)
    return {step.id: family for family in members.values() for step in family}


def _announcement(step: Step, graph: Graph) -> StepPlanned:
    label = graph.labels[step.id]
    return StepPlanned(
        step=step.id,
        name=str(label),
        phase=_phase_of(step.kind),
        part_of=_completed_by(step),
        labels={key: name for key, name in asdict(label).items() if name is not None},
        settings=step.params,
    )


def _phase_of(kind: str) -> str | None:
    if kind in _PREPARATION:
        return None
    return next((phase.name for phase in PHASES if kind in phase.kinds), None)


def _completed_by(step: Step) -> str | None:
    """The step whose run this one completes: the score belongs to the run that was trained."""
    return step.deps["train"] if step.kind == "evaluate" else None
