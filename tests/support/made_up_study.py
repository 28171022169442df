"""A study and a table of measurements made up with known differences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lorascope.study.spec import Study

SEEDS = (1, 2, 3, 4, 5)


def make_study(**changes) -> Study:
    fields = {
        "name": "s",
        "question": "?",
        "models": [{"name": "m"}],
        "tasks": [{"name": "mrpc"}, {"name": "rte"}],
        "methods": ["full", "lora"],
        "seeds": SEEDS,
        "hypotheses": {
            "H1": {"non_inferior": "lora", "to": "full", "margin": "5%", "over": "every"},
            "H2": {"lower": "lora", "than": "full", "on": "training_seconds", "by": "20%", "over": "every"},
        },
        "conclusion": "H1 and H2",
    }
    return Study.model_validate({**fields, **changes})


def run_rows(
    task: str, method: str, seed: int, correct: np.ndarray, labels: np.ndarray, *, seconds: float
) -> list[dict]:
    base = {"run": f"{task}-{method}-{seed}", "model": "m", "task": task, "method": method, "seed": str(seed)}
    rows = []
    for index, (right, label) in enumerate(zip(correct, labels, strict=True)):
        prediction = label if right else 1 - label
        for metric, value in (("correct", right), ("label", label), ("prediction", prediction)):
            rows.append(
                {
                    **base,
                    "split": "test",
                    "example_id": f"e{index}",
                    "metric": metric,
                    "value": float(value),
                    "unit": "",
                }
            )
    rows.append({**base, "split": "test", "metric": "accuracy", "value": float(correct.mean()), "unit": "fraction"})
    rows.append({**base, "metric": "training_seconds", "value": seconds, "unit": "s"})
    rows.append({**base, "metric": "trainable_parameters", "value": 10.0 if method == "lora" else 100.0, "unit": ""})
    return rows


def make_measurements(
    *,
    lora: float = 0.85,
    full: float = 0.85,
    seeds=SEEDS,
    tasks=("mrpc", "rte"),
    examples: int = 400,
    noise: float = 0.3,
) -> pd.DataFrame:
    generator = np.random.default_rng(7)
    rows: list[dict] = []
    for task in tasks:
        labels = generator.integers(0, 2, examples)
        difficulty = generator.random(examples)
        for method, accuracy, seconds in (("full", full, 100.0), ("lora", lora, 50.0)):
            for seed in seeds:
                jitter = generator.normal(0, noise * 0.05, examples)
                correct = (difficulty + jitter < accuracy).astype(int)
                rows += run_rows(task, method, seed, correct, labels, seconds=seconds * generator.uniform(0.95, 1.05))
    return pd.DataFrame(rows)
