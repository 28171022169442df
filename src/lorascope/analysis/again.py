"""The statistics of a finished study redone from the folder of its report, without the store.

What lies there decides what can be redone: the measurements and a statement of the study are needed, all else is named where
it is absent. Folders of older versions hold less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lorascope.analysis.gates import broken_arms, gates_against
from lorascope.analysis.naming import classes_of, name_classes
from lorascope.analysis.stated import stated_study, study_of
from lorascope.engine.step import JSON
from lorascope.errors import DataError, StudyError
from lorascope.metrics.cost import COSTS
from lorascope.stats.analyse import analyse_study
from lorascope.stats.analysis import Analysis
from lorascope.stats.drift.draws import DRAWS, read_draws
from lorascope.stats.drift.runs import DriftDraws, Key
from lorascope.stats.facts.study import StudyFacts
from lorascope.stats.interval import rebuild
from lorascope.stats.serving.analyse import analyse_serving
from lorascope.stats.serving.analysis import ServingAnalysis
from lorascope.stats.serving.table import read_served
from lorascope.study.loading.load import read_old_study
from lorascope.study.spec import Study

if TYPE_CHECKING:
    import pandas as pd

_NO_FACTS = "facts.json: the report has no data, machines and versions, and only the gates that the measurements show"
_NO_DRAWS = f"{DRAWS}: intervals of drift are over seeds alone, narrower than over seeds and examples"
_NO_CURVES = "curves.parquet: the report has no learning curves"
_NO_PROCESSES = "facts.json: which engines were left out, and why, is taken from the last analysis"


@dataclass(frozen=True)
class Redone:
    """lacks: what the folder does not hold, and what follows from that."""

    analysis: Analysis
    facts: StudyFacts
    lacks: tuple[str, ...]


def analyse_folder(directory: Path, *, study: Study | None = None) -> Redone:
    """The analysis of the measurements in a folder. study: in place of the one that is stated there.

    Raises StudyError where there are no measurements, or no study, DataError where they are not of each other.
    """
    import pandas as pd

    table_file = directory / "measurements.parquet"
    if not table_file.exists():
        found = ", ".join(sorted(path.name for path in directory.glob("*"))[:8]) or "nothing"
        raise StudyError(
            f"{directory} holds no measurements.parquet; found {found}",
            hint="give the folder of a report, such as results/NAME; `lorascope run STUDY` writes it",
        )
    table = pd.read_parquet(table_file)
    before = _read_json(directory / "analysis.json") or {}
    stated = _read_json(directory / "facts.json")
    is_whole = stated is not None and "made_from" not in stated
    study = study or _study_there(directory, stated)
    _require_arms(study, table, directory)
    primary = _primary_metrics(study, stated or {}, before, directory)
    facts = StudyFacts.from_json(stated if is_whole and stated else _facts_from(table, study, primary))
    facts = replace(facts, study=type(facts.study).from_json(stated_study(study)), primary=primary)
    draws, drift_lacks = _draws_there(directory, table, before)
    serving, serving_lacks = _served_again(directory, facts if is_whole else None, before)
    lacks = (
        *([] if is_whole else [_NO_FACTS]),
        *([] if (directory / "curves.parquet").exists() else [_NO_CURVES]),
        *drift_lacks,
        *serving_lacks,
    )
    gates = [gate.to_json() for gate in facts.gates]
    analysis = analyse_study(
        study,
        table,
        primary=primary,
        broken_arms=broken_arms(gates),
        drift=draws,
        serving=serving,
        seeding=facts.seeding,
    )
    analysis = name_classes(analysis, classes_of(facts.data), study, primary=primary)
    if drift_lacks:
        analysis = _over_seeds_alone(analysis)
    notes = [*analysis.notes, *(f"Analysed again from its folder, which lacks {what}." for what in lacks)]
    return Redone(replace(analysis, notes=notes), facts, lacks)


def _read_json(path: Path) -> JSON | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _study_there(directory: Path, stated: JSON | None) -> Study:
    if stated is not None:
        return study_of(stated["study"])
    if (directory / "study.yaml").exists():
        return read_old_study(directory / "study.yaml")
    raise StudyError(
        f"{directory} does not say which study it is of: it has neither facts.json nor study.yaml",
        hint="name the study's file with --study",
    )


def _require_arms(study: Study, table: pd.DataFrame, directory: Path) -> None:
    models, methods = [m.name for m in study.models], [m.name for m in study.methods]
    served = table["method"].str.startswith("serving:").fillna(False)
    if not (table["model"].isin(models) & (table["method"].isin(methods) | served)).any():
        raise DataError(
            f"the measurements in {directory} are not of the study {study.name}: none is of its models and methods",
            hint=f"measured: {', '.join(table['model'].unique()[:3])}; name the right study with --study",
        )


def _primary_metrics(study: Study, stated: JSON, before: JSON, directory: Path) -> dict[str, str]:
    """Task -> its primary metric: as the facts say, else as the last analysis compared."""
    rows = [*before.get("comparisons", ()), *before.get("scores", ())]
    found = {**{row["task"]: row["metric"] for row in reversed(rows)}, **(stated.get("primary") or {})}
    if absent := [task.name for task in study.tasks if task.name not in found]:
        raise StudyError(
            f"{directory} does not say what the primary metric of {', '.join(absent)} is",
            hint="facts.json or analysis.json says it; copy them from where the study was analysed",
        )
    return {task.name: found[task.name] for task in study.tasks}


# ------------------------------------------------------------------------------------------------ what a table says alone


def _facts_from(table: pd.DataFrame, study: Study, primary: Mapping[str, str]) -> JSON:
    """Facts as far as the measurements show them."""
    tested: Any = table[(table["split"] == "test") & table["example_id"].isna()]
    baselines, floors = [], {}
    is_baseline = tested["method"].str.startswith("baseline:").fillna(False)
    counts: Any = table[table["example_id"].notna()].groupby(["task"])["example_id"].nunique()
    for key, rows in tested[is_baseline].groupby(["model", "task", "method", "metric"], sort=False):
        model, task, method, metric = cast("tuple[str, str, str, str]", key)
        name, values = method.partition(":")[2], rows["value"].tolist()
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        baselines.append({
            "model": model, "task": task, "name": name, "metric": metric, "mean": float(np.mean(values)), "sd": sd,
            "values": values, "num_examples": int(counts.get(task, 0)),
        })  # fmt: skip
        if metric == primary.get(task) and not rows["seed"].fillna("").astype(bool).any():
            floors.setdefault((model, task), {})[name] = values[0]
    arms: Any = tested[tested["method"].isin([method.name for method in study.methods])]
    gates = []
    for key, rows in arms.groupby(["model", "task", "method"], sort=False):
        model, task, method = cast("tuple[str, str, str]", key)
        of_primary = rows[rows["metric"] == primary.get(task)]["value"]
        if len(of_primary) and (found := floors.get((model, task))):
            arm = {"model": model, "task": task, "method": method, "seed": None}
            gates += gates_against(found, arm, metric=primary[task], mean=float(of_primary.mean()))
    return {
        "study": stated_study(study), "runs": _runs_from(table, study), "gates": gates, "baselines": baselines,
        "made_from": "measurements.parquet",
    }  # fmt: skip


def _runs_from(table: pd.DataFrame, study: Study) -> list[JSON]:
    names = [method.name for method in study.methods]
    costs: Any = table[table["split"].isna() & table["example_id"].isna() & table["method"].isin(names)]
    runs: dict[tuple[str, ...], JSON] = {}
    for run in costs[costs["metric"].isin(list(COSTS))].to_dict("records"):
        who = {name: str(run[name]) for name in ("run", "model", "task", "method", "seed")}
        value = int(run["value"]) if run["metric"].endswith(("_bytes", "_parameters")) else run["value"]
        runs.setdefault(tuple(who.values()), dict(who))[run["metric"]] = value
    return list(runs.values())


# ---------------------------------------------------------------------------------------------------------- measures


def _draws_there(directory: Path, table: pd.DataFrame, before: JSON) -> tuple[dict[Key, DriftDraws], list[str]]:
    if (directory / DRAWS).exists():
        return read_draws(directory / DRAWS), []
    rows: Any = table[(table["split"] == "probe") & (table["metric"] == "drift") & table["example_id"].isna()]
    rows = rows[~rows["method"].str.startswith("reference:").fillna(False)]
    if not len(rows):
        return {}, []
    sizes = ((before.get("drift") or {}).get("num_examples")) or {}
    return {
        cast("Key", key): _without_spread(arm, int(sizes.get(cast("Key", key)[1], 0)))
        for key, arm in rows.groupby(["model", "task", "method"], sort=False)
    }, [_NO_DRAWS]


def _without_spread(rows: Any, num_examples: int) -> DriftDraws:
    """An arm's drift as two equal draws: with no variance over examples."""
    layered, summed = rows[rows["layer"].notna()], rows[rows["layer"].isna() & (rows["site"] == "residual")]
    wide = layered.pivot_table(index="seed", columns=["site", "layer"], values="value", sort=False)
    means = summed.set_index("seed")["value"].reindex(wide.index).to_numpy(float)
    sites, layers = zip(*wide.columns, strict=True)
    values = wide.to_numpy(float)
    return DriftDraws(
        seeds=tuple(map(str, wide.index)),
        sites=tuple(map(str, sites)),
        layers=tuple(int(layer) for layer in layers),
        draws=np.stack([values, values]),
        summary=np.stack([means, means]),
        num_examples=num_examples,
    )


