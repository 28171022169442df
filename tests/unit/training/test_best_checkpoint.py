"""Which evaluation of a run is its best one, in the direction of the task's primary metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lorascope.errors import StudyError
from lorascope.study.spec import Seeds, TrainSpec
from lorascope.training.member import Callbacks, Member, Recipe


def member(metric: str, **train: Any) -> Member:
    """A run of four evaluations that nothing trains."""
    task = SimpleNamespace(primary_metric=metric)
    unused: Any = None
    columns: Any = [0] * 16
    return Member(
        method=unused, reading=SimpleNamespace(task=task), columns=columns,  # type: ignore[arg-type]
        recipe=Recipe(TrainSpec(epochs=4, batch_size=16, **train), 1e-3, Seeds.model_validate(1)),
        callbacks=Callbacks(unused),
    )  # fmt: skip


def best_updates(run: Member, scores: list[float], losses: list[float]) -> list[bool]:
    found = []
    for score, loss in zip(scores, losses, strict=True):
        run.progress.update += 1
        found.append(run.note_scores({run.metric.name: score, "loss": loss}))
    return found


def test_the_lowest_perplexity_is_kept_and_ties_go_to_the_lower_loss():
    run = member("perplexity")
    assert best_updates(run, [9.0, 7.0, 8.0, 7.0], [1.0, 1.0, 0.1, 0.9]) == [True, True, False, True]
    assert (run.progress.best_score, run.progress.best_loss, run.progress.best_update) == (7.0, 0.9, 4)


def test_the_highest_accuracy_is_kept_and_ties_go_to_the_lower_loss():
    run = member("accuracy")
    assert best_updates(run, [0.5, 0.7, 0.6, 0.7], [1.0, 1.0, 0.1, 0.9]) == [True, True, False, True]


def test_a_rising_perplexity_stops_a_run_early():
    run = member("perplexity", early_stopping={"patience": 2})
    best_updates(run, [7.0, 8.0, 9.0], [1.0, 1.0, 1.0])
    assert run.progress.stopped_early and run.progress.best_update == 1


def test_a_metric_without_a_row_is_refused_before_training():
    with pytest.raises(StudyError, match="there is no metric `made_up`"):
        member("made_up")
