"""Synthetic analysis artifacts for the tests of reports: realistic in shape and size, made from one random generator.

Scores are drawn from a seed effect and an example count, differences from the scores; nothing here imitates the real
statistics beyond that. Run as a script to render one for the eye: `python tests/support/report_fixture.py DIRECTORY`.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorascope.stats.analysis import (
    Analysis,
    Comparison,
    HypothesisResult,
    Interval,
    McNemar,
    Part,
    Score,
)
from lorascope.study.spec import Study

EXAMPLES = {"mrpc": 408, "sst2": 872, "rte": 277, "docstrings": 1000}
LEVELS = {"mrpc": 0.86, "sst2": 0.92, "rte": 0.655, "docstrings": 0.81}
EFFECTS = {"full": 0.0, "lora": -0.004, "lora-r64": 0.002, "adalora": -0.012, "dora_attention": -0.003}
RATES = {"full": 5e-5, "lora": 5e-4, "lora-r64": 4e-4, "adalora": 1e-3, "dora_attention": 5e-4}


@dataclass(frozen=True)
class Shape:
    """What the synthetic study looks like."""

    models: tuple[str, ...] = ("minilm-l6",)
    tasks: tuple[str, ...] = ("mrpc", "rte")
    methods: tuple[str, ...] = ("full", "lora")
    seeds: tuple[int, ...] = (42, 1337, 2024, 3407, 5489)
    hypotheses: bool = True
    failed: bool = False
    measured: bool = True
    protocol: str = "strict"


def write_analysis(directory: Path, shape: Shape | None = None) -> Path:
    """Write a whole analysis artifact and return its directory."""
    shape = shape or Shape()
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(7)
    cells = [(m, t, k, s) for m in shape.models for t in shape.tasks for k in shape.methods for s in shape.seeds]
    lost = cells[-1] if shape.failed and len(cells) > 2 else None
    cells = [cell for cell in cells if cell != lost]
    scores = {cell: _score(cell, generator) for cell in cells}
    runs = [_run(cell, shape, generator) for cell in cells]
    analysis = _analysis(shape, scores, generator)
    facts = _facts(shape, runs, lost, generator)
    (directory / "analysis.json").write_text(json.dumps(asdict(analysis), indent=1))
    (directory / "facts.json").write_text(json.dumps(facts, indent=1))
    _curves(runs, scores, generator).to_parquet(directory / "curves.parquet")
    _measurements(scores).to_parquet(directory / "measurements.parquet")
    return directory


def _slug(cell: tuple[str, str, str, int]) -> str:
    return "-".join(map(str, cell))


def _score(cell: tuple[str, str, str, int], generator: np.random.Generator) -> float:
    model, task, method, _ = cell
    level = LEVELS.get(task, 0.75) + EFFECTS.get(method, 0.0) + (0.02 if model != "minilm-l6" else 0.0)
    num_examples = EXAMPLES.get(task, 500)
    return round((level + generator.normal(0, 0.009)) * num_examples) / num_examples


def _t_interval(values: np.ndarray) -> Interval | None:
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, 0.95, "t")


def _analysis(shape: Shape, scores: dict, generator: np.random.Generator) -> Analysis:
    rows, comparisons = [], []
    for model in shape.models:
        for task in shape.tasks:
            for method in shape.methods:
                seeds = {
                    str(s): scores[model, task, method, s] for s in shape.seeds if (model, task, method, s) in scores
                }
                if not seeds:
                    continue
                values = np.array(list(seeds.values()))
                sd = float(values.std(ddof=1)) if len(values) > 1 else None
                for metric, shift in (("accuracy", 0.0), ("f1", 0.03)):
                    rows.append(
                        Score(
                            model=model,
                            task=task,
                            method=method,
                            metric=metric,
                            mean=float(values.mean()) + shift,
                            sd=sd,
                            interval=_t_interval(values + shift),
                            seeds={seed: value + shift for seed, value in seeds.items()},
                            num_examples=EXAMPLES.get(task, 500),
                        )
                    )
                if method != shape.methods[0]:
                    comparisons.append(_comparison(shape, scores, (model, task, method), generator))
    hypotheses = _hypotheses(shape, comparisons) if shape.hypotheses else []
    stated = {
        "text": "H1 and H2",
        "verdict": "inconclusive",
        "values": {result.name: result.verdict for result in hypotheses},
    }
    return Analysis(
        alpha=0.05,
        family="all primary comparisons of the study",
        scores=rows,
        comparisons=comparisons,
        hypotheses=hypotheses,
        conclusion=stated if hypotheses else None,
        anova=_anova(shape) if len(shape.seeds) > 1 else None,
        notes=[],
    )


def _anova(shape: Shape) -> list[dict[str, Any]]:
    effect = {"kind": "effect", "sum_squares": 0.01, "df": 1.0, "df_residual": 16.0}
    pair = {"kind": "post-hoc", "first": shape.methods[1], "second": shape.methods[0], "task": shape.tasks[-1]}
    return [
        {
            "model": shape.models[0],
            **effect,
            "term": "method",
            "f": 1.84,
            "p_value": 0.1912,
            "partial_eta_squared": 0.094,
        },
        {
            "model": shape.models[0],
            **effect,
            "term": "task",
            "f": 1210.4,
            "p_value": 1e-9,
            "partial_eta_squared": 0.988,
        },
        {"model": shape.models[0], **pair, "difference": -0.0117, "low": -0.0231, "high": -0.0003, "p_value": 0.0451},
    ]


def _comparison(shape: Shape, scores: dict, key: tuple[str, str, str], generator: np.random.Generator) -> Comparison:
    model, task, method = key
    reference = shape.methods[0]
    pairs = [
        (scores[model, task, method, s], scores[model, task, reference, s])
        for s in shape.seeds
        if (model, task, method, s) in scores and (model, task, reference, s) in scores
    ]
    gaps = np.array([a - b for a, b in pairs])
    n, k = EXAMPLES.get(task, 500), len(gaps)
    error = math.sqrt(0.0001 / k + 0.12 / n)
    gap = float(gaps.mean())
    p = math.erfc(abs(gap) / error / math.sqrt(2))
    exact = 2 / math.comb(2 * k, k) if k > 1 else 1.0
    tests = []
    for seed, (first, second) in zip(shape.seeds, pairs, strict=False):
        both = int(generator.integers(14, 30))
        b, c = both + max(0, round((first - second) * n)), both + max(0, round((second - first) * n))
        tests.append(McNemar(str(seed), b, c, min(1.0, math.erfc(abs(b - c) / math.sqrt(2 * (b + c)))), None))
    return Comparison(
        model=model,
        task=task,
        method=method,
        reference=reference,
        metric="accuracy",
        difference=Interval(gap, gap - 1.96 * error, gap + 1.96 * error, 0.95, "multi-bootstrap"),
        difference_90=Interval(gap, gap - 1.645 * error, gap + 1.645 * error, 0.90, "multi-bootstrap"),
        p_value=p,
        p_holm=min(1.0, 2 * p),
        p_bonferroni=min(1.0, 4 * p),
        seed_difference=_t_interval(gaps),
        hedges_g=Interval(gap / 0.012, gap / 0.012 - 1.3, gap / 0.012 + 1.3, 0.95, "noncentral t") if k > 1 else None,
        odds_ratio=Interval(
            math.exp(5 * gap), math.exp(5 * gap - 0.2), math.exp(5 * gap + 0.2), 0.95, "Mantel-Haenszel"
        ),
        mcnemar=tests,
        permutation_p=0.42 if exact <= 0.05 else None,
        permutation_floor=exact,
        seeds_needed=4,
        detectable_difference=2.8 * error,
        num_seeds=k,
        num_examples=n,
    )


def _hypotheses(shape: Shape, comparisons: list[Comparison]) -> list[HypothesisResult]:
    method, reference = shape.methods[1], shape.methods[0]
    parts = [
        Part(
            model=row.model,
            task=row.task,
            verdict="supported" if row.difference_90.low > -0.03 else "inconclusive",
            estimate=row.difference_90,
            p_value=row.p_value,
            p_holm=row.p_holm,
            p_bonferroni=row.p_bonferroni,
            num_seeds=row.num_seeds,
            num_examples=row.num_examples,
            reason="the interval lies above the margin"
            if row.difference_90.low > -0.03
            else "the interval reaches beyond the margin on both sides",
        )
        for row in comparisons
        if row.method == method
    ]
    undecided = [part for part in parts if part.verdict == "inconclusive"]
    ratio = Interval(0.41, 0.37, 0.46, 0.95, "t on log ratios")
    memory = Part("*", "*", "supported", ratio, 0.0002, 0.0004, 0.0006, len(shape.seeds), 0, "")
    return [
        HypothesisResult(
            name="H1",
            kind="non_inferior",
            claim=f"{method} loses at most 3.0 points of accuracy to {reference}, on every model and task.",
            verdict="inconclusive" if undecided else "supported",
            metric="accuracy",
            threshold=0.03,
            average=None,
            parts=parts,
            num_seeds=len(shape.seeds),
            num_examples=sum(part.num_examples for part in parts),
            reason=f"{len(undecided)} of {len(parts)} parts are undecided." if undecided else "All parts hold.",
            would_decide="About 640 test examples at the same number of seeds would narrow the interval enough.",
        ),
        HypothesisResult(
            name="H2",
            kind="lower",
            claim=f"{method} needs at least 20% less peak memory than {reference}.",
            verdict="supported",
            metric="peak_memory_bytes",
            threshold=0.8,
            average=ratio,
            parts=[memory],
            num_seeds=len(shape.seeds),
            num_examples=0,
            reason="The whole interval is below 0.80×.",
            would_decide="",
        ),
    ]


def _run(cell: tuple[str, str, str, int], shape: Shape, generator: np.random.Generator) -> dict[str, Any]:
    model, task, method, seed = cell
    total = 22_713_728 if model == "minilm-l6" else 134_515_008
    full = method == "full"
    updates = 3 * (200 + 40 * shape.tasks.index(task))
    stopped = bool(generator.random() < 0.2)
    done = updates * 2 // 3 if stopped else updates
    return {
        "run": _slug(cell),
        "model": model,
        "task": task,
        "method": method,
        "seed": seed,
        "trainable_parameters": total if full else int(total * 0.0065 * (1 + shape.methods.index(method) / 3)),
        "total_parameters": total,
        "training_seconds": done * (0.31 if full else 0.22) * float(generator.normal(1, 0.03)),
        "updates": done,
        "epochs": 2 if stopped else 3,
        "best_update": updates // 3 if stopped else updates,
        "best_epoch": 1 if stopped else 3,
        "stopped_early": stopped,
        "resumed": False,
        "peak_memory_bytes": int((1.9 if full else 0.8) * 2**30 * float(generator.normal(1, 0.01))),
        "tokens_per_second": float(generator.normal(5200 if full else 7100, 90)),
        "padded_tokens_per_second": 8000.0,
        "padding_fraction": 0.083,
        "mfu": 0.31 if shape.measured else None,
        "step_ms_median": 310.0 if full else 220.0,
        "energy_joules": float(generator.normal(5400, 60)) if shape.measured else None,
        "device": "NVIDIA H200" if shape.measured else "cpu",
        "precision": "bf16" if shape.measured else "fp32",
        "learning_rate": RATES.get(method, 1e-4),
        "batch_size": 16,
        "export_bytes": int(total * 4 if full else total * 4 * 0.0068),
    }


def _curves(runs: list[dict[str, Any]], scores: dict, generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for run in runs:
        key = (run["model"], run["task"], run["method"], run["seed"])
        end = scores[key]
        shared = {column: run[column] for column in ("run", "model", "task", "method", "seed")}
        per_epoch = run["updates"] // run["epochs"]
        for update in range(5, run["updates"] + 1, 5):
            progress = update / (3 * per_epoch)
            loss = 0.25 + 0.45 * math.exp(-3 * progress) + float(generator.normal(0, 0.05))
            at = {**shared, "update": update, "epoch": update / per_epoch}
            rows.append({**at, "name": "train/loss", "value": loss})
            rows.append({**at, "name": "learning_rate", "value": run["learning_rate"] * (1 - progress)})
            if update % per_epoch == 0:
                score = 0.5 + (end - 0.5) * (1 - math.exp(-3.5 * progress)) + float(generator.normal(0, 0.006))
                rows.append({**at, "name": "validation/accuracy", "value": score})
                rows.append({**at, "name": "validation/loss", "value": loss})
    return pd.DataFrame(rows)


def _measurements(scores: dict) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run": _slug(cell),
                "model": cell[0],
                "task": cell[1],
                "method": cell[2],
                "seed": str(cell[3]),
                "split": "test",
                "example_id": None,
                "site": None,
                "layer": None,
                "metric": "accuracy",
                "value": value,
                "unit": "1",
            }
            for cell, value in scores.items()
        ]
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _task_facts(task: str, shape: Shape) -> dict[str, Any]:
    sizes = {"train": 3301, "validation": 367, "test": EXAMPLES.get(task, 500)}
    labels = ["entailment", "not_entailment"] if task == "rte" else ["different", "same"]
    return {
        "num_examples": sizes,
        "label_names": labels,
        "label_counts": {s: {labels[0]: round(n * 0.325), labels[1]: n - round(n * 0.325)} for s, n in sizes.items()},
        "duplicates": {"train~validation": 0, "train~test": 3 if task == "mrpc" else 0},
        "dropped_duplicates": 12,
        "truncated_fraction": {m: {"train": 0.021 if task == "rte" else 0.0, "test": 0.018} for m in shape.models},
        "sha256": {split: _digest(task, split) for split in sizes},
        "example_ids_sha256": {split: _digest(task, split, "ids") for split in sizes},
        "source": "hub nyu-mll/glue at bcdcba7 (100% of rows_used & kept)",
    }


def _facts(shape: Shape, runs: list[dict], lost: tuple | None, generator: np.random.Generator) -> dict[str, Any]:
    study: dict[str, Any] = {
        "name": "glue_lora-vs-full",
        "question": "Does LoRA match full fine-tuning, and at what cost?",
        "models": list(shape.models),
        "tasks": list(shape.tasks),
        "methods": [
            {"kind": "full" if method == "full" else "lora", "name": method, "learning_rate": RATES.get(method, 1e-4)}
            for method in shape.methods
        ],
        "seeds": list(shape.seeds),
        "protocol": shape.protocol,
    }
    if shape.hypotheses:
        study["hypotheses"] = {
            "H1": {"non_inferior": shape.methods[1], "to": shape.methods[0], "margin": "3%"},
            "H2": {"lower": shape.methods[1], "than": shape.methods[0], "on": "peak_memory_bytes", "by": "20%"},
        }
        study["conclusion"] = "H1 and H2"
    failure = lost and {
        "step": f"train-{_slug(lost)}-1f2e3d4c",
        "kind": "train",
        "model": lost[0],
        "task": lost[1],
        "method": lost[2],
        "seed": lost[3],
        "error": "GateFailure",
        "text": "training loss became NaN at update 212 of 600\n  hint: lower methods[1].learning_rate",
    }
    return {
        "study": Study.model_validate(study).model_dump(mode="json"),
        "data": {task: _task_facts(task, shape) for task in shape.tasks},
        "runs": runs,
        "gates": _gates(shape, lost),
        "baselines": _baselines(shape, generator),
        "published": [
            {
                "task": "mrpc",
                "model": "RoBERTa-base",
                "method": "lora",
                "metric": "accuracy",
                "value": 0.897,
                "citation": "Hu et al. 2021, table 2",
                "setting": "GLUE dev set, median of 5 seeds, best epoch, started from an MNLI adapter",
            }
        ]
        if "mrpc" in shape.tasks
        else [],
        "failures": [failure] if failure else [],
        "missing_runs": 1 if failure else 0,
        "provenance": {
            "versions": {"lorascope": "0.1.0", "python": "3.12.4", "torch": "2.11.0", "transformers": "5.19.0"},
            "hardware": {"device": runs[0]["device"], "cpu": "16 cores", "memory_bytes": 128 * 2**30},
            "git": {"commit": "4f2c9d1a7b3e", "dirty": True},
            "command": "lorascope run studies/classification.yaml --data data",
            "started": "2026-03-02T09:12:44+00:00",
            "finished": "2026-03-02T10:48:03+00:00",
        },
        "protocol_gap": [
            {"model": m, "task": t, "method": k, "strict": LEVELS.get(t, 0.75), "paper": LEVELS.get(t, 0.75) + 0.011}
            for m in shape.models
            for t in shape.tasks
            for k in shape.methods
        ]
        if shape.protocol == "paper"
        else None,
    }


def _gates(shape: Shape, lost: tuple | None) -> list[dict[str, Any]]:
    gates: list[dict[str, Any]] = []
    for model in shape.models:
        for task in shape.tasks:
            for method in shape.methods:
                at = {"model": model, "task": task, "method": method, "seed": None, "passed": True}
                gates.append(
                    {**at, "gate": "overfit-10", "value": 0.041, "threshold": 0.1, "detail": "loss on 10 examples"}
                )
                gates.append(
                    {**at, "gate": "gradient census", "value": None, "threshold": None, "detail": "48 parameters"}
                )
                gates.append({**at, "gate": "reload equality", "value": 0.0, "threshold": 1e-5, "detail": ""})
    if lost:
        model, task, method, seed = lost
        gates.append(
            {
                "gate": "above baselines",
                "model": model,
                "task": task,
                "method": method,
                "seed": seed,
                "passed": False,
                "value": 0.512,
                "threshold": 0.527,
                "detail": "accuracy 51.2% is below the majority class (52.7%)",
            }
        )
    return gates


def _baselines(shape: Shape, generator: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for model in shape.models:
        for task in shape.tasks:
            share = 0.675 if task == "mrpc" else 0.527
            chance = [float(v) for v in generator.normal(share**2 + (1 - share) ** 2, 0.015, 5)]
            at = {"model": model, "task": task, "metric": "accuracy", "num_examples": EXAMPLES.get(task, 500)}
            rows.append({**at, "name": "majority", "mean": share, "sd": None, "values": [share]})
            rows.append(
                {**at, "name": "random", "mean": float(np.mean(chance)), "sd": float(np.std(chance)), "values": chance}
            )
            probe = LEVELS.get(task, 0.75) - 0.08
            rows.append({**at, "name": "linear probe", "mean": probe, "sd": None, "values": [probe]})
    return rows


if __name__ == "__main__":
    from lorascope.report.render import render_report

    target = Path(sys.argv[1])
    shapes = {
        "plain": Shape(),
        "large": Shape(
            models=("minilm-l6", "smollm2-135m"),
            tasks=tuple(EXAMPLES),
            methods=tuple(EFFECTS),
            failed=True,
            measured=False,
        ),
        "one_seed": Shape(tasks=("docstrings",), seeds=(42,), hypotheses=False, protocol="paper"),
    }
    for name, shape in shapes.items():
        print(render_report(write_analysis(target / name / "analysis", shape), target / name / "report"))
