"""The `analysis` step: from finished artifacts to the measurements table, the curves, the facts and the verdicts.

What it commits is all a report reads: measurements.parquet (the long table), curves.parquet, analysis.json (statistics)
and facts.json (data, runs, gates, baselines, provenance). It neither trains nor loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from lorascope.data.task import Task
from lorascope.data.tasks import task_from_result
from lorascope.engine.artifact import Artifact
from lorascope.engine.context import StepContext
from lorascope.engine.step import JSON
from lorascope.errors import GateFailure
from lorascope.evaluation.function import prediction_change
from lorascope.evaluation.serving_record import read_serving
from lorascope.stats.analyse import analyse_study
from lorascope.stats.drift import DriftDraws
from lorascope.stats.serving import analyse_serving
from lorascope.study.spec import Study

COSTS = {
    "training_seconds": "s",
    "peak_memory_bytes": "byte",
    "trainable_parameters": "1",
    "energy_joules": "J",
    "export_bytes": "byte",
    "tokens_per_second": "1/s",
    "mfu": "fraction",
}
_COLUMNS = ("run", "model", "task", "method", "seed", "split", "example_id", "site", "layer", "metric", "value", "unit")


@dataclass(frozen=True)
class Finished:
    """The artifacts of a study by what they are: (label, artifact) of each kind."""

    parts: list[tuple[str, Mapping[str, str | None], Artifact]]

    def of(self, kind: str, **label: str | None) -> list[tuple[Mapping[str, str | None], Artifact]]:
        """Those of one kind whose label agrees with what is given."""
        return [
            (found, artifact)
            for role, found, artifact in self.parts
            if role.partition(":")[0] == kind and all(found[key] == value for key, value in label.items())
        ]

    def task(self, name: str | None) -> Task:
        return task_from_result(self.of("data", task=name)[0][1].result)


def analyse(context: StepContext) -> JSON:
    """params: study, steps (role -> label), failures, missing_runs; deps: role -> artifact."""
    params = context.step.params
    finished = Finished([(role, label, context.deps[role]) for role, label in params["steps"].items()])
    check_same_examples(finished)
    study = Study.model_validate(_with_any_source(params["study"]))
    measurements = pd.concat([*_measurements(finished), *_function_rows(finished, study)], ignore_index=True)
    measurements.to_parquet(context.out / "measurements.parquet", index=False, compression="zstd")
    _curves(finished).to_parquet(context.out / "curves.parquet", index=False, compression="zstd")
    primary = {task.name: primary_metric(finished, task.name) for task in study.tasks}
    gates = [*_gates(finished), *arm_gates(finished, primary)]
    record = read_serving(finished.of("serving"))
    served = None
    if record is not None:
        record.figures.to_parquet(context.out / "serving.parquet", index=False, compression="zstd")
        served = analyse_serving(record.figures, gates=record.gates, facts=[*record.engines, *record.failures])
    analysis = analyse_study(
        study, measurements, primary=primary, broken_arms=_broken(gates), drift=drift_draws(finished), serving=served
    )
    (context.out / "analysis.json").write_text(json.dumps(analysis.to_json(), indent=1, allow_nan=False))
    facts = {
        "study": params["study"],
        "data": _data_facts(finished),
        "runs": list(_run_facts(finished, study)),
        "gates": gates,
        "baselines": list(_baseline_facts(finished)),
        "published": [
            {"task": label["task"], **figure}
            for label, artifact in finished.of("data")
            for figure in task_from_result(artifact.result).published()
        ],
        "failures": params["failures"],
        "missing_runs": params["missing_runs"],
        "provenance": _provenance(finished),
        "protocol_gap": None,
        "not_measured": [
            {**label, "what": what, "why": why}
            for label, artifact in finished.of("drift")
            for what, why in artifact.result["not_measured"].items()
        ],
    }
    if tuned := _tuned(finished, study):
        facts["tuned"] = tuned
    if searches := finished.of("search"):
        facts["search"] = [{**label, **artifact.result} for label, artifact in searches]
    if record is not None:
        kinds = ("gates", "engines", "failures", "trials", "merging")
        facts["serving"] = {kind: getattr(record, kind) for kind in kinds}
    (context.out / "facts.json").write_text(json.dumps(facts, indent=1, allow_nan=False))
    return {
        "verdicts": {result.name: result.verdict for result in analysis.hypotheses},
        "num_runs": len(facts["runs"]),
        "gates_failed": [gate["gate"] for gate in gates if not gate["passed"]],
    }


def primary_metric(finished: Finished, task: str) -> str:
    """The task's primary metric. One whose data could not be prepared has no score at all; what it would be called does
    not matter then."""
    return finished.task(task).primary_metric if finished.of("data", task=task) else "accuracy"


def _with_any_source(study: JSON) -> JSON:
    """The study's models are known here by name only; what they are is in the steps."""
    return {**study, "models": [model["name"] for model in study["models"]]}


