"""How much work a step is, from what is known before it runs: updates, evaluations, tokens.

Counts alone, no seconds: an estimate multiplies them by what the same work took elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.engine.step import Step

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Training:
    """What a run is planned to do. update_tokens: real tokens of a mean update; validation_tokens: of one evaluation."""

    updates: int
    evaluations: int
    update_tokens: float
    validation_tokens: int


def training_of(step: Step, results: Results) -> Training | None:
    """The work of a `train`, `trial` or `calibration` step; None while its data are not prepared. Early stopping is not
    foreseen. A trial's stage goes on from the one before."""
    data, tokens = results.get(step.deps["data"]), results.get(step.deps["tokens"])
    if data is None or tokens is None:
        return None
    train = step.params["train"]
    rows = tokens.get("num_rows", data["num_examples"])["train"]  # older records: one row an example
    an_epoch = math.ceil(rows / train["batch_size"])
    updates = max(1, math.ceil(train["epochs"] * an_epoch))
    stops = [max(1, math.ceil(stop * updates)) for stop in step.params.get("stops", (1.0,))]
    before, last = (stops[-2] if len(stops) > 1 else 0), stops[-1]
    earlier = num_evaluations(before, an_epoch, train["evaluations_per_epoch"]) if before else 0
    return Training(
        updates=last - before,
        evaluations=max(1, num_evaluations(last, an_epoch, train["evaluations_per_epoch"]) - earlier),
        update_tokens=tokens["num_tokens"]["train"] / an_epoch,
        validation_tokens=tokens["num_tokens"]["validation"],
    )


def num_evaluations(updates: int, updates_per_epoch: int, per_epoch: int) -> int:
    """How often validation is scored: `per_epoch` times an epoch, and after the last update."""
    interval = updates_per_epoch / per_epoch
    count = math.floor(updates / interval)
    return len({max(1, round(interval * k)) for k in range(1, count + 1)} | {updates})


def amount_of(step: Step, results: Results) -> float | None:
    """What the time of a step of any other kind grows with, None if that is not known yet.

    baseline: tokens of all splits. evaluate: test tokens. sanity: tokens of its batches. drift: tokens of the probe times
    the models read (the runs, the base, a random one). serving: fresh processes started. data, tokens: examples.
    """
    tokens = results.get(step.deps.get("tokens", ""))
    if step.kind == "data":
        found = results.get(step.id)
        return float(sum(found["num_examples"].values())) if found else None
    if step.kind == "tokens":
        data = results.get(step.deps["data"])
        return float(sum(data["num_examples"].values())) if data else None
    if step.kind == "serving":
        serving = step.params["serving"]
        return float(serving["repeats"] * len(serving["arms"]))
    if tokens is None:
        return None
    if step.kind == "baseline":
        return float(sum(tokens["num_tokens"].values()))
    if step.kind == "evaluate":
        return float(tokens["num_tokens"]["test"])
    if step.kind == "sanity":
        return tokens["mean_length"]["train"] * step.params["train"]["batch_size"]
    if step.kind == "drift":
        runs = sum(role.startswith("train:") for role in step.deps)
        return step.params["drift"]["examples"] * tokens["mean_length"]["test"] * (runs + 2)
    return None
