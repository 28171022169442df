"""What the study's measurement of serving cannot say; computed from what was measured, like all limitations."""

from __future__ import annotations

from collections.abc import Iterator

from lorascope.report.page import wording
from lorascope.report.page.facts import Facts
from lorascope.report.serving.rows import arm_name, repeats_text, serving_of
from lorascope.stats.serving.analysis import LeftOut

_FULL_PROTOCOL = 10


def serving_limitations(facts: Facts) -> Iterator[str]:
    """Sentences, none where nothing was served."""
    if facts.analysis.serving is None:
        return
    for rule in (_left_out, _repeats, _dropped, _engine, _eager, _machine, _many, _trade, _memory):
        yield from rule(facts)


def _left_out(facts: Facts) -> Iterator[str]:
    names = dict.fromkeys(f"{arm_name(row.arm)} ({_place(row)})" for row in serving_of(facts).left_out)
    if names:
        yield f"Not every arm of serving is compared: {wording.listing(names)} failed a gate or did not run."


def _place(row: LeftOut) -> str:
    return row.workload if row.setting == "default" else f"{row.workload}, {row.setting}"


def _repeats(facts: Facts) -> Iterator[str]:
    counts = [cell.num_repeats for cell in serving_of(facts).cells if cell.num_requests]
    if not counts:
        return
    least = min(counts)
    if least < 3:
        yield (
            f"Serving: {repeats_text(counts)} an arm. An interval over engine processes needs at least 3 repeats, so "
            f"differences between arms have no interval there: one process may happen to be fast."
        )
    elif least < _FULL_PROTOCOL:
        yield (
            f"Serving: {repeats_text(counts)} an arm, so intervals rest on {least - 1} degrees of freedom; a process "
            "that happened to run slowly widens them a lot."
        )


def _dropped(facts: Facts) -> Iterator[str]:
    dropped = max((o.num_dropped for o in serving_of(facts).overheads), default=0)
    if dropped:
        yield (
            f"Up to {wording.plural(dropped, 'repeat')} of a comparison of serving had one arm only and were left out of it."
        )


def _engine(facts: Facts) -> Iterator[str]:
    names = dict.fromkeys(serving_of(facts).engines)
    if names:
        over_http = any(fact.engine.endswith("-server") for fact in facts.served.engines)
        where = (
            "by a client of its HTTP server on the same machine: no network, and server and client share the processors"
            if over_http
            else "inside the engine's process: no HTTP, no network"
        )
        yield (
            f"Serving was measured on {wording.listing(names)}, {where}; another engine or version may order the arms "
            f"differently."
        )
    if any(fact.engine == "transformers" for fact in facts.served.engines):
        yield (
            "The engine `transformers` is not a server for production: it batches requests but has neither paged attention "
            "nor kernels for many adapters, so its overheads are not those of a real deployment."
        )


def _eager(facts: Facts) -> Iterator[str]:
    """vLLM does not compile with LoRA on CPU, so we let no arm compile."""
    on_cpu = [fact for fact in facts.served.engines if fact.device == "cpu"]
    if any("vllm" in fact.engine for fact in on_cpu):
        yield (
            "On the CPU vLLM turns compilation off where it serves LoRA, so base, full and merged ran uncompiled too: "
            "alone they could be faster than shown here, and the overhead of adapters larger."
        )


def _machine(facts: Facts) -> Iterator[str]:
    if facts.served.engines:
        devices = wording.listing(dict.fromkeys(str(fact.device_name) for fact in facts.served.engines))
        yield (
            f"Latencies are those of one machine ({devices}). Arms took turns in random order within a repeat, but "
            f"lorascope cannot see whether the machine did other work at the same time."
        )


def _many(facts: Facts) -> Iterator[str]:
    shown = sum(o.interval is not None for o in serving_of(facts).overheads)
    if shown > 20:
        yield (
            f"The {wording.count(shown)} intervals of overheads are not corrected for their number: about one in twenty "
            f"misses the true value. Only the declared hypotheses are corrected."
        )


def _trade(facts: Facts) -> Iterator[str]:
    if serving_of(facts).traffic:
        yield (
            "Machines are counted by the best throughput of a machine, whatever the latency, for machines that hold one "
            "merged model each; bursts of traffic, spare machines and adapters loaded on demand are not in it."
        )


def _memory(facts: Facts) -> Iterator[str]:
    if serving_of(facts).memory:
        yield "Memory by task counts weights and adapters only; the key-value cache and buffers come on top in both cases."
