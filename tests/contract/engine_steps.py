"""Small steps for the engine's tests, each a step kind `engine_...` that the dist-info beside this file brings. Each leaves
traces to count."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from lorascope.engine.context import HandedBack, StepContext
from lorascope.engine.events import CurvePoint, Notice
from lorascope.engine.step import Resources, Step
from lorascope.engine.warm import Kept
from lorascope.errors import DataError

_COUNTS = Kept[list[Any]]("what was run")


def make(function: str, *, deps: dict[str, str] | None = None, slug: str = "", **params: Any) -> Step:
    return Step(kind=f"engine_{function}", version=1, params=params, deps=deps or {}, slug=slug)


def make_member(
    *, deps: dict[str, str] | None = None, key: str = "same", limit: int | None = None, **params: Any
) -> Step:
    """A step that can be computed together with others of the same key."""
    resources = Resources(gang_key=key, gang_limit=limit)
    return Step(kind="engine_member", version=1, params=params, deps=deps or {}, resources=resources)


def make_alone(function: str, *, deps: dict[str, str] | None = None, **params: Any) -> Step:
    """A step beside which nothing else may run."""
    resources = Resources(alone=True)
    return Step(kind=f"engine_{function}", version=1, params=params, deps=deps or {}, resources=resources)


def wait_until(condition: Callable[[], object], *, timeout_s: float = 300.0) -> None:
    """Far longer than a busy machine takes, so that only what never happens fails."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def note(path: str, text: str) -> None:
    with Path(path).open("a") as tally:
        tally.write(f"{text}\n")


def span(context: StepContext) -> dict[str, Any]:
    """When it ran, on a clock that all processes of the machine share, and where: process, node of Ray, device."""
    started = time.monotonic()
    time.sleep(context.step.params["sleep_s"])
    return _where(context, started)


def meet(context: StepContext) -> dict[str, Any]:
    """Waits until params["num"] processes have come to the directory params["place"], so that each gets one such step."""
    params, started = context.step.params, time.monotonic()
    if "tally" in params:
        note(params["tally"], context.step.id)
    place = Path(params["place"])
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    wait_until(lambda: len(list(place.iterdir())) >= params["num"])
    return _where(context, started)


def _where(context: StepContext, started: float) -> dict[str, Any]:
    facts = {"pid": os.getpid(), "raylet": os.environ.get("RAY_RAYLET_PID"), "device": context.device}
    return {**facts, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "started": started, "ended": time.monotonic()}


def count(context: StepContext) -> dict[str, Any]:
    """Appends a line to params["tally"], sleeps, and returns the sum of its dependencies' values plus its own.

    until: a file that it waits for. tells: a file that it leaves. lingers: its first try never ends by itself.
    """
    params = context.step.params
    if "tally" in params:
        note(params["tally"], context.step.id)
    time.sleep(params.get("sleep_s", 0.0))
    if "lingers" in params and len(Path(params["tally"]).read_text().split()) == 1:
        time.sleep(3600)
    if "tells" in params:
        Path(params["tells"]).touch()
    if "until" in params:
        wait_until(Path(params["until"]).exists)
    (context.out / "value.txt").write_text(str(params["value"]))
    context.emit(CurvePoint(step=context.step.id, name="value", value=params["value"], at=1))
    return {"value": params["value"] + sum(dep.result["value"] for dep in context.deps.values())}


def checkpointed(context: StepContext) -> dict[str, Any]:
    """Sums params["num_parts"] parts with a checkpoint after each, so that a kill loses one part at most."""
    while _sums_a_part(context):
        pass
    return _summed(context)


def checkpointed_gang(contexts: Sequence[StepContext]) -> Generator[tuple[int, dict[str, Any] | Exception]]:
    """The same for several, which take turns."""
    under_way = list(range(len(contexts)))
    while under_way:
        for index in list(under_way):
            if not _sums_a_part(contexts[index]):
                under_way.remove(index)
                yield index, _summed(contexts[index])


def _sums_a_part(context: StepContext) -> bool:
    """One part, and its checkpoint; False if there is none left."""
    part, total = _summed_so_far(context)
    if part == context.step.params["num_parts"]:
        return False
    time.sleep(context.step.params["part_s"])
    total += (part + 1) * context.step.params["value"]
    with Path(os.environ["ENGINE_TALLY"]).open("a") as tally:
        tally.write(f"{context.step.id}:{part}\n")
    draft = context.work / "draft"
    draft.write_text(f"{part + 1} {total}")
    os.replace(draft, context.work / "checkpoint")
    return True


def _summed_so_far(context: StepContext) -> tuple[int, int]:
    checkpoint = context.work / "checkpoint"
    done, total = (int(part) for part in checkpoint.read_text().split()) if checkpoint.exists() else (0, 0)
    return done, total


def _summed(context: StepContext) -> dict[str, Any]:
    total = _summed_so_far(context)[1] + sum(dep.result["total"] for dep in context.deps.values())
    (context.out / "total.bin").write_bytes(total.to_bytes(8, "little") * 2000)
    return {"total": total}


def wrong(context: StepContext) -> dict[str, Any]:
    raise ValueError("the step is wrong")


def mistaken(context: StepContext) -> dict[str, Any]:
    raise DataError("column 'labl' is missing", hint="did you mean 'label'?", where="study.yaml:7")


def die(context: StepContext) -> dict[str, Any]:
    """Kills its own process, the first params["times"] times."""
    return {"deaths": _die(context)}


