"""From two models to the CKA of all their layers: lorascope's extraction against the usual script.

    python benchmarks/drift/extraction.py --data DIR --model minilm-l6 --task mrpc --examples 200

The usual script runs one example at a time, padded to 384 tokens, takes every layer's hidden states to the host, saves
them as .npy files (whole, or their mean over all 384 positions), loads them again and computes CKA in feature space with
NumPy. Ours pools by hooks, keeps features on the device and compares Gram matrices. Both read the residual stream of the
same models on the same tokens; `ours-all-sites` reads attention and MLP outputs too. Every side runs in a process of its
own. Seconds include reading the adapters; memory is what a side needs above the loaded base; on a CPU both do the same
arithmetic for a token, so the time saved there is the padding, the host copies and the files.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

PADDED_LENGTH = 384
RANK = 8
ADAPTER_SCALE = 0.05  # of the random B of a run that stands for a trained one: work does not depend on values


@dataclass(frozen=True)
class Setting:
    """What both sides measure. runs: adapters compared with the base. threads: None, as torch decides."""

    model: str
    task: str
    examples: int
    runs: int
    device: str
    precision: str
    data: Path
    store: Path
    threads: int | None


@dataclass
class Meter:
    """Seconds of named parts; memory above what was resident before; bytes written."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0

    def __post_init__(self) -> None:
        from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise

        self._synchronise = lambda: synchronise(self.device)
        self._peak = lambda: {"host": peak_memory_bytes("cpu"), "device": self._on_device(peak_memory_bytes)}
        reset_peak_memory("cpu")
        if self.device != "cpu":
            reset_peak_memory(self.device)
        self._before = self._peak()

    def _on_device(self, peak: Callable[[str], int]) -> int:
        return peak(self.device) if self.device != "cpu" else 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._synchronise()
        started = time.perf_counter()
        yield
        self._synchronise()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def summary(self) -> dict[str, Any]:
        peak = {where: value - self._before[where] for where, value in self._peak().items()}
        total = sum(self.seconds.values())
        return {"seconds": self.seconds, "total_seconds": total, "memory_bytes": peak, "disk_bytes": self.disk_bytes}


# ------------------------------------------------------------------------------------- what a process of its own runs


def open_setting(setting: Setting) -> dict[str, Any]:
    """Base, task, probe and adapters. The rows were tokenised before; adapters are written by the first who asks."""
    import torch

    from lorascope.api import graph
    from lorascope.data.columns import ColumnStore
    from lorascope.drift.probe import choose_probe
    from lorascope.engine.store.directory import Store
    from lorascope.engine.warm import Warm
    from lorascope.models.loading import load_base
    from lorascope.models.tokenizer import load_tokenizer
    from lorascope.study.spec import Study
    from lorascope.tasks.description import task_from_result

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    store = Store(setting.store)
    (tokens,) = graph(Study.model_validate(document(setting)), data_dir=setting.data).of_kind("tokens")
    artifact, data = store.artifact(tokens.id), store.artifact(tokens.deps["data"])
    task, where = task_from_result(data.result), {"locations": tokens.locations, "cache_dir": store.cache_dir}
    base = load_base(
        tokens.params["model"], head=task.head, device=setting.device, warm=Warm(),
        pad_token_id=load_tokenizer(tokens.params["model"], **where).pad_token_id, **where,
    )  # fmt: skip
    probe = choose_probe(ColumnStore.open(artifact.path / "test"), setting.examples, seed=0)
    method, exports = write_adapters(base, setting)
    return {"base": base, "task": task, "columns": probe.columns, "method": method, "exports": exports}


def document(setting: Setting) -> dict[str, Any]:
    """A study whose `tokens` step gives the rows."""
    return {
        "name": "drift-benchmark",
        "question": "How long does it take?",
        "models": [setting.model],
        "tasks": [setting.task],
        "methods": [{"kind": "lora", "rank": RANK, "sites": ["query", "value"]}],
        "seeds": [1],
        "train": {"max_length": PADDED_LENGTH},
    }


def write_adapters(base: Any, setting: Setting) -> tuple[Any, dict[str, Path]]:
    """Runs with a random update in the place of a trained one, exported as the store exports them."""
    import torch

    from lorascope.methods.lora import LoRA
    from lorascope.study.methods.lora import LoraSpec
    from lorascope.study.spec import Seeds
    from lorascope.training.preparation import prepared_model

    method = LoRA(LoraSpec.model_validate({"name": "lora", "kind": "lora", "rank": RANK}))
    exports = {
        f"run {k}": setting.store / "adapters" / setting.model / setting.task / str(k) for k in range(setting.runs)
    }
    for seed, directory in enumerate(exports.values()):
        if directory.exists():
            continue
        model, _ = prepared_model(base, [method], [Seeds.model_validate(seed)])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    parameter.copy_(torch.empty(parameter.shape).normal_(0, ADAPTER_SCALE, generator=generator))
        method.export(model, directory, base=base)
    return method, exports


