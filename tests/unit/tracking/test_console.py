"""What a person sees while a study runs, and on what the time left is based."""

from __future__ import annotations

import io

from rich.console import Console

from lorascope.engine.events import (
    Notice,
    StepBlocked,
    StepFailed,
    StepFinished,
    StepHandedBack,
    StepProgress,
    StepStarted,
    StudyStarted,
)
from lorascope.tracking.console import LiveView, PlainLines, rendering
from lorascope.tracking.progress import StudyProgress, in_words


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainLines, Clock, io.StringIO]:
    text, clock = io.StringIO(), Clock()
    return PlainLines(Console(file=text, width=200), progress=StudyProgress(clock=clock)), clock, text


def test_plain_lines_of_a_run_that_fails_halfway() -> None:
    emit, clock, text = plain()
    emit(StudyStarted(study="small", num_steps=5, num_cached=1))
    emit(StepStarted(step="data-mrpc-1", worker="cpu"))
    emit(StepFinished(step="data-mrpc-1", worker="cpu", seconds=0.42))
    emit(StepStarted(step="train-a-1", worker="cpu"))
    clock.now += 60
    emit(StepFailed(step="train-a-1", error="StepFailure", text="loss is NaN\n  hint: lower the learning rate"))
    emit(StepBlocked(step="evaluate-a-1", by="train-a-1"))
    emit(Notice(level="warning", text="little memory [left]"))
    assert text.getvalue().splitlines() == [
        "small: 5 steps, 1 in the store, 4 to compute",
        "[1/5] data-mrpc-1 started",
        "[2/5] data-mrpc-1 done in 0.4 s",
        "[2/5] train-a-1 started",
        "failed: train-a-1: loss is NaN",
        "warning: little memory [left]",
    ]


def test_plain_progress_comes_at_most_every_fifteen_seconds() -> None:
    emit, clock, text = plain()
    emit(StudyStarted(study="small", num_steps=2, num_cached=0, kinds={"train": 2}))
    emit(StepStarted(step="train-a-1", worker="cpu"))
    for done in range(1, 61):
        clock.now += 1
        emit(StepProgress(step="train-a-1", done=done, total=100, unit="update", rates={"tokens/s": 1234.5}))
    lines = text.getvalue().splitlines()[2:]
    assert len(lines) == 4
    assert lines[0] == (
        "[0/2] train-a-1: 15/100 updates, 1,234 tokens/s; about 3 min 05 s left "
        "(from the pace of the running train step)"
    )


def test_a_step_that_has_done_nothing_yet_shows_no_rate() -> None:
    emit, clock, text = plain()
    emit(StudyStarted(study="small", num_steps=2, num_cached=0, kinds={"train": 2}))
    emit(StepStarted(step="train-a-1", worker="cpu"))
    clock.now += 20
    emit(StepProgress(step="train-a-1", done=0, total=100, unit="update", rates={"tokens/s": 0.0}))
    assert text.getvalue().splitlines()[-1] == "[0/2] train-a-1: 0/100 updates"


def test_nothing_to_compute_is_said() -> None:
    emit, _, text = plain()
    emit(StudyStarted(study="small", num_steps=5, num_cached=5))
    assert text.getvalue() == "small: 5 steps, 5 in the store, nothing to compute\n"


def test_time_left_rests_on_finished_steps_of_the_running_kind() -> None:
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=5, num_cached=0, kinds={"data": 1, "train": 4}))
    assert progress.remaining() is None
    progress.apply(StepStarted(step="data-1", worker="w"))
    progress.apply(StepFinished(step="data-1", worker="w", seconds=0.1))
    for number, seconds in enumerate((10.0, 20.0)):
        progress.apply(StepStarted(step=f"train-{number}", worker="w"))
        progress.apply(StepFinished(step=f"train-{number}", worker="w", seconds=seconds))
    progress.apply(StepStarted(step="train-9", worker="w"))
    clock.now += 5
    estimate = progress.remaining()
    assert estimate is not None
    assert estimate.seconds == 2 * 15 - 5
    assert str(estimate) == "about 25 s left (from 2 finished train steps)"


def test_two_workers_halve_the_time_left() -> None:
    progress = StudyProgress(clock=Clock())
    progress.apply(StudyStarted(study="small", num_steps=5, num_cached=0, kinds={"train": 5}))
    for worker in ("gpu-0", "gpu-1"):
        progress.apply(StepStarted(step=f"train-{worker}", worker=worker))
    progress.apply(StepFinished(step="train-gpu-0", worker="gpu-0", seconds=10))
    estimate = progress.remaining()
    assert estimate is not None
    assert estimate.seconds == 4 * 10 / 2


