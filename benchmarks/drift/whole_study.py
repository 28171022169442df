"""The whole drift of a study: every drift step as the product runs it, one after the other in one warm process.

    python benchmarks/drift/whole_study.py --data DIR --device cuda [--model smollm2-135m] [--seeds 5] [--time-limit 500]

Nothing is trained. Each run is the base with a random update of the size that fine-tuning makes, exported as a run is; rows
are GLUE's own, tokenised by lorascope's steps. README.md next to this says how to read it. Results:
results/whole-study-<model>-<machine>-<date>.json, every step in results/raw/.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

import lorascope
from lorascope.api import graph
from lorascope.drift.step import measure_drift
from lorascope.engine import provenance
from lorascope.engine.context import StepContext
from lorascope.engine.step import Step
from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.engine.warm import Warm
from lorascope.models.loading import load_base
from lorascope.models.tokenizer import load_tokenizer
from lorascope.study.spec import Seeds, Study
from lorascope.tasks.description import task_from_result
from lorascope.training.hardware import peak_memory_bytes
from lorascope.training.preparation import method_from_params, prepared_model

# Layers of a model with random weights, on SmolLM2's tokenizer. TinyLlama's embedding table has SmolLM2's rows.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "tinyllama-1.1b-shape": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "tiny-shape": {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}  # fmt: skip
TOKENISED_AS = "smollm2-135m"
FULL_SCALE, LORA_SCALE = 3e-3, 5e-3
METHODS: Mapping[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 8, "alpha": 16, "sites": ["query", "value"]},
}


# ------------------------------------------------------------------------------------------------------ a study's runs


def random_checkpoint(shape: str, directory: Path, store: Path) -> Path:
    """A checkpoint of the shape with its tokenizer; kept where it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lorascope.models.catalog import describe_model
    from lorascope.study.spec import ModelSpec

    if not (directory / "config.json").exists():
        identity, locations = describe_model(ModelSpec(name=TOKENISED_AS))
        tokenizer = load_tokenizer(identity, locations=locations, cache_dir=Store(store).cache_dir)
        sizes = SHAPES[shape]
        config = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=2048)  # type: ignore[arg-type]
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


def study_of(given: argparse.Namespace, store: Path) -> Study:
    model: Any = given.model
    if model in SHAPES:
        model = {"name": model, "source": {"path": str(random_checkpoint(model, store / "checkpoints" / model, store))}}
    return Study.model_validate(
        {
            "name": "drift-benchmark",
            "question": "How long does the whole drift of a study take?",
            "models": [model],
            "tasks": given.tasks,
            "methods": [METHODS[name] for name in given.methods],
            "seeds": list(range(1, given.seeds + 1)),
            "data": {"train_examples": 1000},  # drift opens the test and validation rows alone
            "train": {"max_length": 384},
            "measure": {"drift": {"examples": given.examples, "draws": given.draws, "pooling": given.pooling}},
        }
    )


def prepare_rows(study: Study, *, data: Path, store: Path) -> None:
    options: dict[str, Any] = {"store": store, "results": store / "results", "data_dir": data}
    outcome = lorascope.run(study, **options, executor=lorascope.api.Workers("inline", ["cpu"]), only="tokens:*")
    if outcome.failed:
        raise SystemExit(f"the data could not be prepared: {next(iter(outcome.failed.values()))}")


def export_run(step: Step, base: Any, directory: Path) -> Artifact:
    """What a `train` step would have committed, as far as drift reads it."""
    if not (directory / "record.json").exists():
        seeds, method = Seeds.model_validate(step.params["seeds"]), method_from_params(step.params["method"])
        model, _ = prepared_model(base, [method], [seeds])
        perturb(model, torch.Generator(base.device).manual_seed(int.from_bytes(step.id.encode()[-7:])))
        method.export(model, directory / "export", base=base)
        record = {"id": step.id, "step": step.to_json(), "result": {}, "provenance": {}}
        (directory / "record.json").write_text(json.dumps(record))
    return Artifact(directory)


