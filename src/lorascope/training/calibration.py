"""The `calibration` step: a few real updates of runs that are to be trained, for what they take. A plan reads it; no
result of a study depends on one.

The runs are set up, sized and captured as training would, and meet the longest batch of their first epoch, whose memory
is the most they will need, then batches spread evenly over its lengths; the mean time of its updates follows by
regression on their lengths (Cochran 1977, Sampling Techniques, ch. 7). They are committed as a run is, so that what
measures trained runs can be timed on them too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lorascope.engine.context import StepContext
from lorascope.engine.warm import Kept
from lorascope.tasks.description import task_from_result
from lorascope.training.gang import Gang
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise
from lorascope.training.member import Member
from lorascope.training.preparation import base_for, make_deterministic
from lorascope.training.result import commit_result
from lorascope.training.run import Run, gang_of, out_of_memory, set_up, size_together
from lorascope.training.sizing import partition, pays_to_compile, split

WARM_UP_UPDATES = 2
LEAST_UPDATES = 9
LARGEST_SECONDS = 10.0
MOST_UPDATES = {"cuda": 129, "cpu": 33, "mps": 33}
VALIDATION_EXAMPLES = 256
_START = "import sys, torch, lorascope.training.run; torch.zeros(1, device=sys.argv[1])"

_START_SECONDS = Kept[float]("what starting a worker takes")


def calibrate_run(context: StepContext) -> dict[str, Any]:
    """A calibration of one run alone. params, deps: those of its `train` step."""
    ((_, outcome),) = calibrate_gang([context])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def calibrate_gang(contexts: Sequence[StepContext]) -> Generator[tuple[int, dict[str, Any] | Exception]]:
    """What the runs take when they are trained together: result["calibration"] of each, its share of the gang's time."""
    first = contexts[0]
    make_deterministic(first.device)
    first.warm.make_room()
    _kept_start_seconds(first)  # before the base is loaded
    base_for(first, task_from_result(first.deps["data"].result))  # a worker under way has it loaded
    started = time.perf_counter()
    runs = [set_up(index, context) for index, context in enumerate(contexts)]
    groups = [group for alike in partition(runs, member=lambda run: run.member) for group in _groups(alike)]
    sizing_seconds = (time.perf_counter() - started) / len(runs)
    for group in groups:
        try:
            yield from _calibrate(group, sizing_seconds=sizing_seconds)
        except torch.OutOfMemoryError as error:
            text = str(error)
            yield from ((run.index, out_of_memory(run.context, text)) for run in group)


def _groups(alike: list[Run]) -> list[list[Run]]:
    return split(alike, size_together(alike))


def _calibrate(runs: list[Run], *, sizing_seconds: float) -> Iterator[tuple[int, dict[str, Any]]]:
    device, start_seconds = runs[0].context.device, _kept_start_seconds(runs[0].context)
    for run in runs:
        run.started = time.perf_counter()
    samples = [sample_first_epoch(run.member) for run in runs]
    shortest = min(map(len, samples))  # runs of several tasks may train together
    lengths = np.mean([sample[:shortest] for sample in samples], axis=0)
    started = time.perf_counter()
    gang = gang_of(runs, [run.member for run in runs], compiles=pays_to_compile)
    building_seconds = (time.perf_counter() - started) / len(runs)
    reset_peak_memory(device)
    try:
        seconds = _timed_updates(gang, device, most=len(lengths))
    finally:
        gang.close()
    update_seconds = mean_of_epoch(seconds, lengths) / len(runs)
    preparation_seconds = gang.stepper.preparation_seconds / len(runs)
    sample, evaluation_seconds, sample_seconds = _time_validation(runs[0], gang, device)
    peak = peak_memory_bytes(device)
    for index, run in enumerate(runs):
        run.member.meters.peak_memory_bytes = peak
        run.member.meters.training_seconds = update_seconds * run.member.meters.updates
        run.member.meters.largest_gang = len(runs)
        start = time.perf_counter()
        result = commit_result(run, gang.views[index], gang, validation=run.validation.subset(sample))
        commit_seconds = time.perf_counter() - start
        yield (
            run.index,
            {
                **result,
                "calibration": {
                    "timed_updates": len(seconds),
                    "update_seconds": update_seconds,
                    "preparation_seconds": preparation_seconds,
                    "evaluation_seconds": evaluation_seconds,
                    # The last predictions are of the whole validation set, here they were of the sample.
                    "overhead_seconds": sizing_seconds
                    + building_seconds
                    + commit_seconds
                    + (evaluation_seconds - sample_seconds),
                    "worker_start_seconds": start_seconds,
                    "gang": len(runs),
                },
            },
        )


