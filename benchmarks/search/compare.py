"""The time of a search: lorascope's against the same trials one by one through Trainer, PEFT and Optuna.

    python benchmarks/search/compare.py --model smollm2-135m --tasks sst2 mrpc rte --data DIR --out benchmarks/search/results

Our side is the command `lorascope run STUDY --only 'search:*'` on a store that holds the tokens: workers' start and imports,
the gates before the trials, proposals, trials, summaries. The peer gets the very trials that ours proposed, through
`optuna.Study.enqueue_trial`, so that both do the same work; its imports and tokens are left out. README.md says the rest.
The comparison goes to OUT/<model>-<machine>-<pruning>-<date>.json, every trial and search to OUT/raw.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import ratios

from lorascope.api import graph, run
from lorascope.engine.store.directory import Store
from lorascope.study.loading.document import read_document
from lorascope.study.loading.load import load_study

PEER = "transformers.Trainer + PEFT + Optuna, one trial after another"
LORA = {"kind": "lora", "rank": 8, "sites": ["query", "value"]}


def main() -> int:
    given = arguments()
    document = read_document(given.study).data if given.study else study_document(given)
    take_settings(given, document)
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / "study.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    study = load_study(path)
    store = given.work / "store"
    options: dict[str, Any] = {"store": store, "data_dir": given.data}
    prepared = run(
        study, results=given.work / "results", executor="inline", devices=["cpu"], only="tokens:*", **options
    )
    if prepared.failed:
        raise SystemExit(f"the data could not be prepared: {next(iter(prepared.failed.values())).text}")
    ours = search_with_lorascope(given, path)
    planned = graph(study, **options)
    searches = planned.searches
    trials = [
        {"task": s.label.task, "method": s.method.kind, "params": dict(trial.params)}
        for s in searches
        for trial in s.found.trials
    ]
    part = chosen_part(trials, given.peer_trials, given.peer_tasks or given.tasks)
    figures = [
        search_figures(str(planned.labels[step.id]), Store(store).artifact(step.id).result)
        for step in planned.of_kind("search")
    ]
    report(given, ours, [], trials, figures)  # kept, whatever becomes of the peer
    if part:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            report(given, ours, pool.submit(search_with_peers, vars(given), part).result(), trials, figures)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--study",
        type=Path,
        default=None,
        help="a study file whose search is timed, instead of what --model to --max-length say",
    )
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--tasks", nargs="+", default=["docstrings"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--data", type=Path, default=None, help="directory of {task}_{split}.parquet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="of ours, on the one device")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--at-once", type=int, default=5)
    parser.add_argument("--space", default="wide", choices=["published", "wide"])
    parser.add_argument("--pruning", default="none", choices=["none", "halving"])
    parser.add_argument("--train-examples", type=int, default=None, help="the search's cap on rows")
    parser.add_argument("--validation-examples", type=int, default=None)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument(
        "--peer-trials", type=int, default=None, help="of each task and method; the rest is extrapolated (default: all)"
    )
    parser.add_argument("--peer-tasks", nargs="+", default=None, help="those the peer trains; the rest is extrapolated")
    parser.add_argument("--work", type=Path, default=Path("search-benchmark"), help="store and study; made if absent")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/search/results"))
    return parser.parse_args()


def study_document(given: argparse.Namespace) -> dict[str, Any]:
    methods = {"full": {"kind": "full"}, "lora": LORA}
    search: dict[str, Any] = {
        "trials": given.trials, "at_once": given.at_once, "space": given.space, "pruning": given.pruning,
    }  # fmt: skip
    if given.train_examples:
        search["train_examples"] = given.train_examples
    return {
        "name": "search-benchmark",
        "question": "How long does a search take?",
        "models": [given.model],
        "tasks": given.tasks,
        "methods": [methods[kind] for kind in given.methods],
        "data": {"validation_examples": given.validation_examples} if given.validation_examples else {},
        "train": {
            "epochs": given.epochs,
            "batch_size": given.batch_size,
            "max_length": given.max_length,
            "precision": given.precision,
            "early_stopping": None,
        },
        "search": search,
    }


def take_settings(given: argparse.Namespace, document: dict[str, Any]) -> None:
    """What both sides need to know of the study, as it says."""
    train, search = document["train"], document["search"]
    (model,), given.tasks = document["models"], document["tasks"]
    given.model = model["name"] if isinstance(model, dict) else model
    given.methods = [method["kind"] for method in document["methods"]]
    given.epochs, given.batch_size, given.precision = train["epochs"], train["batch_size"], train["precision"]
    given.train_examples = search.get("train_examples")
    given.space, given.pruning = search.get("space", "published"), search.get("pruning", "none")
    if train.get("early_stopping", {}) is not None or train.get("evaluations_per_epoch", 1) != 1:
        raise SystemExit("the peer validates once an epoch and trains to the end: so must the study")


def search_with_lorascope(given: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The command, timed from outside."""
    command = [
        sys.executable, "-m", "lorascope", "run", str(path), "--store", str(given.work / "store"), "--results",
        str(given.work / "results"), *(["--device", given.device] * given.workers), "--only", "search:*", "--json",
        *(["--data", str(given.data)] if given.data else []),
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"lorascope ended with {done.returncode}: {done.stdout[-2000:]}")
    computed = json.loads(done.stdout)["computed"]
    if not any(step.startswith("trial-") for step in computed):
        raise SystemExit(f"{given.work} holds this search already: give another --work for its time")
    return {"seconds": seconds, "steps": len(computed)}