def naive(setting: Setting, *, keeps_tokens: bool) -> dict[str, Any]:
    """keeps_tokens: save whole hidden states; otherwise their mean over all positions."""
    import torch

    from lorascope.training.reading import Reading

    parts = open_setting(setting)
    columns, base = parts["columns"], parts["base"]
    reading = Reading(parts["task"], base.pad_token_id, setting.device, setting.precision)
    meter = Meter(setting.device)
    ckas: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(dir=setting.store) as folder, torch.no_grad():
        for name in ("base", *parts["exports"]):
            with meter.part("models"):
                model = base.model if name == "base" else reloaded(parts, name, setting)
            with meter.part("features"):
                found: list[list[np.ndarray]] = []
                for row in range(len(columns)):
                    inputs = reading.model_inputs(reading.batch(columns, np.array([row]), length=PADDED_LENGTH))
                    with reading.autocast():
                        states = model(**inputs, output_hidden_states=True).hidden_states
                    found.append([(s[0] if keeps_tokens else s[0].mean(0)).float().cpu().numpy() for s in states])
            with meter.part("saving"):
                for layer in range(len(found[0])):
                    path = Path(folder) / f"{name}-{layer}.npy"
                    np.save(path, np.stack([example[layer] for example in found]))
                    meter.disk_bytes += path.stat().st_size
            layers = len(found[0])
            del found
        for name in parts["exports"]:
            with meter.part("loading"):
                first, second = (
                    [np.load(Path(folder) / f"{who}-{layer}.npy") for layer in range(layers)] for who in ("base", name)
                )
                if keeps_tokens:
                    first, second = ([layer.mean(1) for layer in side] for side in (first, second))
            with meter.part("similarity"):
                ckas.append(np.array([[feature_space_cka(x, y) for y in second] for x in first]))
    return {**meter.summary(), "cka": ckas[0].diagonal().tolist()}


def reloaded(parts: dict[str, Any], name: str, setting: Setting) -> Any:
    """A run as peft reads it back, on the device."""
    return parts["method"].reload(parts["exports"][name], base=parts["base"]).to(setting.device)


