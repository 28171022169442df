"""A study and its steps in words: what `validate`, `plan` and `status` share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, TypeVar

from lorascope.errors import StudyError

if TYPE_CHECKING:
    from lorascope.plan.data_checks import DataFindings
    from lorascope.study.spec import Study

T = TypeVar("T")


def num_runs(study: Study) -> int:
    """models x tasks x methods x seeds."""
    return len(study.models) * len(study.tasks) * len(study.methods) * len(study.seeds)


def study_in_words(study: Study) -> str:
    """ "1 model x 1 task x 2 methods x 3 seeds = 6 runs, 1 hypothesis, protocol strict"."""
    parts = (
        (study.models, "model"),
        (study.tasks, "task"),
        (study.methods, "method"),
        (study.seeds, "seed"),
    )
    product = " x ".join(counted(len(items), noun) for items, noun in parts)
    if study.search is not None:
        searched = sum(method.hyperparameters is None for method in study.methods)
        searches = counted(len(study.models) * len(study.tasks) * searched, "search", "searches")
        product = f"{searches} of {counted(study.search.trials, 'trial')}, then {product}"
    from lorascope.study.per_task import protocols_in_words

    hypotheses = "1 hypothesis" if len(study.hypotheses) == 1 else f"{len(study.hypotheses)} hypotheses"
    return f"{product} = {counted(num_runs(study), 'run')}, {hypotheses}, {protocols_in_words(study)}"


def print_data(found: DataFindings) -> None:
    """What was seen of a study's data, what it is too small for, and what was not seen."""
    for task in found.tasks:
        print(f"data of {task}")
    for warning in found.warnings:
        print(f"warning: {warning}")
    for remark in found.not_checked:
        print(remark)


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun: "1 run", "3 runs"."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"


def matching(steps: Mapping[T, tuple[Any, Any]], only: str | None) -> list[T]:
    """Those whose id, or "kind: label", matches the glob, as in `api.run`. steps: what is chosen from -> its step and its
    label. Raises StudyError if none matches.
    """
    if only is None:
        return list(steps)
    found = [
        key
        for key, (step, label) in steps.items()
        if any(fnmatch(name, only) for name in (step.id, f"{step.kind}: {label}"))
    ]
    if not found:
        kinds = ", ".join(unique(step.kind for step, _ in steps.values()))
        raise StudyError(f"--only: no step matches `{only}`", hint=f"ids begin with their kind: {kinds}")
    return found


def unique(items: Iterable[str]) -> list[str]:
    """The items in the order of their first appearance."""
    return list(dict.fromkeys(items))
