"""How long `plan` and `status` take for a study of some 2,000 steps over a store of 10,000 finished ones.

    python benchmarks/planning/many_steps.py [--finished 10000] [--tasks 20] [--methods 10] [--out DIR]

The finished steps are made up: those of other studies with the same model, methods and tasks but other learning rates, each
with a record like that of a real one, so that every estimate has thousands of records to choose from. Nothing is trained. Each
command runs in a process of its own. Prints seconds, on the clock and of the processor; with --out writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorascope.engine.step import Step
from lorascope.engine.store.directory import Store
from lorascope.engine.store.integrity import sealed, spelled
from lorascope.plan.graph import build_graph
from lorascope.study.loading.load import load_study
from lorascope.version import __version__

EXAMPLES = {"train": 480, "validation": 60, "test": 60}
RESULTS: dict[str, dict[str, Any]] = {
    "data": {"num_examples": EXAMPLES, "primary_metric": "accuracy", "task": {"metrics": ["accuracy"]}},
    "tokens": {"num_tokens": {split: 10 * n for split, n in EXAMPLES.items()}, "mean_length": dict.fromkeys(EXAMPLES, 10.0)},
    "train": {
        "training_seconds": 9.0, "evaluation_seconds": 1.0, "updates": 90, "epochs": 3, "resumed": 0, "gang": 1,
        "peak_memory_bytes": 10**9, "gang_peak_memory_bytes": 10**9,
    },
    "evaluate": {"test": {"accuracy": 0.9}, "gates": [], "example_ids_sha256": "0" * 64},
}  # fmt: skip
CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def write_study(folder: Path, *, tasks: int, methods: int) -> Path:
    """The study, its data and what passes for its model."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (model / "tokenizer.json").write_text("{}")
    for number in range(tasks):
        rows = [f"a text of task {number} and row {row},{row % 2}" for row in range(60)]
        (folder / f"d{number}.csv").write_text("\n".join(["body,queue", *rows]))
    study = {
        "name": "many-steps",
        "question": "How long does a plan take?",
        "models": [{"name": "tiny", "source": {"path": "model"}}],
        "tasks": [
            {"name": f"t{n}", "kind": "classification", "train": f"d{n}.csv", "text": "body", "label": "queue"}
            for n in range(tasks)
        ],
        "methods": [{"kind": "lora", "name": f"m{n}", "rank": n + 1} for n in range(methods)],
        "seeds": [1, 2, 3, 4, 5],
        "train": {"epochs": 3, "max_length": 32},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(study, indent=1))  # JSON is YAML
    return path


def others(steps: list[Step], count: int) -> Iterator[Step]:
    """Steps of other studies: the same preparation, then runs at other learning rates."""
    yield from (step for step in steps if step.kind in ("data", "tokens"))
    runs = [step for step in steps if step.kind in ("train", "evaluate")]
    num = sum(step.kind in ("data", "tokens") for step in steps)
    for number in range(count - num):
        step = runs[number % len(runs)]
        yield replace(step, params={**step.params, "learning_rate": 1e-4 * (2 + number)})


def fill(store: Path, steps: list[Step], count: int) -> None:
    """Records in a store, written without the flushing of a commit."""
    for number, step in enumerate(others(steps, count)):
        begin = f"2026-01-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}+00:00"
        record = {
            "id": step.id,
            "step": step.to_json(),
            "result": RESULTS.get(step.kind, {}),
            "provenance": {
                "started": begin, "finished": begin, "gang": 1, "host": "abc", "device": "cpu", "device_name": "a processor",
                "num_cpus": 2, "python": "3.11", "versions": {f"package-{n}": "1.2.3" for n in range(12)},
            },
            "files": {f"file-{n}.parquet": 1000 for n in range(4)},
            "sha256": {f"file-{n}.parquet": "0" * 64 for n in range(4)},
        }  # fmt: skip
        folder = store / "artifacts" / step.kind / step.id
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(spelled(sealed(record)))


def timed(*verb: str, folder: Path) -> dict[str, float]:
    """Seconds on the clock and of the processor: on a busy machine only the latter says something."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "lorascope", *verb], cwd=folder, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": round(seconds, 2), "processor": round(busy, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_study(folder, tasks=given.tasks, methods=given.methods)
        steps = build_graph(load_study(path), data_dir=None).steps
        fill(folder / "store", steps, given.finished)
        assert len(Store(folder / "store").ids()) == given.finished
        found = {
            verb: [timed(verb, "study.yaml", folder=folder) for _ in range(given.repeats)]
            for verb in ("plan", "status")
        }
        looks = _looks(path, folder)
    told = {
        "planned_steps": len(steps), "finished_steps": given.finished, "seconds": {**found, "look of status --watch": looks},
        "machine": f"{platform.machine()}, {platform.processor()}", "version": __version__, "command": " ".join(sys.argv),
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(told, indent=1) + "\n")


def _looks(path: Path, folder: Path) -> list[float]:
    """Three looks of one reader, as `status --watch` takes them."""
    from lorascope import api

    reader = api.watch(load_study(path), store=folder / "store", results=folder / "results")
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        reader.read()
        seconds.append(round(time.monotonic() - started, 2))
    return seconds


if __name__ == "__main__":
    main()
