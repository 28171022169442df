"""A serving table as a step would leave it, drawn from a plain model of an engine: every number has a known origin.

Latency of a token = a fixed launch cost, raised by adapters, plus work that grows with the batch; a process has its own
luck (2%), requests a little more. Known exactly before that luck: `true_latency_ms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

MODEL = "smollm2-135m"
ARMS = ("base", "full", "merged", "adapters-1", "adapters-2", "adapters-4")
BATCHES = (1, 2, 4, 8, 16)
RATES = (2.0, 4.0, 8.0)
TOKENS = {"generation": 64, "classification": 1}
WEIGHTS, ADAPTER = 270_000_000, 900_000


def adapters_of(arm: str) -> int:
    return int(arm.split("-")[1]) if arm.startswith("adapters-") else 0


def true_latency_ms(arm: str, batch: float, *, workload: str = "generation") -> float:
    """Of a request answered in a batch of that size."""
    n = adapters_of(arm)
    overhead = math.exp(0.25 + 0.04 * n - 0.03 * math.log2(batch)) if n else 1.0
    return TOKENS[workload] * (6.0 + 0.9 * batch) * overhead


def served_frame(
    *,
    arms: Sequence[str] = ARMS,
    repeats: int = 5,
    workloads: Sequence[str] = ("generation", "classification"),
    batches: Sequence[float] = BATCHES,
    rates: Sequence[float] = RATES,
    tuned: bool = True,
    switching: bool = True,
    luck: float = 0.02,
    model: str = MODEL,
    seed: int = 1,
) -> pd.DataFrame:
    """The long table of a whole comparison."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        hour = generator.normal(0, luck)
        for workload in workloads:
            for arm in arms:
                factor = math.exp(hour + generator.normal(0, luck))
                process = {"model": model, "arm": arm, "repeat": repeat, "workload": workload, "setting": "default"}
                rows += [{**process, **row} for row in _facts(arm, factor)]
                rows += [{**process, **r} for r in _loads(arm, workload, batches, rates, factor, generator)]
            largest = max(arms, key=adapters_of)
            if tuned and adapters_of(largest):
                factor = math.exp(hour + generator.normal(0, luck)) * 0.88
                process = {"model": model, "arm": largest, "repeat": repeat, "workload": workload, "setting": "tuned"}
                rows += [{**process, **r} for r in _loads(largest, workload, batches, (), factor, generator)]
            if switching and adapters_of(largest) > 1:
                process |= {"arm": largest, "setting": "switching"}
                rows += [{**process, **row} for row in _switches(hour, generator)]
    return pd.DataFrame(rows).astype({"repeat": "int64", "level": "float64", "value": "float64"})


def _facts(arm: str, factor: float) -> Iterator[dict[str, Any]]:
    adapters = adapters_of(arm) * ADAPTER
    facts = {
        "load_s": 4.0 * factor,
        "weights_bytes": WEIGHTS,
        "adapter_bytes": adapters,
        "process_bytes": 1.1e9 + adapters,
        "peak_process_bytes": 1.4e9 + adapters,
    }
    for metric, value in facts.items():
        unit = "s" if metric == "load_s" else "byte"
        yield {"loop": "none", "level": None, "choice": "none", "sampling": "none", "metric": metric,
               "value": float(value), "unit": unit}  # fmt: skip


def _loads(
    arm: str, workload: str, batches: Sequence[float], rates: Sequence[float], factor: float, generator: Any
) -> Iterator[dict[str, Any]]:
    choices = ["round-robin", "random", "zipf"] if adapters_of(arm) == 4 else ["round-robin"]
    for choice in choices:
        for loop, levels in (("batch", batches), ("rate", rates if choice == "round-robin" else ())):
            for level in levels if choice == "round-robin" else levels[-1:]:
                keys = {"loop": loop, "level": float(level), "choice": choice, "sampling": "greedy"}
                median = factor * true_latency_ms(arm, level if loop == "batch" else 1 + level, workload=workload)
                noise = [math.exp(generator.normal(0, 0.005)) for _ in range(3)]
                p50, p95, p99 = median * noise[0], median * 1.15 * noise[1], median * 1.3 * noise[2]
                requests = (level / (median / 1000)) if loop == "batch" else level
                figures = {
                    "num_requests": 200.0, "latency_ms_mean": p50 * 1.03, "latency_ms_p50": p50,
                    "latency_ms_p95": p95, "latency_ms_p99": p99, "requests_per_second": requests,
                    "tokens_per_second": requests * (TOKENS[workload] if workload == "generation" else 128),
                }  # fmt: skip
                if workload == "generation":
                    for name, share in (("ttft_ms", 0.05), ("itl_ms", 1 / TOKENS[workload])):
                        figures |= {f"{name}_p50": share * p50, f"{name}_p95": share * p95, f"{name}_p99": share * p99}
                for metric, value in figures.items():
                    unit = "ms" if "_ms" in metric else "1/s" if "second" in metric else "1"
                    yield {**keys, "metric": metric, "value": float(value), "unit": unit}