def test_a_step_that_will_be_tried_again_is_not_counted_as_failed() -> None:
    progress = StudyProgress()
    progress.apply(StudyStarted(study="small", num_steps=1, num_cached=0))
    progress.apply(StepStarted(step="train-1", worker="w"))
    progress.apply(StepFailed(step="train-1", error="WorkerDied", text="killed", retry=True))
    assert (progress.failed, progress.settled) == ({}, 0)
    progress.apply(StepStarted(step="train-1", worker="w", attempt=2))
    progress.apply(StepFinished(step="train-1", worker="w", seconds=1))
    assert progress.settled == 1


def test_live_view_shows_running_steps_and_keeps_failures_on_the_screen() -> None:
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, width=120, force_terminal=True, color_system=None)
    view = LiveView(console, progress=StudyProgress(clock=clock))
    view(StudyStarted(study="small", num_steps=3, num_cached=0, kinds={"train": 3}))
    view(StepStarted(step="train-a-1", worker="cpu"))
    view(StepProgress(step="train-a-1", done=0, total=100, unit="update", rates={}))
    clock.now += 30
    view(StepProgress(step="train-a-1", done=50, total=100, unit="update", rates={}))
    console.print(view.render())
    view(StepFailed(step="train-a-1", error="GateFailure", text="loss [NaN]"))
    shown = text.getvalue()
    assert "0/3 steps" in shown
    assert "50/100 updates" in shown
    assert "about 2 min 30 s left (from the pace of the running train step)" in shown
    assert "failed: train-a-1: loss [NaN]" in shown


def sixteen_together(emit: PlainLines | LiveView, clock: Clock) -> None:
    emit(StudyStarted(study="small", num_steps=33, num_cached=0))
    emit(StepStarted(step="train-bert-rte-full-7-f", worker="gpu-1"))
    for seed in range(16):
        emit(StepStarted(step=f"train-bert-mrpc-lora-{seed}-{seed:x}", worker="gpu-0"))
    clock.now += 30
    for seed in range(16):
        step = f"train-bert-mrpc-lora-{seed}-{seed:x}"
        emit(StepProgress(step=step, done=120 + seed, total=600, unit="update", rates={"tokens/s": 200.0}))


def test_live_view_shows_what_one_worker_computes_together_in_one_line() -> None:
    text, clock = io.StringIO(), Clock()
    view = LiveView(
        Console(file=text, width=120, force_terminal=True, color_system=None), progress=StudyProgress(clock=clock)
    )
    sixteen_together(view, clock)
    view.console.print(view.render())
    lines = [line.split() for line in text.getvalue().splitlines() if "train-" in line]
    assert len(lines) == 2
    assert " ".join(lines[0]).startswith("train-bert-rte-full-7-f")
    assert " ".join(lines[1]).startswith("train-bert-mrpc-lora · 16 together")
    assert " ".join(lines[1]).endswith("120/600 updates, 3,200 tokens/s 30 s")


def test_plain_progress_of_a_gang_is_one_line() -> None:
    emit, clock, text = plain()
    sixteen_together(emit, clock)
    progress = [line for line in text.getvalue().splitlines() if "updates" in line]
    assert len(progress) == 1
    assert progress == ["[0/33] train-bert-mrpc-lora · 16 together: 120/600 updates, 200 tokens/s"]


def test_what_is_computed_together_is_not_counted_one_after_another() -> None:
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=8, num_cached=0, kinds={"train": 8}))
    for number in range(4):
        progress.apply(StepStarted(step=f"train-{number}", worker="w"))
    for done in (1, 2):
        clock.now += 10
        for number in range(4):
            progress.apply(StepProgress(step=f"train-{number}", done=done, total=4, unit="update", rates={}))
    estimate = progress.remaining()
    assert estimate is not None
    assert estimate.seconds == 20 + 40


def test_what_a_worker_hands_back_is_not_under_way() -> None:
    """Four runs of 40 s given to one worker, which trains one and leaves three for later."""
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=4, num_cached=0, kinds={"train": 4}))
    names = [f"train-mrpc-{number}" for number in range(4)]
    for name in names:
        progress.apply(StepStarted(step=name, worker="w"))
    for name in names[1:]:
        progress.apply(StepHandedBack(step=name))
    for done in (1, 2):
        clock.now += 10
        progress.apply(StepProgress(step=names[0], done=done, total=4, unit="update", rates={}))
    assert [line.name for line in progress.running_by_worker] == [names[0]]
    assert (estimate := progress.remaining()) is not None
    assert estimate.seconds == 20 + 3 * 40