def chosen_part(trials: list[dict[str, Any]], count: int | None, tasks: list[str]) -> list[dict[str, Any]]:
    """The first `count` trials of each method and of each of the tasks: those of the random round, no easier than the rest."""
    seen: dict[tuple[str, str], int] = {}
    part = []
    for trial in trials:
        key = trial["task"], trial["method"]
        seen[key] = seen.get(key, 0) + 1
        if trial["task"] in tasks and (count is None or seen[key] <= count):
            part.append(trial)
    return part


def search_with_peers(given: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every trial in turn; runs in a process of its own."""
    from peer import run_trials

    return run_trials(given, trials)


def search_figures(label: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What our search of one task and method took, all trials together."""
    trials, optimum = summary["trials"], summary["optimum"]
    spent = ("tokens", "unpruned_tokens", "training_seconds", "evaluation_seconds")
    return {
        "search": label,
        "trials": len(trials),
        "pruned": sum(trial["state"] == "pruned" for trial in trials),
        **{key: sum(trial[key] for trial in trials) for key in spent},
        "largest_gang": max(trial["gang"] for trial in trials),
        "best": optimum["value"] if optimum else None,
    }


def report(
    given: argparse.Namespace, ours: dict[str, Any], peer: list[dict[str, Any]], trials: list[Any], searches: list[Any]
) -> None:
    """Writes the comparison and what it rests on, and prints a line."""
    from lorascope.engine import provenance

    about = {key: value for key, value in provenance.describe(device=given.device).items() if key != "host"}
    what = f"{len(trials)} trials: {given.model}, {', '.join(given.tasks)}, {', '.join(given.methods)}, {given.space}"
    raw = {
        "work": what,
        "pruning": given.pruning,
        "workers": given.workers,
        "machine": about,
        "command": ratios.command_line("benchmarks/search/compare.py"),
        "searches": searches,
        "ours": ours,
        "peer": peer,
        "peer_whole_seconds": extrapolated(peer, trials) if peer else None,
        "num_trials": len(trials),
    }
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{given.model}-{ratios.short_machine(about)}-{given.pruning}".lower())
    name = f"{stem}-{datetime.date.today()}.json"
    ratios.write_raw(given.out / "raw" / name, raw)
    rows = rows_of(raw, file=f"raw/{name}")
    ratios.write_list(given.out / name, rows)
    for row in rows:
        sides = (ratios.spelled(row[side], row["unit"]) for side in ("ours", "peer"))
        note = f"; {row['note']}" if "note" in row else ""
        print(f"{row['work']}: {' v '.join(sides)}, ratio {ratios.spelled_ratio(row)}{note}", flush=True)
    print(given.out / name, flush=True)


def rows_of(raw: dict[str, Any], *, file: str) -> list[ratios.Row]:
    """The time of the search against the peer's, and what pruning spared of its tokens."""
    seconds = raw["ours"]["seconds"]
    work = f"{raw['work']}; pruning: {raw['pruning']}, workers: {raw['workers']}"
    rows = [ratios.measured_alone(work, seconds, unit="s")]
    if raw["peer"]:
        rows = [ratios.compared(work, [seconds], [raw["peer_whole_seconds"]], peer_name=PEER)]
        if len(raw["peer"]) < raw["num_trials"]:
            told = sum(trial["seconds"] for trial in raw["peer"])
            rows[0]["note"] = (
                f"the peer's time is extrapolated from {len(raw['peer'])} of {raw['num_trials']} trials ({told:.0f} s)"
            )
    if raw["pruning"] != "none":
        tokens, whole = (sum(search[key] for search in raw["searches"]) for key in ("tokens", "unpruned_tokens"))
        peer_name = "the same trials trained whole, counted"
        rows.append(ratios.compared(f"{work}: training tokens", [tokens], [whole], peer_name=peer_name, unit="tokens"))
    about = raw["machine"]
    return ratios.described(
        rows,
        machine=about and ratios.machine_of(about),
        versions=about and ratios.versions_of(about),
        command=raw["command"],
        raw=file,
    )


def extrapolated(peer: list[dict[str, Any]], trials: list[dict[str, Any]]) -> float:
    """Seconds of all trials, as if each took what those of its method took on average."""
    seconds: dict[str, list[float]] = {}
    for trial in peer:
        seconds.setdefault(trial["method"], []).append(trial["seconds"])
    return sum(sum(seconds[t["method"]]) / len(seconds[t["method"]]) for t in trials)


if __name__ == "__main__":
    raise SystemExit(main())
