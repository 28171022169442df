"""Our client's figures against those of `vllm bench serve`, of the same server in the same minutes.

    python benchmarks/serving/agreement.py [--python .venv-serve/bin/python] [--model DIR] [--repeats 5] [--output FILE]

Both ask one `vllm serve` for the same load: so many requests of one length that each generate so many tokens, greedily, at
most C at once (closed), and at times of a Poisson process (open). They ask at the same time, so that whatever else the machine
does, it does to both; the open loop's arrivals are the peer's own, drawn again here from its seed and run backwards, so that
neither is always first. On a machine that does nothing else they ask in turns (`--in-turns`), at the same arrival times: in a
closed loop two clients fall into step with each other, and who comes first then waits less for its first token.

Agreement is the ratio of the two figures of a repeat: geometric mean and t interval over repeats. The server answers both with
token ids, and both send them, so that it has the same work: the peer's text is replaced by ids of a random prompt, unless
`--peer-sends text` is given, when its time to the first token holds the server's tokenising too. The peer asks for a few
answers before any are counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

from lorascope.models.catalog import describe_model
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.serving.engines import PROGRAMS, EngineProcess
from lorascope.serving.exchange import EngineConfig, Request
from lorascope.serving.load import synthetic_prompts
from lorascope.stats.serving.repeats import interval_of
from lorascope.study.spec import ModelSpec

TOLERANCE_FRACTION = 0.05
INTERVAL = "95% t interval over repeats, of the geometric mean of the ratios within repeats"
UNITS = {
    "output tokens/s": "1/s", "mean TTFT": "ms", "median TTFT": "ms", "mean ITL": "ms", "median ITL": "ms",
}  # fmt: skip
_PEERS = {
    "output tokens/s": "output_throughput", "mean TTFT": "mean_ttft_ms", "median TTFT": "median_ttft_ms",
    "mean ITL": "mean_itl_ms", "median ITL": "median_itl_ms",
}  # fmt: skip
_PEER_BEGINS = "Starting main benchmark run"


@dataclass(frozen=True)
class Load:
    """rate: requests a second; infinite: a closed loop of `concurrency` requests at once."""

    rate: float
    concurrency: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int

    @property
    def is_closed(self) -> bool:
        return math.isinf(self.rate)

    @property
    def name(self) -> str:
        how = f"closed, {self.concurrency} at once" if self.is_closed else f"open, {self.rate:g} requests/s"
        return f"{how}: {self.num_requests} requests, {self.prompt_tokens} tokens in, {self.output_tokens} out"


def our_figures(
    engine: EngineProcess, load: Load, prompts: Sequence[Sequence[int]], *, arrivals: np.ndarray
) -> dict[str, float]:
    requests = [
        Request(index, prompts[index], output_tokens=load.output_tokens, arrival_s=float(arrivals[index]))
        for index in range(load.num_requests)
    ]
    served = engine.serve([requests])
    begins = [one.sent_s if load.is_closed else one.arrival_s for one in served.requests]
    first = 1e3 * np.array([one.first_s - begin for one, begin in zip(served.requests, begins, strict=True)])
    between = 1e3 * np.concatenate([np.diff(one.token_s) for one in served.requests])
    tokens = load.num_requests * load.output_tokens
    return {
        "output tokens/s": tokens / served.wall_s[0], "mean TTFT": float(first.mean()),
        "median TTFT": float(np.median(first)), "mean ITL": float(between.mean()), "median ITL": float(np.median(between)),
    }  # fmt: skip


def peer_arrivals(load: Load, *, seed: int) -> np.ndarray:
    """When `vllm bench serve` sends each request: gamma gaps from its seed, stretched to end at num_requests / rate."""
    if load.is_closed:
        return np.zeros(load.num_requests)
    arrivals = np.cumsum(np.random.RandomState(seed).gamma(1.0, 1.0 / load.rate, load.num_requests))
    return arrivals * (load.num_requests / load.rate / arrivals[-1])


def peer_command(
    python: Path, load: Load, *, url: str, model: Path, seed: int, result: Path, prompt: Sequence[int] | None
) -> list[str]:
    """prompt: what it sends every time, None: text of its own."""
    body = {"return_token_ids": True, **({"prompt": list(prompt)} if prompt is not None else {})}
    limit = ["--max-concurrency", str(load.concurrency)] if load.is_closed else []
    return [
        str(python), str(PROGRAMS / "vllm_cli.py"), "bench", "serve", "--backend", "openai", "--base-url", url,
        "--endpoint", "/v1/completions", "--model", "base", "--tokenizer", str(model), "--dataset-name", "random",
        "--random-input-len", str(load.prompt_tokens), "--random-output-len", str(load.output_tokens), "--ignore-eos",
        "--temperature", "0", "--num-prompts", str(load.num_requests), "--request-rate", str(load.rate), *limit,
        "--seed", str(seed), "--num-warmups", str(load.concurrency), "--extra-body", json.dumps(body),
        "--disable-tqdm", "--save-result",
        "--result-dir", str(result.parent), "--result-filename", result.name,
    ]  # fmt: skip


def peer_run(command: Sequence[str], result: Path, *, when_it_begins: Callable[[], None]) -> dict[str, float]:
    """The peer's figures of one run. when_it_begins: called when it has started and warmed up."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as peer:
        assert peer.stdout is not None
        for line in peer.stdout:
            said.append(line)
            if line.startswith(_PEER_BEGINS):
                when_it_begins()
    if peer.returncode != 0:
        sys.exit(f"{shlex.join(command)}\n{''.join(said[-60:])}")
    told = json.loads(result.read_text())
    assert told["failed"] == 0, f"{told['failed']} of the peer's requests failed"
    return {name: float(told[key]) for name, key in _PEERS.items()}


