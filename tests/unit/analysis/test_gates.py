"""Gates of arms in the direction of the metric."""

from __future__ import annotations

from typing import Any

import pytest

from lorascope.analysis.gates import arm_gates, broken_arms


class Recorded:
    """Stands for an artifact."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result


class FinishedSteps:
    """Stands for the finished steps: two runs of one arm, and the baselines of its task."""

    def __init__(self, runs: list[dict[str, float]], baselines: dict[str, dict[str, float]]) -> None:
        label = {"model": "m", "task": "t", "method": "lora", "seed": "1"}
        scores = [{"name": name, "seed": "", "metrics": metrics} for name, metrics in baselines.items()]
        self.steps = {
            "evaluate": [(label, Recorded({"test": metrics})) for metrics in runs],
            "baseline": [(label, Recorded({"scores": scores}))],
        }

    def of(self, kind: str, **label: str) -> list[tuple[dict[str, str], Recorded]]:
        return self.steps[kind]


@pytest.mark.parametrize(
    ("metric", "runs", "passed"),
    [
        ("perplexity", (6.0, 8.0), {"untrained base": True, "oracle": False}),
        ("perplexity", (30.0, 26.0), {"untrained base": False, "oracle": False}),
        ("accuracy", (6.0, 8.0), {"untrained base": False, "oracle": True}),
    ],
)
def test_an_arm_beats_a_baseline_in_the_direction_of_its_metric(metric, runs, passed):
    finished = FinishedSteps(
        [{metric: run} for run in runs], {"untrained base": {metric: 20.0}, "oracle": {metric: 5.0}}
    )
    gates = arm_gates(finished, {"t": metric})  # type: ignore[arg-type]
    assert {gate["gate"].removeprefix("beats "): gate["passed"] for gate in gates} == passed
    assert bool(broken_arms(gates)) == (not all(passed.values()))
