"""What a report states of a study besides its numbers: data, runs, settings, baselines, machines and versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lorascope.analysis.finished import Finished
from lorascope.engine.context import StepContext
from lorascope.engine.step import JSON
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.per_task import task_settings
from lorascope.study.spec import Study
from lorascope.tasks.description import task_from_result


def study_facts(context: StepContext, finished: Finished, study: Study, *, gates: Sequence[JSON]) -> StudyFacts:
    """All but what measures state. gates: of all steps and arms."""
    params = context.step.params
    who = {context.deps[role].id: text for role, text in params.get("proposed_by", {}).items()}
    searches = [
        {**label, **artifact.result, "proposed_by": who.get(artifact.id)} for label, artifact in finished.of("search")
    ]
    of_some = {"tuned": tuned_settings(finished, study), "search": searches}
    return StudyFacts.from_json(
        {
            "study": params["study"],
            "data": data_facts(finished),
            "runs": list(run_facts(finished, study)),
            "gates": gates,
            "baselines": list(baseline_facts(finished)),
            "published": [
                {"task": label["task"], **figure}
                for label, artifact in finished.of("data")
                if artifact.step.params["protocol"] != "resplit"  # its test set is another
                for figure in task_from_result(artifact.result).published()
            ],
            "failures": params["failures"],
            "missing_runs": params["missing_runs"],
            "seeding": params["seeding"],
            "provenance": provenance(finished),
            "protocol_gap": None,
            "not_measured": [],
            **{key: found for key, found in of_some.items() if found},
        }
    )


def data_facts(finished: Finished) -> JSON:
    """By task."""
    facts = {}
    for label, artifact in finished.of("data"):
        tokens = finished.of("tokens", task=label["task"])
        result = artifact.result
        facts[label["task"]] = {
            **{key: result[key] for key in ("num_examples", "sha256", "source")},
            "duplicates": {pair: n - result["duplicates_dropped"][pair] for pair, n in result["duplicates"].items()},
            "example_ids_sha256": result["example_ids_sha256"],
            "dropped_duplicates": sum(result["duplicates_dropped"].values()),
            "truncated_fraction": {token["model"]: art.result["truncated_fraction"] for token, art in tokens},
            "unit": finished.task(label["task"]).inputs.unit,
            "protocol": artifact.step.params["protocol"],
            **({"dropped_parts": sum(parts.values())} if (parts := result.get("parts_dropped")) else {}),
            **_balance(result),
        }
    return facts


def _balance(result: Mapping[str, Any]) -> JSON:
    """How often each class occurs, as the task's scoring described it; nothing for a task without classes."""
    if "balance" in result:
        return {"balance": result["balance"]}
    counts = result.get("label_counts")
    if counts is None:
        return {}
    names = result["task"].get("label_names") or list(next(iter(counts.values())))
    return {"label_names": names, "label_counts": counts}


def run_facts(finished: Finished, study: Study) -> Iterator[JSON]:
    """One a run."""
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


def tuned_settings(finished: Finished, study: Study) -> list[JSON]:
    """What the runs of an arm were trained with, where a search, a file or a task set it."""
    tasks_differ = any(task_settings(task) or task.methods for task in study.tasks)
    found: dict[tuple[str | None, ...], JSON] = {}
    for label, artifact in finished.of("train"):
        is_written = study.search is None and study.method(str(label["method"])).hyperparameters is None
        if is_written and not tasks_differ:
            continue
        params = artifact.step.params
        settings = {**params["method"], "learning_rate": params["learning_rate"], "train": params["train"]}
        arm = {key: label[key] for key in ("model", "task", "method")}
        found.setdefault(tuple(arm.values()), {**arm, "settings": settings})
    return list(found.values())


def baseline_facts(finished: Finished) -> Iterator[JSON]:
    """One a (model, task, baseline, metric), over its seeds."""
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


def provenance(finished: Finished) -> JSON:
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
