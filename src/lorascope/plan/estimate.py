"""What a step will take: time, memory, disk, and what that rests on.

An estimate stands on records alone: finished steps like this one, else a calibration of it, else finished steps that are
like it but for their size, those nearest in size, scaled by updates and tokens. Where the store holds none of these it is
unknown, and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean as mean
from statistics import median
from typing import Any, Literal, TypeVar

from lorascope.engine.step import Step
from lorascope.plan.history import History, Observation
from lorascope.plan.workload import Training, amount_of, training_of
from lorascope.study.methods import shared_settings

Source = Literal["finished", "calibration", "scaled", "guess", "unknown"]
_PER_SEED = ("seeds", "machine")
_ABOUT_AS_NEAR = math.log(1.1)
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """seconds: of a worker's time, this step's share where several are computed together. memory_bytes: of the worker at its
    peak, the whole gang's. None: unknown. gang: how many were computed together where it was observed, and
    workers_on_device: how many workers shared the device there."""

    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    source: Source
    basis: str
    gang: int = 1
    workers_on_device: int = 1


@dataclass(frozen=True)
class Pace:
    """What training a run was booked: seconds an update, an evaluation, and for the rest (setting up, committing)."""

    update_seconds: float
    evaluation_seconds: float
    overhead_seconds: float
    gang: int


UNKNOWN_DATA = "its data are not prepared yet"


def estimate_step(step: Step, history: History) -> Estimate:
    """The estimate of a step that is not finished."""
    if step.kind in ("train", "trial"):
        return _estimate_training(step, history)
    shape = _shape(step)
    alike = history.grouped(step.kind, _shape).get(shape, [])
    if alike:
        return history.remembered(("alike", step.kind, shape), partial(_from_alike, alike))
    return _scaled(step, history)


def _from_alike(alike: Sequence[Observation]) -> Estimate:
    runs = [o for o in alike if not o.is_calibration] or alike
    source = "calibration" if runs[0].is_calibration else "finished"
    return _measured(runs, mean(o.seconds for o in runs), source, f"{_finished(runs)} like it")


def worker_start_seconds(history: History) -> float | None:
    """What a new worker takes until it can train, None if it was never measured."""
    found = [o.result["calibration"]["worker_start_seconds"] for o in history.of("calibration")]
    return median(found) if found else None


# ----------------------------------------------------------------------------------------------------------- training


def _estimate_training(step: Step, history: History) -> Estimate:
    work = training_of(step, history.results)
    if work is None:
        return Estimate(None, None, None, "unknown", UNKNOWN_DATA)
    runs = ("trial", "train") if step.kind == "trial" else ("train",)
    arm, relatives = _arm(step), _relatives(step)
    sources: tuple[tuple[Sequence[str], Callable[[Step], str], str, Source, str], ...] = (
        (runs, _arm, arm, "finished", "of the same arm"),
        (("calibration",), _arm, arm, "calibration", "of the same arm"),
        (runs, _relatives, relatives, "scaled", "of its model and method"),
        (("calibration",), _relatives, relatives, "scaled", "of its model and method"),
        (("trial",), _relatives, relatives, "scaled", "of its model and method"),
    )
    for kinds, alike, key, source, what in sources:
        paces = history.remembered((kinds, alike, key), partial(_paces, history, kinds, alike, key))
        if paces:
            question = (kinds, alike, key, source, work, step.kind, _is_stage(step))
            return history.remembered(question, partial(_from_paces, step, work, paces, source=source, what=what))
    return Estimate(None, None, None, "unknown", "no run of its model and method is finished, and none was calibrated")


_Paced = tuple[Observation, Pace, Training]


def _paces(history: History, kinds: Sequence[str], alike: Callable[[Step], str], key: str) -> list[_Paced]:
    """The runs of these kinds that have that key, with their pace and their work, as far as these are known."""
    observed = [o for kind in kinds for o in history.grouped(kind, alike).get(key, ())]
    return [(o, pace, theirs) for o in observed if (pace := pace_of(o)) and (theirs := _work_of(o, history))]


def _from_paces(step: Step, work: Training, paces: Sequence[_Paced], *, source: Source, what: str) -> Estimate:
    paces = _nearest(paces, [theirs.update_tokens for _, _, theirs in paces], work.update_tokens)
    seconds = mean(_training_seconds(pace, theirs, work) for _, pace, theirs in paces)
    chosen = [o for o, _, _ in paces]
    scale = ", scaled by updates and tokens" if source == "scaled" else ""
    if not _is_stage(step) and any(_is_stage(o.step) for o in chosen):
        scale += "; rather too long, as stages of a pruned search are short"
    found = _measured(chosen, seconds, source, f"{_finished(chosen)} {what}{scale}")
    if step.kind == "train" and chosen[0].kind == "trial":  # which keeps no weights: of disk it tells nothing
        return replace(found, disk_bytes=None)
    return found


def pace_of(observation: Observation) -> Pace | None:
    """The pace of a finished run or of a calibration; None of a run that was resumed, whose span is not its time."""
    result = observation.result
    if observation.kind == "calibration":
        found = result["calibration"]
        return Pace(found["update_seconds"], found["evaluation_seconds"], found["overhead_seconds"], found["gang"])
    if result["resumed"] or not result["updates"]:
        return None
    train = observation.step.params["train"]
    an_epoch = result["updates"] / result["epochs"]
    evaluations = _evaluations_done(result["updates"], an_epoch, train["evaluations_per_epoch"])
    booked = result["training_seconds"] + result["evaluation_seconds"]
    return Pace(
        update_seconds=result["training_seconds"] / result["updates"],
        evaluation_seconds=result["evaluation_seconds"] / evaluations,
        overhead_seconds=max(0.0, observation.seconds - booked),
        gang=result["gang"],
    )


def _evaluations_done(updates: int, updates_per_epoch: float, per_epoch: int) -> int:
    return max(1, round(updates * per_epoch / updates_per_epoch))


def _work_of(observation: Observation, history: History) -> Training | None:
    return training_of(observation.step, history.results)


def _training_seconds(pace: Pace, theirs: Training, work: Training) -> float:
    return (
        work.updates * pace.update_seconds * work.update_tokens / theirs.update_tokens
        + work.evaluations * pace.evaluation_seconds * work.validation_tokens / theirs.validation_tokens
        + pace.overhead_seconds
    )


def _key(value: Any) -> str:
    """To tell like from unlike within one process; the values are literals already."""
    return json.dumps(value, sort_keys=True)


def _is_stage(step: Step) -> bool:
    """Whether a trial is one that a pruned search may end early: what a stage takes to begin weighs more than in a run."""
    return step.kind == "trial" and tuple(step.params["stops"]) != (1.0,)


def _arm(step: Step) -> str:
    """What the runs of an arm share: everything but their seeds."""
    params = {key: value for key, value in step.params.items() if key not in _PER_SEED}
    return _key({"params": params, "data": step.deps["data"], "tokens": step.deps["tokens"]})


def _relatives(step: Step) -> str:
    """What decides the pace of an update but for its tokens: the model, what of it is trained, the precision."""
    method = shared_settings(step.params["method"])
    precision = step.params["train"]["precision"]
    return _key({"model": step.params["model"], "method": method, "precision": precision})


# --------------------------------------------------------------------------------------------------------- other kinds


def _scaled(step: Step, history: History) -> Estimate:
    """From steps of its kind, model and method, by how much more or less there is to do."""
    kin = _kin(step)
    relatives = history.grouped(step.kind, _kin).get(kin, [])
    if step.kind in ("data", "analysis") or not relatives:
        calibrated = step.kind in ("evaluate", "drift", "baseline", "sanity", "tokens", "data")
        why = "none like it is finished" + ("" if calibrated else ", and a calibration does not measure it")
        return Estimate(None, None, None, "unknown", why)
    own = amount_of(step, history.results)
    known = history.remembered(("amounts", step.kind, kin), partial(_amounts, relatives, history))
    if own is None or not known:
        return Estimate(None, None, None, "unknown", UNKNOWN_DATA)
    return history.remembered(("scaled", step.kind, kin, own), partial(_from_amounts, own, known))


def _amounts(observed: Sequence[Observation], history: History) -> list[tuple[Observation, float]]:
    """How much there was to do in each, as far as that is known."""
    return [(o, amount) for o in observed if (amount := amount_of(o.step, history.results))]


def _from_amounts(own: float, known: Sequence[tuple[Observation, float]]) -> Estimate:
    known = _nearest(known, [amount for _, amount in known], own)
    seconds = mean(o.seconds * own / amount for o, amount in known)
    chosen = [o for o, _ in known]
    found = _measured(chosen, seconds, "scaled", f"{_finished(chosen)} of its model and method, scaled by tokens")
    disk = mean(o.disk_bytes * own / amount for o, amount in known)
    return replace(found, disk_bytes=round(disk))


def _shape(step: Step) -> str:
    """What decides the time of a step of any kind but `train`: its parameters and its data, not which runs it is of."""
    runs = sum(role.startswith("train") for role in step.deps)
    deps = {role: dep for role, dep in step.deps.items() if not role.startswith(("train", "adapter", "full", "sanity"))}
    return _key({"version": step.version, "params": dict(step.params), "deps": deps, "runs": runs})


def _kin(step: Step) -> str:
    method = step.params.get("method")
    method = shared_settings(method) if method else None
    shared = {"model": step.params.get("model"), "method": method, "version": step.version}
    if step.kind == "serving":
        settings = {key: value for key, value in step.params["serving"].items() if key != "repeats"}
        shared |= {"engine": step.params["engine"], "serving": settings}
    if step.kind == "drift":
        shared |= {key: step.params["drift"][key] for key in ("sites", "pooling", "draws", "attention_examples")}
    return _key(shared)


def _nearest(found: Sequence[T], sizes: Sequence[float], size: float) -> list[T]:
    """Those whose size lies nearest, as a ratio, and whatever lies about as near: what takes time besides tokens weighs the
    less, the less there is to scale."""
    apart = [abs(math.log(max(theirs, 1.0) / max(size, 1.0))) for theirs in sizes]
    most = min(apart) + _ABOUT_AS_NEAR
    return [one for one, ratio in zip(found, apart, strict=True) if ratio <= most]


def _measured(observed: Sequence[Observation], seconds: float, source: Any, basis: str) -> Estimate:
    memory = [o.memory_bytes for o in observed if o.memory_bytes is not None]
    gangs = [o.result["gang"] for o in observed if "gang" in o.result]
    return Estimate(
        seconds=seconds,
        memory_bytes=max(memory) if memory else None,
        disk_bytes=round(mean(o.disk_bytes for o in observed)),
        source=source,
        basis=basis,
        gang=round(median(gangs)) if gangs else 1,
        workers_on_device=round(median(o.workers_on_device for o in observed)),
    )


def _finished(observed: Sequence[Observation]) -> str:
    """ "3 finished runs", "a calibration"."""
    kind = observed[0].kind
    if kind == "calibration" or observed[0].is_calibration:
        return "a calibration" if len(observed) == 1 else f"{len(observed)} calibrations"
    noun = "run" if kind == "train" else f"{kind} step"
    return f"{len(observed)} finished {noun}{'' if len(observed) == 1 else 's'}"