def _switches(hour: float, generator: Any) -> Iterator[dict[str, Any]]:
    for state, median in (("resident", 12.0), ("cpu", 15.0), ("evicted", 41.0), ("disk", 48.0)):
        value = median * math.exp(hour + generator.normal(0, 0.03))
        yield {"loop": "switch", "level": None, "choice": state, "sampling": "greedy", "metric": "latency_ms",
               "value": value, "unit": "ms"}  # fmt: skip


def served_gates(arms: Sequence[str] = ARMS, *, workloads: Sequence[str] = ("generation", "classification"),
                 failing: Sequence[str] = (), model: str = MODEL) -> list[dict[str, Any]]:  # fmt: skip
    """One gate an arm and workload. failing: arms whose gate did not pass."""
    return [
        {"model": model, "arm": arm, "workload": workload,
         "what": "token match" if workload == "generation" else "log-odds",
         "value": (0.71 if arm in failing else 1.0) if workload == "generation" else (0.3 if arm in failing else 0.002),
         "tolerance": 0.98 if workload == "generation" else 0.1, "passed": arm not in failing, "n": 480,
         "detail": "compared up to the first step that rounding may decide"}
        for workload in workloads for arm in arms
    ]  # fmt: skip


def served_facts(arms: Sequence[str] = ARMS, *, repeats: int = 5, workloads: Sequence[str] = ("generation",),
                 model: str = MODEL) -> list[dict[str, Any]]:  # fmt: skip
    """One dict an engine process."""
    generator = np.random.default_rng(0)
    facts = []
    for repeat in range(repeats):
        for workload in workloads:
            for order, place in enumerate(generator.permutation(len(arms))):
                facts.append(
                    {"model": model, "arm": arms[place], "repeat": repeat, "workload": workload, "setting": "default",
                     "engine": "vllm", "versions": {"vllm": "0.32.0", "torch": "2.13.0"}, "device_name": "CPU, 2 cores",
             "device": "cpu",
                     "settings": {"enforce_eager": True, "prefix_cache": False, "max_lora_rank": 8, "dtype": "float32"},
                     "head": "model", "notes": [], "order": order}
                )  # fmt: skip
    return facts


def served_trials(*, workloads: Sequence[str] = ("generation",), model: str = MODEL) -> list[dict[str, Any]]:
    """What a search tried for 4 adapters: one lever that helped, one that did not, one unknown."""
    tried = [((), "measured", "", 100.0), (("lora_target_modules",), "measured", "", 88.0),
             (("max_loras 2",), "measured", "", 120.0),
             (("specialize_active_lora",), "unknown", "vLLM 0.1 does not know the option", None)]  # fmt: skip
    return [
        {"model": model, "workload": workload, "arm": "adapters-4", "setting": "trial", "order": order,
         "levers": list(levers), "outcome": outcome, "reason": reason, "batch_ms": {"1": ms} if ms else {}, "cost_ms": ms,
         "chosen": levers == ("lora_target_modules",), "gates": [], "engine": None}
        for workload in workloads for order, (levers, outcome, reason, ms) in enumerate(tried)
    ]  # fmt: skip


def served_merging(*, workloads: Sequence[str] = ("generation",), model: str = MODEL) -> list[dict[str, Any]]:
    """In bfloat16 merging changes as much as rounding does."""
    found = [("merged v adapter", "float32", 2e-6, 0.0), ("merged v adapter", "bfloat16", 0.04, 0.0125),
             ("adapter v float32 adapter", "bfloat16", 0.05, 0.025)]  # fmt: skip
    return [
        {"model": model, "workload": workload, "what": what, "dtype": dtype, "max_abs_logit_difference": difference,
         "max_probability_difference": difference / 4, "flip_rate": flips, "n": 80}
        for workload in workloads for what, dtype, difference, flips in found
    ]  # fmt: skip
