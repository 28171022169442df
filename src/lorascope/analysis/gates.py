"""What has to hold before arms are compared: the same examples, and that every arm learnt something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lorascope.analysis.finished import Finished
from lorascope.engine.step import JSON
from lorascope.errors import GateFailure
from lorascope.measures.measure import known_measures
from lorascope.metrics.quality import quality


def check_same_examples(finished: Finished) -> None:
    """Every arm and baseline of a task was scored, and every arm probed by a measure, on the identical examples, or nothing
    is compared."""
    hashes: dict[tuple[str, str | None], dict[str, str]] = {}
    for kind in ("evaluate", "baseline"):
        for label, artifact in finished.of(kind):
            found = hashes.setdefault(("scored on different test", label["task"]), {})
            found[artifact.id] = artifact.result["example_ids_sha256"]
    for measure in known_measures():
        for probed in measure.examples(finished.of(measure.kind)):
            found = hashes.setdefault(("probed on different", probed.task), {})
            found[probed.step] = probed.ids_sha256
    for (how, task), found in hashes.items():
        if len(set(found.values())) > 1:
            raise GateFailure(
                f"the arms of {task} were {how} examples: {', '.join(sorted(found))}",
                hint="run `lorascope verify STUDY`; a store must not mix data of different origin",
            )


def step_gates(finished: Finished) -> list[JSON]:
    """The gates that steps themselves have passed or not."""
    return [
        {**gate, **label}
        for kind in ("sanity", "evaluate")
        for label, artifact in finished.of(kind)
        for gate in artifact.result["gates"]
    ]


def arm_gates(finished: Finished, primary: Mapping[str, str]) -> list[JSON]:
    """Every arm beats the baselines of its task that draw nothing (the majority class, the linear probe, never an answer) on
    the test set, in the mean over its seeds and in the direction of the metric.

    An arm that does not is broken (Kornblith et al. 2019 call frozen features the least one may expect): its other
    numbers are shown, but no hypothesis rests on them.
    """
    gates = []
    arms = dict.fromkeys((found["model"], found["task"], found["method"]) for found, _ in finished.of("evaluate"))
    for model, task, method in arms:
        metric = quality(primary[str(task)])
        runs = finished.of("evaluate", model=model, task=task, method=method)
        mean = float(np.mean([artifact.result["test"][metric.name] for _, artifact in runs]))
        arm = {"model": model, "task": task, "method": method, "seed": None}
        baselines = finished.of("baseline", model=model, task=task)
        if not baselines:
            missing = "the baselines were not measured, so nothing shows that the arm learnt anything"
            gates.append(
                {"gate": "beats baselines", **arm, "passed": False, "value": mean, "threshold": None, "detail": missing}
            )
        for _, artifact in baselines:
            floors = {s["name"]: s["metrics"][metric.name] for s in artifact.result["scores"] if not s["seed"]}
            gates += gates_against(floors, arm, metric=metric.name, mean=mean)
    return gates


def gates_against(floors: Mapping[str, float], arm: JSON, *, metric: str, mean: float) -> list[JSON]:
    """Whether an arm beats each baseline. floors: baseline -> its score. mean: the arm's, over its seeds."""
    is_better = quality(metric).is_better
    return [
        {
            **arm,
            "gate": f"beats {name}",
            "passed": is_better(mean, floor),
            "value": mean,
            "threshold": floor,
            "detail": f"mean test {metric} {mean:.3f}, {name} {floor:.3f}",
        }
        for name, floor in floors.items()
    ]


def broken_arms(gates: list[JSON]) -> dict[tuple[str, str, str], str]:
    """(model, task, method) -> why no hypothesis may rest on it."""
    return {
        (gate["model"], gate["task"], gate["method"]): f"fails the gate `{gate['gate']}` ({gate['detail']})"
        for gate in gates
        if not gate["passed"]
    }
