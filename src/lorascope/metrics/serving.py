"""Metrics of serving: what requests cost. One number a load, or a process, of every repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorascope.metrics.metric import Metric


@dataclass(frozen=True)
class ServingMetric(Metric):
    """claim: how hypotheses spell it ("latency_p95"); None: none is about it. as_cost: what more of it costs, where that
    is not the title: throughput is compared as the time it takes."""

    claim: str | None = None
    as_cost: str | None = None

    @property
    def cost(self) -> str:
        """ "p95 latency", "time per token"."""
        return self.as_cost or self.title

    @property
    def axis(self) -> str:
        """ "p95 latency (ms)", "tokens/s"."""
        return f"{self.title} ({self.unit})" if self.unit == "ms" else self.title


def _time(name: str, title: str, claim: str | None = None) -> ServingMetric:
    return ServingMetric(name, title, "ms", direction="lower", claim=claim, low=0.0)


def _rate(name: str, title: str, as_cost: str) -> ServingMetric:
    return ServingMetric(name, title, "1/s", direction="higher", claim=name, as_cost=as_cost, low=0.0)


def _bytes(name: str, title: str) -> ServingMetric:
    return ServingMetric(name, title, "byte", direction="lower", low=0.0)


_ROWS = (
    _time("latency_ms_p50", "median latency", "latency_p50"),
    _time("latency_ms_p95", "p95 latency", "latency_p95"),
    _time("latency_ms_p99", "p99 latency", "latency_p99"),
    _time("ttft_ms_p50", "median time to first token", "ttft_p50"),
    _time("ttft_ms_p95", "p95 time to first token", "ttft_p95"),
    _time("ttft_ms_p99", "p99 time to first token"),
    _time("itl_ms_p50", "median time between tokens"),
    _time("itl_ms_p95", "p95 time between tokens"),
    _time("itl_ms_p99", "p99 time between tokens"),
    _rate("tokens_per_second", "tokens/s", "time per token"),
    _rate("requests_per_second", "requests/s", "time per request"),
    _time("latency_ms_mean", "mean latency", "latency_mean"),
    _time("latency_ms", "latency of a single request"),
    ServingMetric("load_s", "load time", "s", direction="lower", low=0.0),
    _bytes("weights_bytes", "weights"),
    _bytes("adapter_bytes", "adapters"),
    _bytes("process_bytes", "process"),
    _bytes("peak_process_bytes", "peak of the process"),
    _bytes("device_bytes", "device"),
    _bytes("peak_device_bytes", "peak of the device"),
)

SERVED: Mapping[str, ServingMetric] = {row.name: row for row in _ROWS}
CLAIMED: Mapping[str, ServingMetric] = {row.claim: row for row in _ROWS if row.claim is not None}
"""By the spelling of hypotheses: "latency_p95" is the row of latency_ms_p95."""