def _over_seeds_alone(analysis: Analysis) -> Analysis:
    """The analysis with intervals of drift called what they are without draws."""
    data = analysis.to_json()
    data["drift"] = {**_renamed(data["drift"]), "num_draws": 0}
    data["hypotheses"] = [_renamed(h) if h["metric"] == "drift" else h for h in data["hypotheses"]]
    return Analysis.from_json(data)


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return value.replace("over seeds and examples", "over seeds") if isinstance(value, str) else value


def _served_again(
    directory: Path, facts: StudyFacts | None, before: JSON
) -> tuple[ServingAnalysis | None, Sequence[str]]:
    """Where the facts are absent, arms that the last analysis left out are left out again, for its reasons."""
    frame = read_served(directory)
    if not len(frame):
        return None, ()
    if facts is not None and facts.serving is not None:
        said = facts.serving
        gates = [gate.to_json() for gate in said.gates]
        return analyse_serving(
            frame, gates=gates, facts=[fact.to_json() for fact in (*said.engines, *said.failures)]
        ), ()
    last = before.get("serving") or {}
    left_out = last.get("left_out", [])
    failed = "failed its equivalence gate"
    gates = [
        {**{key: row[key] for key in ("model", "arm", "workload", "setting")}, "passed": False, "what": row["reason"]}
        for row in left_out
        if row["reason"].startswith(failed)
    ]
    again = analyse_serving(frame, gates=gates)
    data = {**asdict(again), "left_out": left_out, "engines": last.get("engines", [])}
    return rebuild(ServingAnalysis, data), (_NO_PROCESSES,)