def chatty(context: StepContext) -> dict[str, Any]:
    """Prints on stdout by every road, which must not disturb the protocol."""
    print('{"completion": "nonsense"}', flush=True)
    os.write(1, b"raw bytes\n")
    context.emit(Notice(step=context.step.id, level="info", text="heard"))
    return {}


def warm(context: StepContext) -> dict[str, Any]:
    """Returns the process id and how many steps with the same model this worker ran before."""
    counts = context.warm.keep(_COUNTS, context.step.params["model"], list)
    counts.append(context.step.id)
    time.sleep(context.step.params.get("sleep_s", 0.0))
    return {"pid": os.getpid(), "seen": len(counts) - 1}


def fill(context: StepContext) -> dict[str, Any]:
    """Writes params["megabytes"] of output."""
    (context.out / "large.bin").write_bytes(bytes(context.step.params["megabytes"] << 20))
    return {}


def read_input(context: StepContext) -> dict[str, Any]:
    """The text of a file of the dependency that plays `left`."""
    return {"text": context.deps["left"].file("nested/file.txt").read_text()}


def exhaust(context: StepContext) -> dict[str, Any]:
    if "tally" in context.step.params:
        note(context.step.params["tally"], context.step.id)
    raise MemoryError


def fail_late(context: StepContext) -> dict[str, Any]:
    """Each try adds a line to the tally and waits for the file params["until"]; only the first fails, unless it is wrong."""
    note(context.step.params["tally"], context.step.id)
    wait_until(Path(context.step.params["until"]).exists)
    if context.step.params["is_wrong"]:
        raise ValueError("the step is wrong")
    if len(Path(context.step.params["tally"]).read_text().split()) == 1:
        raise MemoryError
    return {}


def hold(context: StepContext) -> dict[str, Any]:
    """Holds the memory, which the file params["held"] stands for, until another step has missed it."""
    held, missed = Path(context.step.params["held"]), Path(context.step.params["missed"])
    held.touch()
    wait_until(missed.exists)
    time.sleep(0.3)
    held.unlink()
    return {}


def need(context: StepContext) -> dict[str, Any]:
    """Runs out of memory while another step holds it; else says when it ran, as `span`."""
    held, missed = Path(context.step.params["held"]), Path(context.step.params["missed"])
    wait_until(lambda: held.exists() or missed.exists())
    if held.exists():
        missed.touch()
        raise MemoryError
    return span(context)


def disk_full(context: StepContext) -> dict[str, Any]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def spoil(context: StepContext) -> dict[str, Any]:
    """Changes what is warm, then fails."""
    context.warm.keep(_COUNTS, context.step.params["model"], list).extend(["spoilt"] * 1000)
    raise ValueError("halfway")


def member(context: StepContext) -> dict[str, Any]:
    ((_, result),) = member_gang([context])
    if isinstance(result, Exception):
        raise result
    return result


def member_gang(contexts: Sequence[StepContext]) -> Generator[tuple[int, dict[str, Any] | Exception]]:
    """All members advance by a part at a time, with a checkpoint after each, and the last is yielded first.

    params: num_parts, part_s; until, tells: files that it waits for, and leaves, in each part; ends: how one ends if not
    well: "fails" (alone), "raises" or "exhausts" (the memory; with those not yielded yet), "forgotten", "kills" (its
    process, after the first part, at most params["times"] times). keeps: how many it takes, if not all; the others are
    handed back first.
    """
    given, keeps = len(contexts), contexts[0].step.params.get("keeps", len(contexts))
    yield from ((index, HandedBack()) for index in range(keeps, given))
    contexts = contexts[:keeps]
    params = [context.step.params for context in contexts]
    done = [_checkpoint(context) for context in contexts]
    facts = {"together": [context.step.id for context in contexts], "pid": os.getpid()}
    facts["given"] = given
    gangs = contexts[0].warm.keep(_COUNTS, "gangs", list)
    facts["gangs_before"] = len(gangs)
    gangs.append(facts["together"])
    results = [{**facts, "resumed_at": part} for part in done]
    for part in range(max(each.get("num_parts", 1) for each in params)):
        for index, context in enumerate(contexts):
            if done[index] <= part < params[index].get("num_parts", 1):
                time.sleep(params[index].get("part_s", 0.0))
                if "tells" in params[index]:
                    Path(params[index]["tells"]).touch()
                if "until" in params[index]:
                    wait_until(Path(params[index]["until"]).exists)
                done[index] = part + 1
                (context.work / "parts").write_text(str(done[index]))
                context.emit(CurvePoint(step=context.step.id, name="part", value=part, at=part))
            if part == 0 and params[index].get("ends") == "kills":
                _die(context)
    for index in reversed(range(len(contexts))):
        ends = params[index].get("ends")
        if ends == "raises":
            raise ValueError("the gang is wrong")
        if ends == "exhausts":
            raise MemoryError
        if ends == "fails":
            yield index, ValueError("this member is wrong")
        elif ends != "forgotten":
            (contexts[index].out / "value.txt").write_text(contexts[index].step.id)
            yield index, results[index]


def _checkpoint(context: StepContext) -> int:
    parts = context.work / "parts"
    return int(parts.read_text()) if parts.exists() else 0


def _die(context: StepContext) -> int:
    """Kills this process, the first params["times"] times; then how often that was."""
    deaths = context.work / "deaths"
    so_far = len(deaths.read_text()) if deaths.exists() else 0
    if so_far < context.step.params["times"]:
        deaths.write_text("x" * (so_far + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return so_far