def compare(
    engine: EngineProcess,
    load: Load,
    *,
    python: Path,
    model: Path,
    repeats: int,
    vocabulary: int,
    text: bool,
    in_turns: bool,
) -> dict[str, dict[str, list[float]]]:
    """Figure -> who -> a value a repeat. A run before the first repeat is not counted."""
    prompts = synthetic_prompts([load.prompt_tokens], vocabulary=vocabulary, count=load.num_requests)
    found: dict[str, dict[str, list[float]]] = {name: {"ours": [], "peer": []} for name in UNITS}
    url = engine.ready.settings["url"]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(repeats + 1):
            result = Path(folder) / f"{seed}.json"
            prompt = None if text else prompts[0]
            command = peer_command(python, load, url=url, model=model, seed=seed, result=result, prompt=prompt)
            arrivals = peer_arrivals(load, seed=seed)
            figures: dict[str, dict[str, float]] = {}

            def ask(arrivals: np.ndarray = arrivals, figures: dict[str, dict[str, float]] = figures) -> None:
                figures["ours"] = our_figures(engine, load, prompts, arrivals=arrivals)

            if in_turns and seed % 2:
                ask()
            backwards = arrivals[-1] + arrivals[0] - arrivals[::-1]
            together = (lambda: None) if in_turns else partial(ask, backwards)
            figures["peer"] = peer_run(command, result, when_it_begins=together)
            if in_turns and not seed % 2:
                ask()
            for who in ("ours", "peer") if seed else ():
                print(f"{load.name} · repeat {seed} · {who}: {figures[who]}", flush=True)
                for name, value in figures[who].items():
                    found[name][who].append(value)
    return found


