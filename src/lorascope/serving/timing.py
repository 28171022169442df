"""From the times an engine noted to the figures of a load: latency, time to first token, time between tokens, throughput.

All times are seconds on the engine's own clock, from the start of a batch. A request's latency runs from its arrival, so
that waiting for a busy engine counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lorascope.serving.exchange import Request, ServedRequests

QUANTILES = {"p50": 50, "p95": 95, "p99": 99}


def request_rows(batches: Sequence[Sequence[Request]], answers: Sequence[ServedRequests]) -> list[dict[str, Any]]:
    """One row a request, in order: latency_ms, ttft_ms (None where nothing is generated), num_tokens, adapter."""
    asked = [request for batch in batches for request in batch]
    assert [request.id for request in asked] == [answer.id for answer in answers], (
        "an answer for each request, in order"
    )
    return [
        {
            "request": request.id,
            "adapter": request.adapter,
            "prompt_tokens": len(request.prompt),
            "num_tokens": request.output_tokens,
            "latency_ms": 1e3 * (answer.last_s - answer.arrival_s),
            "ttft_ms": 1e3 * (answer.first_s - answer.arrival_s) if request.output_tokens else None,
        }
        for request, answer in zip(asked, answers, strict=True)
    ]


def load_figures(
    rows: Sequence[dict[str, Any]], answers: Sequence[ServedRequests], *, wall_s: Sequence[float]
) -> Iterator[tuple[str, float, str]]:
    """(metric, value, unit) of a whole load. rows: of `request_rows`. wall_s: how long each batch took.

    tokens_per_second counts generated tokens, or prompt tokens where nothing is generated. Times between tokens are of
    all pairs of neighbouring tokens of all requests.
    """
    latency = np.array([row["latency_ms"] for row in rows])
    yield "num_requests", float(len(rows)), "1"
    yield "latency_ms_mean", float(latency.mean()), "ms"
    yield from _quantiles("latency_ms", latency)
    generates = rows[0]["ttft_ms"] is not None
    if generates:
        yield from _quantiles("ttft_ms", np.array([row["ttft_ms"] for row in rows]))
        between = np.concatenate([np.diff(answer.token_s) for answer in answers])
        if len(between):
            yield from _quantiles("itl_ms", 1e3 * between)
    tokens = sum(row["num_tokens"] if generates else row["prompt_tokens"] for row in rows)
    yield "tokens_per_second", tokens / sum(wall_s), "1/s"
    yield "requests_per_second", len(rows) / sum(wall_s), "1/s"


def _quantiles(name: str, values: np.ndarray) -> Iterator[tuple[str, float, str]]:
    for label, percent in QUANTILES.items():
        yield f"{name}_{label}", float(np.percentile(values, percent)), "ms"
