"""Synthetic drift for the tests of reports: rows and an analysis as a drift step and the statistics would give them.

The analysis is computed from the same drawn values as the rows, by plain means; nothing imitates the real statistics
beyond that. Run as a script to render reports for the eye: `python tests/support/drift_fixture.py DIRECTORY`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report_fixture import Shape, write_analysis

from lorascope.stats.analysis import DriftAnalysis, DriftCorrelation, DriftProfile, DriftReduction, Interval

SHARES = {"full": 1.0, "lora": 0.42, "lora-r64": 0.61, "adalora": 0.3, "dora_attention": 1.25}
LEVELS = {"mrpc": 0.11, "sst2": 0.19, "rte": 0.05, "docstrings": 0.27}
OTHER_MEASURES = {
    "drift_standardised": 1.1,
    "drift_biased": 0.62,
    "cosine_distance": 0.5,
    "raw_cosine_distance": 0.03,
    "procrustes_distance": 0.8,
    "neighbour_change": 2.1,
}


@dataclass(frozen=True)
class DriftShape:
    """floor: seed v seed as a share of the drift. text, elsewhere, snapshots: whether such rows exist."""

    layers: int = 6
    sites: tuple[str, ...] = ("residual", "attention", "mlp")
    examples: int = 750
    draws: int = 1000
    floor: float = 0.35
    text: bool = True
    elsewhere: bool = True
    snapshots: tuple[int, ...] = ()
    no_ratio: str | None = None  # a task without a ratio


def add_drift(directory: Path, shape: Shape, drift: DriftShape | None = None) -> Path:
    """Put drift into an analysis artifact of `write_analysis`."""
    drift = drift or DriftShape()
    values = _values(shape, drift)
    analysis = json.loads((directory / "analysis.json").read_text())
    analysis["drift"] = asdict(_analysis(shape, drift, values))
    (directory / "analysis.json").write_text(json.dumps(analysis, indent=1, allow_nan=False))
    path = directory / "measurements.parquet"
    rows = pd.concat([pd.read_parquet(path), pd.DataFrame(list(_rows(shape, drift, values)))], ignore_index=True)
    kinds = {name: "float64" if name == "value" else "string" for name in rows.columns}
    rows.astype(kinds).to_parquet(path, index=False)
    return directory


def write_drift_analysis(directory: Path, shape: Shape | None = None, drift: DriftShape | None = None) -> Path:
    shape = shape or Shape()
    return add_drift(write_analysis(directory, shape), shape, drift)


Values = dict[tuple[str, str, str, int, str], np.ndarray]
"""(model, task, method, seed, site) -> drift by layer."""


def layers_of(drift: DriftShape, site: str) -> list[int]:
    return list(range(0 if site == "residual" else 1, drift.layers + 1))


def _values(shape: Shape, drift: DriftShape) -> Values:
    generator = np.random.default_rng(11)
    values: Values = {}
    for model in shape.models:
        for task in shape.tasks:
            for method in shape.methods:
                for seed in shape.seeds:
                    size = float(generator.normal(1, 0.08))
                    for site in drift.sites:
                        depth = np.array(layers_of(drift, site)) / drift.layers
                        level = LEVELS.get(task, 0.1) * SHARES.get(method, 0.8) * size
                        curve = level * (0.02 + depth**2.2) * generator.normal(1, 0.05, len(depth))
                        if site == "residual":
                            curve[0] = 0.0 if method != "full" else 2e-4 * size
                        values[model, task, method, seed, site] = curve
    return values


def summary(values: Values, model: str, task: str, method: str, seed: int) -> float:
    return float(values[model, task, method, seed, "residual"][1:].mean())


def _interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    mean = float(values.mean())
    half = 2.78 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.1 * abs(mean)
    return Interval(mean, mean - half, mean + half, confidence, "seeds and draws")


def _ratio(first: np.ndarray, second: np.ndarray) -> Interval:
    logs = np.log(first) - np.log(second)
    around = _interval(logs) if len(logs) > 1 else Interval(float(logs[0]), logs[0] - 0.1, logs[0] + 0.1, 0.95, "")
    return Interval(
        math.exp(around.estimate), math.exp(around.low), math.exp(around.high), 0.95, "t on log ratios and draws"
    )


def _analysis(shape: Shape, drift: DriftShape, values: Values) -> DriftAnalysis:
    profiles = [
        DriftProfile(
            model=model,
            task=task,
            method=method,
            site=site,
            layer=layer,
            drift=_interval(np.array([values[model, task, method, seed, site][place] for seed in shape.seeds])),
            num_seeds=len(shape.seeds),
        )
        for model in shape.models
        for task in shape.tasks
        for method in shape.methods
        for site in drift.sites
        for place, layer in enumerate(layers_of(drift, site))
    ]
    return DriftAnalysis(
        num_draws=drift.draws,
        num_examples=dict.fromkeys(shape.tasks, drift.examples),
        profiles=profiles,
        reductions=list(_reductions(shape, drift, values)),
        correlations=list(_correlations(shape, drift)),
    )


def _reductions(shape: Shape, drift: DriftShape, values: Values) -> Iterator[DriftReduction]:
    reference, third = shape.methods[0], drift.layers // 3
    spans = {"overall": (1, drift.layers), "early": (1, third), "middle": (third + 1, 2 * third)}
    spans["late"] = (2 * third + 1, drift.layers)
    for model in shape.models:
        for task in [*(["*"] if len(shape.tasks) > 1 else []), *shape.tasks]:
            for method in shape.methods[1:]:
                for site in drift.sites:
                    for part, (first, last) in spans.items():
                        yield _reduction(
                            shape, drift, values, (model, task, method, reference, site), part, first, last
                        )
                    if task != "*":
                        for layer in range(1, drift.layers + 1):
                            key = (model, task, method, reference, site)
                            yield _reduction(shape, drift, values, key, "layer", layer, layer)


def _reduction(
    shape: Shape, drift: DriftShape, values: Values, key: tuple[str, ...], part: str, first: int, last: int
) -> DriftReduction:
    model, task, method, reference, site = key
    shared: dict[str, Any] = dict(zip(("model", "task", "method", "reference", "site"), key, strict=True))
    shared |= {"part": part, "layer": first if part == "layer" else None, "num_seeds": len(shape.seeds)}
    if drift.no_ratio in (task, "*"):
        none = {"ratio": None, "p_value": None, "p_holm": None}
        return DriftReduction(
            **{**shared, "num_seeds": 0}, **none, reason="the reference's drift of seed 42 is not above 0"
        )
    shift = 0 if site == "residual" else 1
    tasks = shape.tasks if task == "*" else (task,)

    def means(name: str) -> np.ndarray:
        logs = [
            [np.log(values[model, t, name, seed, site][first - shift : last + 1 - shift].mean()) for t in tasks]
            for seed in shape.seeds
        ]
        return np.exp(np.mean(logs, axis=1))

    ratio = _ratio(means(method), means(reference))
    p = None if len(shape.seeds) == 1 else 0.31 if ratio.low <= 1 <= ratio.high else 0.0002
    holm = min(1.0, p * drift.layers) if p is not None and part == "layer" else None
    return DriftReduction(**shared, ratio=ratio, p_value=p, p_holm=holm, reason="")


def _correlations(shape: Shape, drift: DriftShape) -> Iterator[DriftCorrelation]:
    rho, partial = Interval(0.83, 0.52, 0.94, 0.95, "bootstrap"), Interval(0.21, -0.33, 0.65, 0.95, "bootstrap")
    runs = len(shape.methods) * len(shape.seeds)
    for model in shape.models:
        for task in shape.tasks:
            known = len(shape.seeds) > 1
            note = "" if known else "fewer than 4 runs"
            yield DriftCorrelation(model, task, "weight_change", "drift", rho if known else None, None, runs, note)
            if drift.text:
                yield DriftCorrelation(model, task, "drift", "forgetting", rho if known else None, partial, runs, note)


def _rows(shape: Shape, drift: DriftShape, values: Values) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(13)
    for (model, task, method, seed, site), curve in values.items():
        run = {"run": f"{model}-{task}-{method}-{seed}", "model": model, "task": task, "method": method}
        run |= {"seed": str(seed), "example_id": None, "unit": "1"}
        layers = layers_of(drift, site)
        for metric, factor in {"drift": 1.0, **OTHER_MEASURES}.items():
            for layer, value in zip(layers, curve, strict=True):
                yield {**run, "split": "probe", "site": site, "layer": layer, "metric": metric, "value": factor * value}
        if site != "residual":
            continue
        total = summary(values, model, task, method, seed)
        for other in shape.tasks if drift.elsewhere else ():
            if other != task:
                for layer, value in zip(layers, curve, strict=True):
                    at = {"split": f"probe:{other}", "site": site, "layer": layer, "metric": "drift"}
                    yield {**run, **at, "value": 0.7 * value}
        yield {**run, "split": "probe", "site": site, "layer": None, "metric": "drift", "value": total}
        for update in drift.snapshots:
            for layer, value in zip(layers, curve, strict=True):
                share = 1 - math.exp(-3 * update / max(drift.snapshots))
                at = {"split": f"snapshot:{update}", "site": site, "layer": layer, "metric": "drift"}
                yield {**run, **at, "value": share * value}
            at = {"split": f"snapshot:{update}", "site": site, "layer": None, "metric": "drift"}
            yield {**run, **at, "value": 0.5 * total}
        whole = {**run, "split": None, "site": None, "layer": None}
        adapter = method != "full"
        for metric, value in {
            "update_norm": 12.0 * total,
            "relative_update_norm": 0.04 * total**0.7 * float(generator.normal(1, 0.05)),
            "stable_rank": 2.1 if adapter else 14.2,
            "effective_rank": 5.4 if adapter else 160.3,
            **({"rank_utilisation": 0.675} if adapter else {}),
            "changed_matrices": 12.0 if adapter else 36.0,
            "intruder_dimensions": 7.0 if adapter else 0.0,
            "intruder_energy_share": 0.0031 if adapter else 0.0,
            "random_intruder_dimensions": 1.0 if adapter else 0.0,
            "random_intruder_energy_share": 0.0004 if adapter else 0.0,
        }.items():
            yield {**whole, "metric": metric, "value": value}
        yield {**whole, "site": "query", "layer": 1, "metric": "singular_value_1", "value": 3.0}
        if drift.text:
            lost = 0.4 * total + float(generator.normal(0, 0.004))
            for metric, value in {"text_loss_before": 3.1, "text_loss_after": 3.1 + lost, "forgetting": lost}.items():
                yield {**whole, "metric": metric, "value": value, "unit": "nat"}
        for layer in range(1, drift.layers + 1):
            pattern = {**run, "split": "probe", "site": "attention-pattern", "layer": layer}
            for metric, value in {
                "attention_entropy": 2.4,
                "attention_base_entropy": 2.6,
                "attention_total_variation": 0.4 * total,
            }.items():
                yield {**pattern, "metric": metric, "value": value}
    yield from _references(shape, drift, values)


def _references(shape: Shape, drift: DriftShape, values: Values) -> Iterator[dict[str, Any]]:
    for model in shape.models:
        for task in shape.tasks:
            for method in shape.methods:
                at = {"run": f"drift-{model}-{task}-{method}", "model": model, "task": task, "seed": "*"}
                at |= {"example_id": None, "split": "probe", "metric": "drift", "unit": "1"}
                for site in drift.sites:
                    curves = [values[model, task, method, seed, site] for seed in shape.seeds]
                    for place, layer in enumerate(layers_of(drift, site)):
                        here = {**at, "site": site, "layer": layer}
                        untrained = 0.55 + 0.4 * layer / drift.layers
                        yield {**here, "method": "reference:other-examples", "value": 0.995}
                        yield {**here, "method": "reference:random-initialisation", "value": untrained}
                        if len(shape.seeds) > 1:
                            apart = drift.floor * float(np.mean([curve[place] for curve in curves]))
                            yield {**here, "method": f"reference:seed-v-seed:{method}", "value": apart}


if __name__ == "__main__":
    from lorascope.report.render import render_report

    target = Path(sys.argv[1])
    cases = {
        "plain": (Shape(), DriftShape(snapshots=(50, 100, 200, 400, 600))),
        "large": (
            Shape(
                models=("minilm-l6", "smollm2-135m"),
                tasks=("mrpc", "sst2", "rte", "docstrings"),
                methods=("full", "lora", "lora-r64", "adalora", "dora_attention"),
                seeds=(42, 1337, 2024),
            ),
            DriftShape(layers=30, text=False, floor=1.1),
        ),
        "one_seed": (
            Shape(tasks=("docstrings",), seeds=(42,), hypotheses=False),
            DriftShape(sites=("residual",), examples=96, draws=200, text=False, elsewhere=False),
        ),
    }
    for name, (shape, drift) in cases.items():
        artifact = write_drift_analysis(target / name / "analysis", shape, drift)
        print(render_report(artifact, target / name / "report"))
