"""Plans ask each question of the records once, however many steps ask it, and schedules stay what they were."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from plan_fixture import finish, finish_preparation, small_graph, trained

from lorascope.engine.store.directory import Store
from lorascope.plan import estimate
from lorascope.plan.allocation import Job, allocate
from lorascope.plan.estimate import estimate_step
from lorascope.plan.history import read_history
from lorascope.plan.status import StudyStatus


def test_records_are_looked_through_once_for_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph(tmp_path, "seeds=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")
    store = Store(tmp_path / "store")
    finish_preparation(store, graph)
    for step in small_graph(tmp_path, "seeds=[11, 12, 13, 14, 15]").of_kind("train"):
        finish(store, step, seconds=20, result=trained(training=9, evaluation=1))
    history = read_history(store, device="cpu")
    asked: list[str] = []
    pace_of = estimate.pace_of
    monkeypatch.setattr(estimate, "pace_of", lambda o: asked.append(o.step.id) or pace_of(o))
    runs = graph.of_kind("train")
    found = [estimate_step(step, history) for step in runs]
    assert len(runs) == 20 and all(e.seconds is not None for e in found)
    assert len(asked) == len(set(asked)) == 10, "each record once, not once a planned step"


def test_a_schedule_takes_the_ready_jobs_in_the_order_of_their_rank() -> None:
    """Against the definition: of the ready jobs always the first by rank, those that run alone last."""
    random.seed(0)
    for _ in range(30):
        names = [f"j{n}" for n in range(25)]
        jobs = [
            Job(
                name, (), float(random.randint(0, 4)),
                frozenset(random.sample(names[:n], min(n, random.randint(0, 2)))), random.random() < 0.2,
            )
            for n, name in enumerate(names)
        ]  # fmt: skip
        found = allocate(jobs, workers=random.randint(1, 4))
        assert sorted(p.job.name for p in found.placed) == sorted(names)
        ends = {p.job.name: p.end for p in found.placed}
        for placed in found.placed:
            assert all(ends[name] <= placed.start for name in placed.job.after)
            if placed.job.alone:
                beside = [p for p in found.placed if p is not placed and p.start < placed.end and p.end > placed.start]
                assert beside == []
        assert found.makespan >= found.bound - 1e-9


def test_watching_ends_where_a_search_found_no_optimum(tmp_path: Path) -> None:
    class Over:
        is_over = True

    class Growing:
        is_over = False

    class Planned:
        def __init__(self, *searches: object) -> None:
            self.searches, self.waiting = searches, [("train", None)]

    def status(*searches: object) -> StudyStatus:
        step = small_graph(tmp_path).steps[0]
        return StudyStatus(Planned(*searches), "s", 0.0, ((step, None, "done"),), (), None)  # type: ignore[arg-type]

    assert status(Over(), Over()).is_over
    assert not status(Over(), Growing()).is_over