def check_same_examples(finished: Finished) -> None:
    """Every arm and baseline of a task was scored, and every arm probed for drift, on the identical examples, or nothing is
    compared."""
    hashes: dict[tuple[str, str | None], dict[str, str]] = {}
    for kind in ("evaluate", "baseline"):
        for label, artifact in finished.of(kind):
            found = hashes.setdefault(("scored on different test", label["task"]), {})
            found[artifact.id] = artifact.result["example_ids_sha256"]
    for label, artifact in finished.of("drift"):
        found = hashes.setdefault(("probed on different", label["task"]), {})
        found[artifact.id] = artifact.result["probes"]["probe"]["ids_sha256"]
    for (how, task), found in hashes.items():
        if len(set(found.values())) > 1:
            raise GateFailure(
                f"the arms of {task} were {how} examples: {', '.join(sorted(found))}",
                hint="run `lorascope verify STUDY`; a store must not mix data of different origin",
            )


# ---------------------------------------------------------------------------------------------------- measurements


def _measurements(finished: Finished) -> Iterator[pd.DataFrame]:
    for label, artifact in finished.of("evaluate"):
        task = finished.task(label["task"])
        predictions = pd.read_parquet(artifact.file("predictions.parquet"))
        run = {**label, "run": artifact.step.deps["train"]}
        yield _per_example(task, predictions, run)
        yield _summary(run, "test", artifact.result["test"])
    for label, artifact in finished.of("train"):
        run = {**label, "run": artifact.id}
        yield _summary(run, "validation", artifact.result["validation"])
        costs = {name: artifact.result[name] for name in COSTS if artifact.result.get(name) is not None}
        yield _rows(run, split=None, metric=list(costs), value=list(costs.values()), unit=[COSTS[c] for c in costs])
        if (artifact.path / "snapshots.parquet").exists():
            yield _snapshot_rows(run, pd.read_parquet(artifact.file("snapshots.parquet")))
    for label, artifact in finished.of("baseline"):
        task = finished.task(label["task"])
        frame = pd.read_parquet(artifact.file("predictions.parquet"))
        for key, predictions in frame.groupby(["baseline", "seed"], sort=False):
            name, seed = cast("tuple[str, str]", key)
            run = {**label, "run": artifact.id, "method": f"baseline:{name}", "seed": seed}
            yield _per_example(task, predictions, run)
            yield _summary(run, "test", task.metrics(predictions))
    for label, artifact in finished.of("drift"):
        yield from _drift_rows(label, artifact)


def _snapshot_rows(run: Mapping[str, Any], seen: pd.DataFrame) -> pd.DataFrame:
    """Drift of the residual stream on the way, split `snapshot:UPDATE`."""
    rows = pd.DataFrame(
        {
            **{key: run[key] for key in ("run", "model", "task", "method", "seed")},
            "split": "snapshot:" + seen["update"].astype(str),
            "site": "residual",
            "layer": seen["name"].astype("Int64"),
            "metric": "drift",
            "value": seen["value"],
            "unit": "1",
        }
    )
    return rows


def _function_rows(finished: Finished, study: Study) -> Iterator[pd.DataFrame]:
    """How differently a run decides the test examples: from the reference method's run of the same seed, and from its own
    arm's runs of other seeds (the mean over them), without which the first says little."""
    reference = next((method.name for method in study.methods if method.kind == "full"), study.methods[0].name)
    runs = {
        (label["model"], label["task"], label["method"], label["seed"]): artifact
        for label, artifact in finished.of("evaluate")
    }
    read = {key: pd.read_parquet(artifact.file("predictions.parquet")) for key, artifact in runs.items()}
    for (model, task, method, seed), artifact in runs.items():
        own = read[model, task, method, seed]
        others = [rows for key, rows in read.items() if key[:3] == (model, task, method) and key[3] != seed]
        paired = read.get((model, task, reference, seed)) if method != reference else None
        compared = {"between_seeds": others, f"from_{reference}": [] if paired is None else [paired]}
        values = {
            f"{name}_{against}": float(np.mean([change[column].mean() for change in changes]))
            for against, predictions in compared.items()
            if (changes := [prediction_change(rows, own) for rows in predictions])
            for name, column in (("flips", "flip"), ("kl", "kl"), ("js", "js"))
        }
        label = {"run": artifact.step.deps["train"], "model": model, "task": task, "method": method, "seed": seed}
        units = ["fraction" if name.startswith("flips") else "nat" for name in values]
        yield _rows(label, split="test", metric=list(values), value=list(values.values()), unit=units)