def _kept_start_seconds(context: StepContext) -> float:
    """What starting this worker took, measured once."""
    return context.warm.keep(_START_SECONDS, context.device, lambda: _worker_start_seconds(context.device))


def sample_first_epoch(member: Member) -> np.ndarray:
    """Reorders the member's first epoch: the longest batch first, a usual one, then all of its batches, spread over their
    lengths. The longest example of each, in that order: tokens [updates of an epoch + 2].
    """
    count = min(member.updates_per_epoch, member.total_updates)
    batches = [member.rows(update) for update in range(count)]
    longest = np.array([int(np.asarray(member.columns.lengths)[rows].max()) for rows in batches])
    by_length = np.argsort(longest, kind="stable")
    spread = [int(by_length[place]) for place in _spread_places(count)]
    order = [int(by_length[-1]), int(by_length[count // 2]), *spread]
    in_epoch = member.rows

    def rows(update: int) -> np.ndarray:
        return in_epoch(order[update]) if update < len(order) else in_epoch(update)

    member.rows = rows  # type: ignore[method-assign] - this member is thrown away
    return longest[order]


def mean_of_epoch(seconds: Sequence[float], lengths: np.ndarray) -> float:
    """The mean time of an epoch's updates from those of some: their mean, and what the others are longer or shorter.

    lengths: of the batches that were timed after the warm-up, then of the rest of the epoch.
    """
    epoch = lengths[WARM_UP_UPDATES:]
    timed = epoch[: len(seconds)]
    if len(seconds) < len(timed) or np.ptp(timed) == 0:
        return float(np.mean(seconds))
    slope = max(0.0, float(np.polyfit(timed, seconds, 1)[0]))
    return float(np.mean(seconds)) + slope * float(epoch.mean() - timed.mean())


def _spread_places(count: int) -> list[int]:
    """0 .. count - 1 in the order of van der Corput (1935), from the middle: a half, quarters, eighths, ..., the ends."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{place:0{bits}b}"[::-1], 2) for place in range(1, 2**bits))
    return [*(place for place in reversed_bits if place < count), 0]


def _timed_updates(gang: Gang, device: str, *, most: int) -> list[float]:
    """Seconds of each update after the warm-up, without what compiling and capturing took."""
    most = min(most, MOST_UPDATES[torch.device(device).type], min(member.total_updates for member in gang.members))
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < LEAST_UPDATES or sum(seconds) < LARGEST_SECONDS):
        prepared = gang.stepper.preparation_seconds
        synchronise(device)
        start = time.perf_counter()
        gang.advance()
        synchronise(device)
        seconds.append(time.perf_counter() - start - (gang.stepper.preparation_seconds - prepared))
    return seconds[WARM_UP_UPDATES:] or seconds


def _time_validation(first: Run, gang: Gang, device: str) -> tuple[np.ndarray, float, float]:
    """The rows of a sample of the validation set; the seconds that scoring a run on all of the set takes, and on those."""
    lengths = np.asarray(first.validation.lengths)
    by_length = np.argsort(lengths, kind="stable")
    chosen = by_length[np.linspace(0, len(lengths) - 1, min(VALIDATION_EXAMPLES, len(lengths))).round().astype(int)]
    reading, model = first.reading, gang.views[0]
    reading.predict(model, first.validation.subset(chosen[:8]))
    sample = np.sort(chosen)
    synchronise(device)
    start = time.perf_counter()
    reading.scores(reading.predict(model, first.validation.subset(sample)))
    synchronise(device)
    seconds = time.perf_counter() - start
    return sample, seconds * float(lengths.sum() / lengths[chosen].sum()), seconds


def _worker_start_seconds(device: str) -> float:
    """What a new process takes until it can train."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", _START, device], check=True, capture_output=True)
    return time.perf_counter() - start
