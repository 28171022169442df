"""Claims about F1, with the class that it looks for: a claim of "F1" says nothing without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lorascope.stats.analysis import Analysis, HypothesisResult
from lorascope.stats.facts.found import DataFacts
from lorascope.study.spec import Study
from lorascope.study.tasks.labels import f1_title


def name_classes(
    analysis: Analysis, classes: Mapping[str, Sequence[str]], study: Study, *, primary: Mapping[str, str]
) -> Analysis:
    """The analysis whose claims about F1 say which. classes: task -> the names of its classes. primary: task -> its primary
    metric."""
    titles = {task: f1_title(names) for task, names in classes.items()}
    hypotheses = [_named(result, titles, study, primary=primary) for result in analysis.hypotheses]
    return replace(analysis, hypotheses=hypotheses)


def classes_of(data: Mapping[str, DataFacts]) -> dict[str, Sequence[str]]:
    """Task -> the names of its classes, of the tasks that have any."""
    known = {task: facts.balance for task, facts in data.items()}
    return {task: balance.names for task, balance in known.items() if balance is not None and balance.of == "label"}


def _named(
    result: HypothesisResult, titles: Mapping[str, str], study: Study, *, primary: Mapping[str, str]
) -> HypothesisResult:
    declared = getattr(study.hypotheses[result.name], "on", None) if result.name in study.hypotheses else None
    found: dict[str, list[str]] = {}
    for task in study.tasks:
        if task.name in titles and (declared == "f1" or (declared == "primary" and primary[task.name] == "f1")):
            found.setdefault(titles[task.name], []).append(task.name)
    if not found:
        return result
    texts = [f"{title} on {', '.join(tasks)}" for title, tasks in found.items()]
    return replace(result, claim=f"{result.claim} ({'; '.join(texts)})")