def _drift_rows(label: Mapping[str, str | None], artifact: Artifact) -> Iterator[pd.DataFrame]:
    """Every run's distances to its base, then what they are to be read beside, as methods `reference:...`."""
    rows = pd.read_parquet(artifact.file("drift.parquet"))
    yield rows.assign(**{key: label[key] for key in ("model", "task", "method")}, example_id=None)
    references = pd.read_parquet(artifact.file("references.parquet"))
    between_seeds = references["reference"] == "seed-v-seed"
    own = references["reference"].where(~between_seeds, f"seed-v-seed:{label['method']}")
    yield references.drop(columns="reference").assign(
        run=artifact.id, model=label["model"], task=label["task"], method="reference:" + own, seed="*", unit="1",
        example_id=None,
    )  # fmt: skip


def drift_draws(finished: Finished) -> dict[tuple[str, str, str], DriftDraws]:
    """(model, task, method) -> its bootstrap draws."""
    found = {}
    for label, artifact in finished.of("drift"):
        with np.load(artifact.file("draws.npz")) as file:
            stored = dict(file)
        key = cast("tuple[str, str, str]", (label["model"], label["task"], label["method"]))
        found[key] = DriftDraws(
            seeds=tuple(stored["seeds"].tolist()),
            sites=tuple(stored["sites"].tolist()),
            layers=tuple(stored["layers"].tolist()),
            draws=stored["draws"],
            # Without the residual stream there is no drift in one number, nor a row of it in the measurements.
            summary=stored.get("summary", np.full(stored["draws"].shape[:2], np.nan)),
            num_examples=artifact.result["num_examples"],
        )
    return found


