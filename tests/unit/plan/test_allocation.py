"""Schedules: nothing twice, nothing before what it needs, never below the bound; below twice of it where none is alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.plan.allocation import Job, Schedule, allocate, lower_bound


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    """Jobs that wait for earlier ones, some alone."""
    jobs: list[Job] = []
    for place in range(draw(st.integers(1, 14))):
        earlier = [job.name for job in jobs]
        after = draw(st.frozensets(st.sampled_from(earlier), max_size=3)) if earlier else frozenset()
        seconds = draw(st.one_of(st.just(0.0), st.floats(0.1, 100)))
        alone = draw(st.integers(0, 6)) == 0
        jobs.append(Job(f"job-{place}", (f"step-{place}", f"twin-{place}"), seconds, after, alone))
    return jobs


@settings(deadline=None, max_examples=300)
@given(graphs(), st.integers(1, 5))
def test_a_schedule_keeps_every_promise(jobs: list[Job], workers: int) -> None:
    schedule = allocate(jobs, workers=workers)
    assert sorted(placed.job.name for placed in schedule.placed) == sorted(job.name for job in jobs)
    check_order(schedule)
    check_workers(schedule)
    assert schedule.makespan >= schedule.bound * (1 - 1e-9)
    if not any(job.alone for job in jobs):
        assert schedule.makespan <= 2 * schedule.bound * (1 + 1e-9)


def check_order(schedule: Schedule) -> None:
    ends = {placed.job.name: placed.end for placed in schedule.placed}
    for placed in schedule.placed:
        for name in placed.job.after:
            assert ends[name] <= placed.start + 1e-9, f"{placed.job.name} starts before {name} ends"


def check_workers(schedule: Schedule) -> None:
    """No worker does two jobs at once, and nothing runs beside a job that must be alone."""
    placed = [p for p in schedule.placed if p.job.seconds > 0]
    for p in placed:
        assert 0 <= p.worker < schedule.workers
        for other in placed:
            overlap = min(p.end, other.end) - max(p.start, other.start) > 1e-9
            if other is not p and overlap:
                assert p.worker != other.worker
                assert not p.job.alone


def test_two_workers_share_what_does_not_wait() -> None:
    jobs = [Job("a", ("a",), 4), Job("b", ("b",), 3), Job("c", ("c",), 3), Job("d", ("d",), 2)]
    schedule = allocate(jobs, workers=2)
    assert (schedule.makespan, schedule.bound, schedule.limit) == (6, 6, "work")
    assert schedule.busy_fraction == 1


def test_the_longest_chain_goes_first_and_limits_what_machines_can_do() -> None:
    """A worker that took the short jobs first would end at 13."""
    short = [Job(f"short-{n}", (f"short-{n}",), 1) for n in range(3)]
    chain = [Job("first", ("first",), 5), Job("second", ("second",), 5, frozenset({"first"}))]
    schedule = allocate([*short, *chain], workers=2)
    assert (schedule.makespan, schedule.bound, schedule.limit, schedule.gap) == (10, 10, "chain", 0)


def test_what_must_be_alone_holds_every_worker() -> None:
    jobs = [Job("a", ("a",), 2), Job("b", ("b",), 2), Job("timed", ("timed",), 3, alone=True)]
    assert lower_bound(jobs, workers=2) == (5, "work")
    schedule = allocate(jobs, workers=2)
    assert schedule.makespan == 5
    assert [p.start for p in schedule.placed if p.job.name == "timed"] == [2]


def test_what_must_be_alone_can_cost_more_than_twice_the_bound() -> None:
    """So no such promise is made: an empty job that must be alone waits for a long one, and two more wait for it."""
    jobs = [
        Job("barrier", ("barrier",), 0, alone=True),
        Job("timed", ("timed",), 1, alone=True),
        Job("long", ("long",), 1),
        Job("behind", ("behind",), 1.5, frozenset({"barrier"})),
    ]
    schedule = allocate(jobs, workers=4)
    assert (schedule.makespan, schedule.bound) == (3.5, 1.625)


def test_a_circle_and_an_absent_job_are_refused() -> None:
    with pytest.raises(AssertionError, match="circle"):
        allocate([Job("a", (), 1, frozenset({"b"})), Job("b", (), 1, frozenset({"a"}))], workers=1)
    with pytest.raises(AssertionError, match="waits for b, which is not there"):
        allocate([Job("a", (), 1, frozenset({"b"}))], workers=1)
