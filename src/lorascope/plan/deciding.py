"""How likely the study is to decide its claims as they are declared, and what raises that, before anything runs.

The studies are drawn and judged by `stats.simulate.deciding`; here it meets the test sets that the study has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorascope.plan.power import Detectable
from lorascope.stats.simulate.deciding import STUDIES, Assumptions, Chance, chances
from lorascope.study.hypothesis import Overhead
from lorascope.study.seeds import PRINTED
from lorascope.study.spec import Study

ASSUMED = Assumptions()
BASIS = (
    f"{STUDIES} simulated studies in each of two worlds, judged by the rules of the report, with its corrections. In one every "
    "claim holds by half of its margin (a claim of less drift or cost by twice as much, on a log scale); in the other each "
    "fails by half of it (or the arms are equal). Assumed: standard deviations of "
    f"{100 * ASSUMED.seed_sd:g} point between seeds, {ASSUMED.drift_sd:g} of the log of a ratio of drifts, {ASSUMED.cost_sd:g} "
    f"of costs and {ASSUMED.repeat_sd:g} of serving between repeats; one example in {1 / ASSUMED.discordant:g} on which the "
    "arms disagree; no run collapses"
)


@dataclass(frozen=True)
class Variant:
    """The chances of the study with one thing changed. change: what, in words ("10 seeds")."""

    change: str
    chances: tuple[Chance, ...]


@dataclass(frozen=True)
class Deciding:
    """The chances of the study as it is declared, and of its variants."""

    declared: tuple[Chance, ...]
    variants: tuple[Variant, ...]


def deciding(study: Study, power: Sequence[Detectable]) -> Deciding | None:
    """None where a test set is not known yet, or nothing declared can be simulated."""
    if not study.hypotheses or any(task.num_examples is None or task.metric is None for task in power):
        return None
    metrics = {task.task: task.metric for task in power if task.metric}
    examples = {task.task: task.num_examples for task in power if task.num_examples}
    if len(examples) < len(study.tasks):
        return None
    declared = chances(study, metrics, examples, ASSUMED)
    if not declared:
        return None
    variants = [
        Variant(change, tuple(chances(other, metrics, examples, ASSUMED))) for change, other in _variants(study)
    ]
    return Deciding(tuple(declared), tuple(variants))


def _variants(study: Study) -> Iterator[tuple[str, Study]]:
    count = 2 * len(study.seeds)
    if count <= len(PRINTED):
        yield f"{count} seeds", study.model_copy(update={"seeds": study.seeds * 2})  # only their number counts here
    every = {
        name: claim.model_copy(update={"at" if isinstance(claim, Overhead) else "over": "average"})
        for name, claim in study.hypotheses.items()
        if "every" in (getattr(claim, "at", None), getattr(claim, "over", None))
    }
    if every:
        yield "claims over the average", study.model_copy(update={"hypotheses": {**study.hypotheses, **every}})


def sentences(found: Deciding) -> list[str]:
    """One a hypothesis, and one of the conclusion."""
    texts = []
    for name in dict.fromkeys(chance.name for chance in found.declared):
        holds, fails = (next(c for c in found.declared if (c.name, c.world) == (name, w)) for w in ("holds", "fails"))
        more = [
            f"{variant.change} {_percent(one.supported)} and {_percent(two.refuted)}"
            for variant in found.variants
            for one, two in [[c for c in variant.chances if c.name == name]]
        ]
        raised = f" (with {'; '.join(more)})" if more else ""
        label = "The conclusion" if name == "conclusion" else name
        texts.append(
            f"{label}: {_percent(holds.supported)} to be supported if true ({holds.truth}), {_percent(fails.refuted)} to be "
            f"refuted if not ({fails.truth}){raised}."
        )
    return texts


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
