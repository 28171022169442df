"""The phases of a study, from what must hold first to what is concluded last: which steps belong to each, what they wait
for, and by which gates a step counts as done.

The gates are those that the steps themselves enforce; a test compares their names with the code that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorascope.plan.graph import Graph
from lorascope.registry import MEASURES


@dataclass(frozen=True)
class Phase:
    """kinds: of its steps. purpose: why it stands where it does."""

    name: str
    kinds: tuple[str, ...]
    purpose: str


_LOOKS = tuple(kind for kind in MEASURES if kind != "serving")
"""Drift, and every further measure of runs."""

PHASES: tuple[Phase, ...] = (
    Phase(
        "sanity and baselines",
        ("data", "tokens", "baseline", "sanity"),
        "What every number stands on: disjoint splits, what a trivial answer scores, and whether each method trains at all.",
    ),
    Phase(
        "search",
        ("trial", "search"),
        "Each method gets its own hyper-parameters under an equal budget, on the validation set alone.",
    ),
    Phase(
        "training",
        ("train", "evaluate"),
        "Every run of the study, its checkpoint chosen on validation; the test set is opened once for each.",
    ),
    Phase("representations", _LOOKS, "How far each run's features, weights and predictions are from its base's."),
    Phase(
        "serving", ("serving",), "What the runs cost in use, each arm timed only after it is seen to compute its run."
    ),
    Phase("analysis", ("analysis",), "Intervals, tests and verdicts over all runs, by the plan declared here."),
    Phase("synthesis", (), "The verdicts combined into the study's conclusion, with its limitations, in the report."),
)

GATES: Mapping[str, tuple[str, ...]] = {
    "data": (
        "train, validation and test share no example, or the report counts those that they do",
        "every split has every class, and no example id stands for two examples",
    ),
    "tokens": ("no example ends in the padding token", "the truncated fraction is recorded"),
    "baseline": ("every baseline is scored on the same test examples",),
    "sanity": (
        "equals base at initialisation: the untrained method computes what the base computes",
        "gradient census: exactly the declared parameters get gradients, as many as the formula says; nothing else moves",
        "same seed, same losses: two runs from one seed have identical losses",
        "gradient accumulation: one batch and its pieces give the same gradient",
        "overfit-10: ten examples are learnt by heart within 50 epochs",
    ),
    "trial": ("a trial whose loss is not finite counts as diverged, and ends there", "no test example is opened"),
    "search": ("every method of a task was given as many trials as the others",),
    "train": (
        "every loss and validation score is finite",
        "the weights of the frozen base are bit-identical afterwards",
    ),
    "evaluate": (
        "save, reload, score: the exported checkpoint computes what the model in memory computed",
        "merged equals adapter: the adapter folded into the base computes what the adapter does, where there is one",
    ),
    "drift": ("all runs of an arm and the base are read on the same probe examples", "every feature is finite"),
    "serving": ("each arm answers what its run answers offline before it is timed",),
    "analysis": (
        "evaluation sets identical: all arms are scored on the same test examples",
        "every arm beats the baselines of its task, such as the majority and the linear probe; one that does not is "
        "marked broken",
    ),
}


def phase_of(kind: str) -> Phase:
    """The phase whose steps are of this kind."""
    return next(phase for phase in PHASES if kind in phase.kinds)


def waits_for(graph: Graph) -> Mapping[str, Sequence[str]]:
    """Kind -> the kinds of the steps that its own steps wait for, as the graph has it."""
    kinds = {step.id: step.kind for step in graph.steps}
    found: dict[str, dict[str, None]] = {}
    for step in graph.steps:
        found.setdefault(step.kind, {}).update(dict.fromkeys(kinds[dep] for dep in step.deps.values()))
    order = list(found)
    return {kind: sorted(needed, key=order.index) for kind, needed in found.items()}