@torch.no_grad()
def perturb(model: nn.Module, generator: torch.Generator) -> None:
    """Noise and sixteen strong directions in each weight of a fully tuned run, a small B in an adapter."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or "lora_A" in name:
            continue

        def draw(*shape: int, like: torch.Tensor = parameter) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=like.device)

        if "lora_B" in name:
            parameter.add_(LORA_SCALE * draw(*parameter.shape))
        elif parameter.ndim < 2:
            parameter.mul_(1 + FULL_SCALE * draw(*parameter.shape))
        else:
            *runs, out, width = parameter.shape
            change = draw(*runs, out, width) + 0.7 * draw(*runs, out, 16) @ draw(*runs, 16, width)
            parameter.add_(FULL_SCALE * parameter.std() * change)


# ------------------------------------------------------------------------------------------------------------- measure


def measure_study(study: Study, given: argparse.Namespace, store: Path, deadline: float) -> dict[str, Any]:
    """Makes the runs, then measures every arm until the time is over."""
    planned, finished = graph(study, data_dir=given.data), Store(store)
    steps = planned.of_kind("drift")
    by_id = {step.id: step for step in planned.steps}
    dependencies = {i: by_id[i] for step in steps for i in step.deps.values()}
    data = {i: finished.artifact(i) for i, step in dependencies.items() if step.kind in ("data", "tokens")}
    started = time.perf_counter()
    base = base_of(steps[0], data, given.device, finished.cache_dir)
    trained = {
        i: export_run(step, base, store / "runs" / i) for i, step in dependencies.items() if step.kind == "train"
    }
    del base
    making, found, warm = time.perf_counter() - started, [], Warm()
    print(f"{len(trained)} runs made in {making:.1f} s", flush=True)
    for number, step in enumerate(steps, start=1):
        if time.perf_counter() > deadline:
            break
        with tempfile.TemporaryDirectory(dir=store) as folder:
            out, work = Path(folder) / "out", Path(folder) / "work"
            out.mkdir()
            work.mkdir()
            context = StepContext(
                step=step, out=out, work=work, deps={role: {**data, **trained}[i] for role, i in step.deps.items()},
                emit=lambda event: None, device=given.device, data_dir=given.data, cache_dir=finished.cache_dir, warm=warm,
            )  # fmt: skip
            before = time.perf_counter()
            result = measure_drift(context)
            seconds = time.perf_counter() - before
        label = planned.labels[step.id]
        found.append(
            {
                "task": label.task, "method": label.method, "seconds": seconds, "parts": result["seconds"],
                "peak_memory_bytes": result["peak_memory_bytes"], "examples": result["num_examples"],
                "drift": result["drift"], "not_measured": result["not_measured"],
                "points": sum(map(len, result["layers"].values())),
            }
        )  # fmt: skip
        parts = ", ".join(f"{part} {value:.1f}" for part, value in result["seconds"].items())
        print(f"{number}/{len(steps)} {label.task} {label.method}: {seconds:.1f} s ({parts})", flush=True)
    return {"making_seconds": making, "steps": found, "num_steps": len(steps), "complete": len(found) == len(steps)}


def base_of(step: Step, data: Mapping[str, Artifact], device: str, cache_dir: Path) -> Any:
    task = task_from_result(data[step.deps["data"]].result)
    where = {"locations": step.locations, "cache_dir": cache_dir}
    return load_base(
        step.params["model"], head=task.head, device=device, warm=Warm(),
        pad_token_id=load_tokenizer(step.params["model"], **where).pad_token_id, **where,
    )  # fmt: skip


def rows_of(result: Mapping[str, Any], *, raw: str) -> list[ratios.Row]:
    """What the whole took and needed. Nobody else measures all of it, so there is no peer."""
    rows = [ratios.measured_alone(f"{result['work']}: whole steps", result["total_seconds"], unit="s")]
    for where, value in result["peak_memory_bytes"].items():
        rows.append(ratios.measured_alone(f"{result['work']}: peak memory, {where}", value, unit="byte"))
    about = result["machine"]
    return ratios.described(
        rows,
        machine=ratios.machine_of({**about, "threads": result["threads"]}),
        versions=ratios.versions_of(about),
        command=result["command"],
        raw=raw,
    )


def table(result: Mapping[str, Any]) -> str:
    """Seconds by part and method, and altogether."""
    steps: Sequence[Any] = result["steps"]
    methods = list(dict.fromkeys(step["method"] for step in steps))
    parts = list(dict.fromkeys(itertools.chain.from_iterable(step["parts"] for step in steps)))

    def total(part: str, method: str | None = None) -> float:
        return sum(step["parts"].get(part, 0.0) for step in steps if method in (None, step["method"]))

    lines = [f"| seconds | {' | '.join(methods)} | all |", f"|---|{'---:|' * (len(methods) + 1)}"]
    for part in parts:
        cells = [f"{total(part, method):.1f}" for method in methods]
        lines.append(f"| {part} | {' | '.join(cells)} | {total(part):.1f} |")
    whole = [f"{sum(s['seconds'] for s in steps if s['method'] == method):.1f}" for method in methods]
    lines.append(f"| whole steps | {' | '.join(whole)} | {result['total_seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The whole drift of a study whose runs are made up.")
    parser.add_argument("--data", type=Path, required=True, help="directory with {task}_{split}.parquet")
    parser.add_argument("--model", default="smollm2-135m", help=f"a registered model, or {', '.join(SHAPES)}")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "rte"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="runs of each task and method")
    parser.add_argument("--examples", type=int, default=750)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--time-limit", type=float, default=500, help="seconds after which no further step is begun")
    parser.add_argument("--store", type=Path, default=None, help="where rows and runs are kept; default: thrown away")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    deadline = time.perf_counter() + given.time_limit
    torch.set_num_threads(given.threads)
    with contextlib.ExitStack() as stack:
        store = given.store or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        study = study_of(given, store)
        before = time.perf_counter()
        prepare_rows(study, data=given.data, store=store)
        print(f"rows prepared in {time.perf_counter() - before:.1f} s", flush=True)
        result = measure_study(study, given, store, deadline)
    steps = result["steps"]
    result |= {
        "work": f"drift of {given.model}: {len(given.tasks)} tasks x {len(given.methods)} methods x {given.seeds} seeds, "
        f"{given.examples} examples, {given.draws} draws",
        "total_seconds": sum(step["seconds"] for step in steps),
        "peak_memory_bytes": {
            "device": max((step["peak_memory_bytes"] for step in steps), default=0), "host": peak_memory_bytes("cpu"),
        },
        "threads": given.threads,
        "load_after": os.getloadavg()[0],
        "machine": {k: v for k, v in provenance.describe(device=given.device).items() if k != "host"},
        "command": ratios.command_line("benchmarks/drift/whole_study.py"),
    }  # fmt: skip
    kind = given.device.partition(":")[0]
    name = f"whole-study-{given.model}-{platform.machine()}-{kind}-{datetime.date.today().isoformat()}.json"
    output = given.output or Path(__file__).parent / "results" / name
    ratios.write_raw(output.parent / "raw" / output.name, result)
    ratios.write_list(output, rows_of(result, raw=f"raw/{output.name}"))
    print(table(result))
    device, host = (value / 2**30 for value in result["peak_memory_bytes"].values())
    print(f"peak memory: {device:.2f} GiB on {given.device}, {host:.2f} GiB in the process")
    if not result["complete"]:
        print(f"the time was over after {len(steps)} of {result['num_steps']} steps")


if __name__ == "__main__":
    main()