def test_what_compiling_and_capturing_took_is_no_part_of_a_pace() -> None:
    """Two minutes for the first update of 400, then 0.1 s each: no hours are claimed, and no number before there is one."""
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=8, num_cached=0, kinds={"train": 8}))
    for number in range(8):
        progress.apply(StepStarted(step=f"train-{number}", worker="w"))

    def tell(done: int, *, is_even: bool) -> None:
        for number in range(8):
            step = f"train-{number}"
            progress.apply(StepProgress(step=step, done=done, total=401, unit="update", is_even=is_even))

    tell(0, is_even=False)
    assert progress.remaining() is None
    clock.now += 120
    tell(1, is_even=True)
    assert progress.remaining() is None
    clock.now += 1
    tell(11, is_even=True)
    assert progress.remaining() is None  # a fortieth of it
    clock.now += 2
    tell(31, is_even=True)
    assert str(progress.remaining()) == "about 37 s left (from the pace of the running train steps)"


def test_a_step_does_not_stand_in_for_those_of_other_kinds() -> None:
    clock = Clock()
    progress = StudyProgress(clock=clock)
    kinds = {"tokens": 1, "train": 40, "evaluate": 32}
    progress.apply(StudyStarted(study="small", num_steps=73, num_cached=0, kinds=kinds))
    progress.apply(StepStarted(step="tokens-1", worker="w"))
    for done in (1000, 2000):
        clock.now += 10
        progress.apply(StepProgress(step="tokens-1", done=done, total=4000, unit="example"))
    assert progress.remaining() is None, "what takes long has not begun: any figure would grow"


def test_steps_that_wait_count_by_finished_ones_of_their_kind() -> None:
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=5, num_cached=1, kinds={"train": 3, "evaluate": 1}))
    progress.apply(StepStarted(step="train-1", worker="w"))
    progress.apply(StepFinished(step="train-1", worker="w", seconds=30))
    progress.apply(StepStarted(step="evaluate-1", worker="w"))
    assert str(progress.remaining()) == (
        "at least 1 min 00 s left (from 1 finished train step; nothing known of 1 other step)"
    )
    progress.apply(StepFinished(step="evaluate-1", worker="w", seconds=3))
    assert str(progress.remaining()) == "about 1 min 00 s left (from 1 finished train step)"


def test_engines_started_together_have_no_pace_before_two_groups() -> None:
    """Groups of three: a minute to start, then 10 s each."""
    clock = Clock()
    progress = StudyProgress(clock=clock)
    progress.apply(StudyStarted(study="small", num_steps=1, num_cached=0, kinds={"serving": 1}))
    progress.apply(StepStarted(step="serving-1", worker="w"))
    found = []
    for engine in range(1, 7):
        clock.now += 70 if engine in (1, 4) else 10
        progress.apply(StepProgress(step="serving-1", done=engine, total=12, unit="engine", is_even=engine % 3 == 0))
        found.append(progress.remaining())
    assert found[:5] == [None] * 5
    assert found[5] is not None and found[5].seconds == 2 * 90


def test_what_is_announced_anew_is_counted_anew() -> None:
    """As a calibration does, which runs the gates and then what waits for them."""
    progress = StudyProgress()
    progress.apply(StudyStarted(study="small", num_steps=2, num_cached=0, kinds={"sanity": 2}))
    for number in range(2):
        progress.apply(StepStarted(step=f"sanity-{number}", worker="w"))
        progress.apply(StepFinished(step=f"sanity-{number}", worker="w", seconds=5))
    progress.apply(StudyStarted(study="small", num_steps=4, num_cached=1, kinds={"calibration": 2, "sanity": 1}))
    assert (progress.settled, progress.total) == (1, 4)
    assert progress.remaining() is None
    progress.apply(StepStarted(step="calibration-1", worker="w"))
    progress.apply(StepFinished(step="calibration-1", worker="w", seconds=20))
    assert str(progress.remaining()) == "about 25 s left (from 1 finished calibration step and 2 finished sanity steps)"


def test_view_is_live_only_on_a_terminal() -> None:
    with rendering(Console(file=io.StringIO())) as emit:
        assert isinstance(emit, PlainLines)
    with rendering(Console(file=io.StringIO(), force_terminal=True)) as emit:
        assert isinstance(emit, LiveView)


def test_a_step_that_comes_to_light_late_raises_the_total() -> None:
    progress = StudyProgress()
    progress.apply(StudyStarted(study="small", num_steps=1, num_cached=1))
    progress.apply(StepStarted(step="analysis-1", worker="w"))
    assert (progress.settled, progress.total) == (1, 2)


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 05 min"]