def row(load: Load, name: str, samples: Mapping[str, list[float]]) -> ratios.Row:
    logs = np.log(np.array(samples["ours"]) / np.array(samples["peer"]))
    interval = interval_of(logs)
    ratio = math.exp(float(logs.mean()))
    return {
        "work": f"{name}; {load.name}", "ours": float(np.median(samples["ours"])),
        "peer": float(np.median(samples["peer"])), "peer_name": "vllm bench serve", "unit": UNITS[name], "ratio": ratio,
        "ratio_low": interval and interval.low, "ratio_high": interval and interval.high, "repeats": len(logs),
        "interval": interval and INTERVAL, "aim": 1, "within": TOLERANCE_FRACTION,
        "agrees": abs(ratio - 1) <= TOLERANCE_FRACTION,
        "shown": interval is not None
        and interval.low >= 1 - TOLERANCE_FRACTION
        and interval.high <= 1 + TOLERANCE_FRACTION,
        "samples": dict(samples),
    }  # fmt: skip


def default_model(cache: Path) -> Path:
    """SmolLM2-135M from its package."""
    identity, locations = describe_model(ModelSpec.model_validate("smollm2-135m"))
    return checkpoint_directory(identity, locations=locations, cache_dir=cache)


def with_layers(model: Path, num_layers: int, directory: Path) -> Path:
    """The model cut after so many layers, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model, num_hidden_layers=num_layers).save_pretrained(directory)
    AutoTokenizer.from_pretrained(model).save_pretrained(directory)
    return directory


def command_of(given: argparse.Namespace) -> str:
    """What makes these figures again, less where things lie on this machine."""
    options = {
        name: value for name, value in vars(given).items() if not isinstance(value, Path | None) and value is not False
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = [word for word in words if word != "True"]
    return shlex.join(["python", "benchmarks/serving/agreement.py", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--python", type=Path, default=Path(".venv-serve/bin/python"), help="an interpreter with vLLM")
    parser.add_argument("--model", type=Path, help="a causal language model with its tokenizer (default: SmolLM2-135M)")
    parser.add_argument("--layers", type=int, help="keep so many of its layers: faster, and nobody reads the answers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-sends", default="ids", choices=("ids", "text"))
    parser.add_argument("--in-turns", action="store_true", help="not at the same time: for a quiet machine")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or default_model(Path(folder) / "cache")
        if given.layers is not None:
            model = with_layers(model, given.layers, Path(folder) / "model")
        vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
        config = EngineConfig(
            "generation", model, {}, given.dtype, given.device, max_batch=given.concurrency,
            options={"max_num_seqs": 2 * given.concurrency},  # for both clients
            max_length=given.prompt_tokens + given.output_tokens + 16,  # the peer's text may be a few tokens longer
        )  # fmt: skip
        rows = []
        with EngineProcess("vllm-server", config, python=given.python, directory=Path(folder) / "log") as engine:
            shared: dict[str, Any] = {
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {engine.ready.device_name}",
                "versions": engine.ready.versions, "load_average": os.getloadavg(), "command": command_of(given),
            }  # fmt: skip
            for rate in (math.inf, given.rate):
                load = Load(rate, given.concurrency, given.requests, given.prompt_tokens, given.output_tokens)
                found = compare(
                    engine, load, python=given.python, model=model, repeats=given.repeats, vocabulary=vocabulary,
                    text=given.peer_sends == "text", in_turns=given.in_turns,
                )  # fmt: skip
                rows += ratios.described([row(load, name, samples) for name, samples in found.items()], **shared)
        for one in rows:
            bounds = f" ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})" if one["ratio_low"] else ""
            verdict = "within 5%" if one["agrees"] else "NOT within 5%"
            print(
                f"{one['work']}: {one['ours']:.4g} v {one['peer']:.4g} {one['unit']}, {one['ratio']:.3f}{bounds} {verdict}"
            )
        default = f"agreement-{platform.machine()}-{os.cpu_count()}cpu-{datetime.date.today()}.json"
        output = given.output or Path(__file__).parent / "results" / default
        ratios.write_list(output, rows)
        print(f"written to {output}")
    sys.exit(0 if all(one["agrees"] for one in rows) else 1)


if __name__ == "__main__":
    main()