def _per_example(task: Task, predictions: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    columns = {
        **task.example_scores(predictions),
        "label": predictions["label"].to_numpy(dtype=np.float64),
        "prediction": predictions["prediction"].to_numpy(dtype=np.float64),
    }
    ids = predictions["example_id"].to_numpy()
    return _rows(
        run,
        split="test",
        example_id=np.tile(ids, len(columns)),
        metric=np.repeat(list(columns), len(ids)),
        value=np.concatenate(list(columns.values())),
        unit=np.repeat(["nat" if name == "loss" else "1" for name in columns], len(ids)),
    )


def _summary(run: Mapping[str, Any], split: str, scores: Mapping[str, float]) -> pd.DataFrame:
    units = ["nat" if name == "loss" else "1" for name in scores]
    return _rows(run, split=split, metric=list(scores), value=list(scores.values()), unit=units)


def _rows(run: Mapping[str, Any], **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    for name in _COLUMNS:
        if name not in frame:
            frame[name] = run.get(name)
    kinds = {name: "float64" if name == "value" else "string" for name in _COLUMNS}
    return frame.reindex(columns=list(_COLUMNS)).astype(kinds)


def _curves(finished: Finished) -> pd.DataFrame:
    frames = [
        pd.read_parquet(artifact.file("curves.parquet")).assign(run=artifact.id, **label)
        for label, artifact in finished.of("train")
    ]
    return pd.concat(frames, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- facts


def _data_facts(finished: Finished) -> JSON:
    facts = {}
    for label, artifact in finished.of("data"):
        tokens = finished.of("tokens", task=label["task"])
        result = artifact.result
        facts[label["task"]] = {
            **{key: result[key] for key in ("num_examples", "label_counts", "sha256", "source")},
            "duplicates": {pair: n - result["duplicates_dropped"][pair] for pair, n in result["duplicates"].items()},
            "example_ids_sha256": result["example_ids_sha256"],
            "dropped_duplicates": sum(result["duplicates_dropped"].values()),
            "label_names": result["task"]["label_names"],
            "truncated_fraction": {token["model"]: art.result["truncated_fraction"] for token, art in tokens},
        }
    return facts


def _run_facts(finished: Finished, study: Study) -> Iterator[JSON]:
    for label, artifact in finished.of("train"):
        params = artifact.step.params
        yield {
            "run": artifact.id,
            **label,
            **artifact.result,
            "precision": params["train"]["precision"],
            "learning_rate": params["learning_rate"],
            "batch_size": params["train"]["batch_size"],
        }


def _tuned(finished: Finished, study: Study) -> list[JSON]:
    """What the runs of an arm were trained with, where a search or a file set it."""
    found: dict[tuple[str | None, ...], JSON] = {}
    for label, artifact in finished.of("train"):
        if study.search is None and study.method(str(label["method"])).hyperparameters is None:
            continue
        params = artifact.step.params
        settings = {**params["method"], "learning_rate": params["learning_rate"], "train": params["train"]}
        arm = {key: label[key] for key in ("model", "task", "method")}
        found.setdefault(tuple(arm.values()), {**arm, "settings": settings})
    return list(found.values())


def _gates(finished: Finished) -> list[JSON]:
    return [
        {**gate, **label}
        for kind in ("sanity", "evaluate")
        for label, artifact in finished.of(kind)
        for gate in artifact.result["gates"]
    ]


def arm_gates(finished: Finished, primary: Mapping[str, str]) -> list[JSON]:
    """Every arm beats the majority class and the linear probe on the test set, in the mean over its seeds.

    An arm that does not is broken (Kornblith et al. 2019 call frozen features the least one may expect): its other
    numbers are shown, but no hypothesis rests on them.
    """
    gates = []
    arms = dict.fromkeys((found["model"], found["task"], found["method"]) for found, _ in finished.of("evaluate"))
    for model, task, method in arms:
        metric = primary[str(task)]
        runs = finished.of("evaluate", model=model, task=task, method=method)
        mean = float(np.mean([artifact.result["test"][metric] for _, artifact in runs]))
        arm = {"model": model, "task": task, "method": method, "seed": None}
        baselines = finished.of("baseline", model=model, task=task)
        if not baselines:
            missing = "the baselines were not measured, so nothing shows that the arm learnt anything"
            gates.append(
                {"gate": "beats baselines", **arm, "passed": False, "value": mean, "threshold": None, "detail": missing}
            )
        for _, artifact in baselines:
            floors = {s["name"]: s["metrics"][metric] for s in artifact.result["scores"] if s["name"] != "random"}
            for name, floor in floors.items():
                detail = f"mean test {metric} {mean:.3f}, {name} {floor:.3f}"
                gate = {
                    "gate": f"beats {name}",
                    "passed": mean > floor,
                    "value": mean,
                    "threshold": floor,
                    "detail": detail,
                }
                gates.append({**arm, **gate})
    return gates


def _broken(gates: list[JSON]) -> dict[tuple[str, str, str], str]:
    """(model, task, method) -> why no hypothesis may rest on it."""
    return {
        (gate["model"], gate["task"], gate["method"]): f"fails the gate `{gate['gate']}` ({gate['detail']})"
        for gate in gates
        if not gate["passed"]
    }


def _baseline_facts(finished: Finished) -> Iterator[JSON]:
    for label, artifact in finished.of("baseline"):
        scores = artifact.result["scores"]
        for name in dict.fromkeys(score["name"] for score in scores):
            for metric in scores[0]["metrics"]:
                values = [score["metrics"][metric] for score in scores if score["name"] == name]
                yield {
                    "model": label["model"], "task": label["task"], "name": name, "metric": metric,
                    "mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "values": values, "num_examples": artifact.result["num_examples"],
                }  # fmt: skip


def _provenance(finished: Finished) -> JSON:
    """What the steps recorded of machines, code and versions. Where steps differ, every value is listed."""
    records = [artifact.provenance for _, _, artifact in finished.parts]
    hardware = ("device_name", "device", "num_cpus", "workers_on_device", "system")
    commits = [record["source"] for record in records if record.get("source")]
    versions = dict.fromkeys(name for record in records for name in record.get("versions", {}))
    return {
        "started": min((record["started"] for record in records if "started" in record), default=None),
        "finished": max((record["finished"] for record in records if "finished" in record), default=None),
        "hardware": {key: _distinct(record.get(key) for record in records) for key in hardware},
        "git": {
            "commit": _distinct(commit.get("commit") for commit in commits),
            "dirty": any(commit.get("is_modified") for commit in commits) if commits else None,
        },
        "versions": {
            "python": _distinct(record.get("python") for record in records),
            **{name: _distinct(record.get("versions", {}).get(name) for record in records) for name in versions},
        },
    }


def _distinct(values: Iterable[Any]) -> Any:
    """The one value that all steps agree on, None if none knows it, else all of them as text."""
    found = list(dict.fromkeys(value for value in values if value is not None))
    return found[0] if len(found) == 1 else ", ".join(map(str, found)) or None
