"""A plan in sentences: what the command line and the written plan both say, so that they never differ."""

from __future__ import annotations

from lorascope.plan.outlook import StudyPlan, Sum
from lorascope.plan.power import Detectable
from lorascope.report.page import wording


def time_of(part: Sum) -> str:
    """ "12.4 min", "at least 3.1 h", "unknown", "none"."""
    if not part.to_run:
        return "none"
    if part.num_unknown == part.to_run:
        return "unknown"
    guessed = "guess: " if part.num_guessed else ""
    return guessed + ("at least " if part.num_unknown else "") + wording.duration(part.seconds)


def memory_of(part: Sum) -> str:
    if not part.to_run:
        return "none"
    return "unknown" if part.memory_bytes is None else wording.bytes_text(part.memory_bytes)


def disk_of(part: Sum) -> str:
    if not part.to_run:
        return "none"
    if part.num_disk_unknown == part.to_run:
        return "unknown"
    return ("at least " if part.num_disk_unknown else "") + wording.bytes_text(part.disk_bytes)


def unknown_sentence(plan: StudyPlan) -> str | None:
    """Which steps have no estimate, and what would give one; None if all have."""
    kinds = [f"{part.num_unknown} {part.name}" for part in plan.kinds() if part.num_unknown]
    if not kinds:
        return None
    number = plan.total.num_unknown
    remedy = (
        ""
        if {p.step.kind for p in plan.to_run if p.estimate.seconds is None} <= {"analysis", "serving"}
        else ("; `--calibrate` measures what it can")
    )
    return f"Not in these figures: {wording.plural(number, 'step')} of unknown time ({wording.listing(kinds)}){remedy}."


def schedule_sentences(plan: StudyPlan) -> list[str]:
    """How long it takes on these machines, why that is close to the best, and what more machines would change."""
    schedule, machines = plan.schedule, plan.machines
    if not schedule.makespan:
        return ["Nothing is left to run." if not plan.to_run else "No time is known, so there is no schedule."]
    where = f"On {wording.plural(machines.count, 'machine')}"
    if machines.workers_each > 1:
        where += f" with {wording.plural(machines.workers_each, machines.unit)} each"
    start = plan.worker_start_seconds
    starting = f", {wording.duration(start)} of it for the workers to start" if start else ""
    limits = {
        "work": f"the work shared out evenly over {wording.plural(machines.workers, 'worker')}",
        "chain": "the longest chain of steps that wait for each other",
    }
    above = f"{wording.fraction(schedule.gap)} above" if schedule.gap > 5e-4 else "at"
    sentences = [
        f"{where}: {'a guess of ' if plan.total.num_guessed else ''}{wording.duration(plan.makespan_seconds)} from start to "
        f"end{starting}.",
        f"The schedule is {above} the bound of {wording.duration(schedule.bound)} that no schedule of these jobs can beat "
        f"({limits[schedule.limit]}); workers are busy {wording.fraction(schedule.busy_fraction, 0)} of the time.",
    ]
    if plan.in_turns_seconds is not None:
        sentences.insert(
            1,
            f"That is if the {machines.sharing} workers of a device do not slow each other down, which the times of "
            f"fewer workers cannot show; if they take turns on it, {wording.duration(plan.in_turns_seconds)}.",
        )
    sentences.append(_by_machines(plan))
    return sentences


def _by_machines(plan: StudyPlan) -> str:
    """What more machines would buy, up to where one more buys nothing."""
    tried = sorted(plan.by_machines.items())
    least = min(seconds for _, seconds in tried)
    last = next(place for place, (_, seconds) in enumerate(tried) if seconds <= least * 1.001)
    shown = [f"{wording.duration(seconds)} with {machines}" for machines, seconds in tried[: last + 1]]
    return f"Without the start of workers: {', '.join(shown)} such machine{'s' if last else ''}; more would change nothing."


def memory_sentence(plan: StudyPlan) -> str | None:
    """Whose memory a timing is still to decide; None if it is of none."""
    if not plan.undecided:
        return None
    largest = max(p.estimate.gang for p in plan.undecided)
    measured = "one by one" if largest == 1 else f"up to {largest} together"
    return (
        f"No timing on this machine says yet whether {wording.plural(len(plan.undecided), 'run')} train together "
        f"(`train.gang: auto`): their memory is that of runs {measured}, and will be different if they train otherwise."
    )


def disk_sentence(plan: StudyPlan) -> str:
    """Whether the store has room."""
    needed, free = plan.total.disk_bytes, plan.free_bytes
    room = f"{wording.bytes_text(free)} free where the store lies"
    verdict = "" if needed < free else ": TOO LITTLE"
    return f"Disk: {disk_of(plan.total)} more in the store, {room}{verdict}."


def power_sentence(found: Detectable) -> str:
    """What a task's seeds and examples could detect, and which margins they are too few for."""
    seeds = wording.plural(found.num_seeds, "seed")
    if found.difference is None and found.num_examples is not None:
        metric = wording.metric_style(found.metric or "").label
        examples = wording.plural(found.num_examples, "test example")
        return (
            f"{wording.name(found.task)}: what {seeds} and {examples} can see of {metric} is known once runs have shown how "
            "much it varies."
        )
    if found.difference is None:
        return f"{wording.name(found.task)}: unknown until its data are prepared ({seeds})."
    examples = wording.plural(found.num_examples or 0, "test example")
    accuracy = wording.metric_style("accuracy").label
    size = f"{_points(found.difference)} of {accuracy}"
    text = f"{wording.name(found.task)}: {seeds} and {examples} detect a difference of {size}"
    more = [f"{_points(size)} with {n}" for n, size in found.with_more_seeds.items() if n > found.num_seeds]
    text += f" ({', '.join(more)} seeds)." if more else "."
    for name, (margin, least) in found.margins.items():
        enough = "is large enough" if margin >= least else "is too small to be confirmed"
        text += (
            f" {name}: a margin of {_points(margin)} {enough}; the smallest is {_points(least)}, if the arms are equal."
        )
    return text


def basis_sentence(plan: StudyPlan) -> str:
    """Where the times come from."""
    if plan.measured_on:
        return f"Times were measured on {wording.listing(plan.measured_on)}, and hold for machines like it."
    if plan.total.num_guessed:
        return (
            "Times are guesses from parameters, tokens and the class of the device, as the store holds none that was measured: "
            "they may be wrong by a factor of several. `--calibrate` measures them."
        )
    return "No time was measured yet on such a device."


def _points(difference: float) -> str:
    return f"{wording.decimal(100 * difference, 1)} points"