def feature_space_cka(x: np.ndarray, y: np.ndarray) -> float:
    """||Yc' Xc||_F^2 / (||Xc' Xc||_F ||Yc' Yc||_F) (Kornblith et al. 2019, eq. 4). x, y: [examples, hidden]."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def ours(setting: Setting, *, sites: tuple[str, ...], together: bool) -> dict[str, Any]:
    """together: all runs through the base at once; otherwise each reloaded by peft."""
    from lorascope.drift.adapters import stack_adapters
    from lorascope.drift.extraction import extract, extract_runs

    parts = open_setting(setting)
    base, exports = parts["base"], parts["exports"]
    reading = Reading(parts["task"], base.pad_token_id, setting.device, setting.precision)
    meter = Meter(setting.device)
    with meter.part("models"):
        models = {} if together else {name: reloaded(parts, name, setting) for name in exports}
    with meter.part("features"):
        alone: dict[str, Any] = {"reading": reading, "sites": sites}
        reference = extract(base.model, parts["columns"], **alone)
        if together:
            stacked = stack_adapters(base, list(exports.values()))
            names = list(exports)
            found = extract_runs(stacked, parts["columns"], **alone, pooling="mean", names=names)
            features = dict(zip(names, found, strict=True))
        else:
            features = {name: extract(model, parts["columns"], **alone) for name, model in models.items()}
    with meter.part("similarity"):
        values = [cka for site in sites for cka in gram_space_ckas(reference, list(features.values()), site=site)]
    return {**meter.summary(), "cka": values[0].diagonal().tolist()}


def gram_space_ckas(reference: Any, others: list[Any], *, site: str) -> list[np.ndarray]:
    """CKA of all pairs of layers of the reference and each other model."""
    from lorascope.drift.grams import grams
    from lorascope.drift.similarity import linear_cka_pairs

    known = grams(reference[site], estimator="biased", site=site)
    own = [linear_cka_pairs(known, grams(other[site], estimator="biased", site=site)) for other in others]
    return [cka.cpu().numpy() for cka in own]


def side(name: str, setting: Setting) -> dict[str, Any]:
    """One side by name, in the process that calls it."""
    everything = ("residual", "attention", "mlp")
    return {
        "ours": lambda: ours(setting, sites=everything[:1], together=True),
        "ours-one-by-one": lambda: ours(setting, sites=everything[:1], together=False),
        "ours-all-sites": lambda: ours(setting, sites=everything, together=True),
        "naive-hidden": lambda: naive(setting, keeps_tokens=True),
        "naive-mean": lambda: naive(setting, keeps_tokens=False),
    }[name]()


# ------------------------------------------------------------------------------------------------------- the comparison


def in_a_process(name: str, setting: Setting) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, name, setting).result()


def rows_of(results: dict[str, list[dict[str, Any]]], work: str) -> list[dict[str, Any]]:
    """Seconds, memory and disk of `ours` and `ours-all-sites` against each other side."""
    quantities: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
        "seconds": ("s", lambda r: r["total_seconds"]),
        "host memory": ("bytes", lambda r: r["memory_bytes"]["host"]),
        "disk": ("bytes", lambda r: r["disk_bytes"]),
    }
    rows = []
    for mine in (name for name in results if name in ("ours", "ours-all-sites")):
        for peer in (name for name in results if name.startswith("naive") or name == "ours-one-by-one"):
            for what, (unit, read) in quantities.items():
                own, other = ([read(r) for r in results[name]] for name in (mine, peer))
                rows.append(ratios.compared(f"{work}: {what}, {mine}", own, other, peer_name=peer, unit=unit))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Extraction of features and their CKA.")
    parser.add_argument("--data", type=Path, required=True, help="directory with {task}_{split}.parquet")
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1, help="adapters compared with the base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["ours", "ours-all-sites", "naive-mean", "naive-hidden"])
    parser.add_argument(
        "--store", type=Path, default=None, help="where the rows are prepared; default: a temporary folder"
    )
    parser.add_argument("--output", type=Path, default=None, help="default: results/extraction-<machine>-<date>.json")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        store = given.store or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setting = Setting(
            given.model, given.task, given.examples, given.runs, given.device, given.precision, given.data, store,
            given.threads,
        )  # fmt: skip
        rows = compare(setting, sides=given.sides, repeats=given.repeats)
    output = given.output or default_output(given.device)
    ratios.write_list(output, rows)


def compare(setting: Setting, *, sides: list[str], repeats: int) -> list[dict[str, Any]]:
    import lorascope
    from lorascope.engine import provenance
    from lorascope.study.spec import Study

    study = Study.model_validate(document(setting))
    options: dict[str, Any] = {"store": setting.store, "results": setting.store / "results", "data_dir": setting.data}
    outcome = lorascope.run(study, **options, executor=lorascope.api.Workers("inline", ["cpu"]), only="tokens:*")
    if outcome.failed:
        raise SystemExit(f"the data could not be prepared: {next(iter(outcome.failed.values()))}")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in sides:
            results[name].append(in_a_process(name, setting))
            print(f"{repeat + 1}/{repeats} {name}: {describe(results[name][-1])}", flush=True)
    work = f"{setting.model}, {setting.task}, {setting.examples} examples, base and {setting.runs} runs, {setting.precision}"
    about = {key: value for key, value in provenance.describe(device=setting.device).items() if key != "host"}
    shown = {**asdict(setting), "data": "DIR", "store": "DIR"}
    rows = ratios.described(
        rows_of(results, work),
        machine=ratios.machine_of({**about, "threads": setting.threads} if setting.threads else about),
        versions=ratios.versions_of(about),
        command=ratios.command_line("benchmarks/drift/extraction.py"),
        setting=shown,
        about=about,
    )
    for row in rows:
        ratio = ratios.spelled_ratio(row)
        print(f"{row['work']}: {row['ours']:.4g} v {row['peer']:.4g} {row['unit']} ({row['peer_name']}), {ratio}")
    return rows


def describe(result: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in result["seconds"].items())
    memory = " + ".join(f"{value / 2**20:.0f}" for value in result["memory_bytes"].values())
    cka = " ".join(f"{value:.4f}" for value in result["cka"])
    return (
        f"{result['total_seconds']:.2f} s ({seconds}), {memory} MiB host + device, {result['disk_bytes'] / 2**20:.0f} MiB "
        f"on disk; CKA {cka}"
    )


def default_output(device: str) -> Path:
    machine = f"{os.cpu_count()}cpu" if device == "cpu" else device.partition(":")[0]
    return Path(__file__).parent / "results" / f"extraction-{platform.machine()}-{machine}-{datetime.date.today()}.json"


if __name__ == "__main__":
    main()
