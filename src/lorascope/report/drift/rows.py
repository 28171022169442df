"""The measurements of drift as a report asks for them: which rows they are, under which names, and their means.

The one idea: estimates with intervals come from `Analysis.drift`; what it does not hold (other measures, references,
weights, functions, snapshots) is read from the measurements table here and nowhere else. A measure whose rows are absent
gives an empty list or None, and whoever asked leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from lorascope.report.page.facts import Facts, Measured
from lorascope.stats.analysis import DriftAnalysis, DriftCorrelation, DriftReduction
from lorascope.stats.drift.health import BASE_REFERENCE, EFFECTIVE_RANK, is_healthy
from lorascope.stats.facts.found import DriftDefinition

SITES = {"residual": "residual stream", "attention": "attention output", "mlp": "MLP output"}
PARTS = {"overall": "all layers", "early": "early third", "middle": "middle third", "late": "late third"}
REFERENCES = {
    "seed-v-seed": "seed v seed",
    "random-initialisation": "random weights",
    "other-examples": "other examples",
}
_REFERENCE, _PROBE, _SNAPSHOT = "reference:", "probe:", "snapshot:"


def drift_of(facts: Facts) -> DriftAnalysis:
    """The analysis of drift, for those who are only called where there is one."""
    assert facts.analysis.drift is not None
    return facts.analysis.drift


def sites(facts: Facts) -> list[str]:
    """Sites that have a profile, the residual stream first."""
    found = dict.fromkeys(profile.site for profile in drift_of(facts).profiles)
    return [site for site in SITES if site in found] + [site for site in found if site not in SITES]


def num_examples(facts: Facts) -> list[int]:
    """Probe examples, task by task."""
    return list(drift_of(facts).num_examples.values())


def layer_rows(facts: Facts, metric: str, *, site: str = "residual", split: str = "probe") -> list[Measured]:
    """One a run and layer, of the study's methods, by the primary pooling."""
    # attention patterns are the same whatever examples the features were compared on, and name no split
    splits = (split, None) if site == "attention-pattern" else (split,)
    rows = (row for row in facts.measured(metric) if row.site == site and row.split in splits)
    return _of_arms(facts, [row for row in rows if row.layer is not None and _is_primary(facts, row)])


def averaged_rows(facts: Facts, metric: str, *, site: str = "residual", split: str = "probe") -> list[Measured]:
    """The `layer_rows` that averages are over: no layer that is unhealthy in the base."""
    rows, left_out = layer_rows(facts, metric, site=site, split=split), _unhealthy(facts, site=site, split=split)
    return [row for row in rows if (row.layer, row.model, row.task) not in left_out]


def run_drifts(facts: Facts) -> list[Measured]:
    """Each run's drift in one number by the primary pooling: one a run."""
    rows = (row for row in facts.measured("drift") if row.site == "residual" and row.split == "probe")
    return _of_arms(facts, [row for row in rows if row.layer is None and _is_primary(facts, row)])


def run_rows(facts: Facts, metric: str) -> list[Measured]:
    """A measure of a run as a whole (weights, text): one a run."""
    return _of_arms(facts, [row for row in facts.measured(metric) if row.site is None and row.layer is None])


def runs_with(facts: Facts, metric: str) -> list[tuple[Measured, float]]:
    """(a run's drift, another measure of it) of the runs that have both."""
    others = {row.run: row.value for row in run_rows(facts, metric)}
    return [(row, others[row.run]) for row in run_drifts(facts) if row.run in others]


def snapshot_rows(facts: Facts) -> list[tuple[int, Measured]]:
    """(update, drift of a layer of the residual stream of a run at a snapshot of its training)."""
    rows = [row for row in facts.measured("drift") if row.split and row.split.startswith(_SNAPSHOT)]
    rows = [row for row in _of_arms(facts, rows) if row.site == "residual" and row.layer is not None]
    return [(int(str(row.split).removeprefix(_SNAPSHOT)), row) for row in rows]


def probe_tasks(facts: Facts) -> list[str]:
    """Tasks on whose examples models of another task were probed."""
    splits = dict.fromkeys(row.split for row in facts.measured("drift") if row.split)
    return [split.removeprefix(_PROBE) for split in splits if split.startswith(_PROBE)]


def arm_mean(rows: Sequence[Measured], model: str, task: str, method: str) -> float | None:
    """Mean over layers, then over runs; layer 0 (embeddings) is left out, as it is from a run's drift."""
    runs = _run_means(rows, model, task, method)
    return fmean(runs) if runs else None


def arm_sd(rows: Sequence[Measured], model: str, task: str, method: str) -> float | None:
    """Standard deviation over runs of their means over layers; None below two runs."""
    runs = _run_means(rows, model, task, method)
    return stdev(runs) if len(runs) > 1 else None


def _run_means(rows: Sequence[Measured], model: str, task: str, method: str) -> list[float]:
    runs: dict[str, list[float]] = {}
    for row in rows:
        if (row.model, row.task, row.method) == (model, task, method) and row.layer != 0:
            runs.setdefault(row.run, []).append(row.value)
    return [fmean(values) for values in runs.values()]


def method_mean(rows: Sequence[Measured], method: str) -> float | None:
    """Mean of a method's runs, over all tasks and models."""
    values = [row.value for row in rows if row.method == method]
    return fmean(values) if values else None


def reference_profile(
    facts: Facts, reference: str, *, model: str, task: str, site: str = "residual", method: str | None = None
) -> dict[int, float]:
    """Layer -> drift of a reference. method: whose seeds, for seed v seed. Steps of several arms give the mean."""
    name = _REFERENCE + reference + (f":{method}" if method else "")
    layers: dict[int, list[float]] = {}
    for row in facts.measured("drift"):
        wanted = (row.model, row.task, row.method, row.site, row.split) == (model, task, name, site, "probe")
        if wanted and row.layer is not None and _is_primary(facts, row):
            layers.setdefault(row.layer, []).append(row.value)
    return {layer: fmean(layers[layer]) for layer in sorted(layers)}


def reference_mean(facts: Facts, reference: str, *, model: str, task: str, method: str | None = None) -> float | None:
    """Mean of a reference over the healthy layers of the residual stream, the embeddings left out."""
    profile = reference_profile(facts, reference, model=model, task=task, method=method)
    left_out = _unhealthy(facts, site="residual", split="probe")
    values = [value for layer, value in profile.items() if layer > 0 and (layer, model, task) not in left_out]
    return fmean(values) if values else None


def seed_v_seed(facts: Facts, *, model: str, task: str, method: str) -> float | None:
    """How far two seeds of an arm are apart."""
    return reference_mean(facts, "seed-v-seed", model=model, task=task, method=method)


def reductions(facts: Facts, *parts: str, site: str | None = "residual") -> list[DriftReduction]:
    """Those of the given parts in the study's order, the average over tasks first. site None: of every site."""
    tasks, known = ["*", *facts.tasks], list(SITES)

    def place(item: str, order: Sequence[str]) -> int:
        return order.index(item) if item in order else len(order)

    def rank(row: DriftReduction) -> tuple[int, ...]:
        methods = (place(row.method, facts.methods), place(row.reference, facts.methods))
        where = (place(row.task, tasks), place(row.site, known), parts.index(row.part), row.layer or 0)
        return (place(row.model, ["*", *facts.models]), *methods, *where)

    found = [row for row in drift_of(facts).reductions if row.part in parts and site in (None, row.site)]
    return sorted(found, key=rank)


def correlations(facts: Facts, other: str) -> list[DriftCorrelation]:
    """Those of drift with another quantity, whichever of them was called x."""
    return [row for row in drift_of(facts).correlations if {row.x, row.y} == {"drift", other}]


# ------------------------------------------------------------------------------------------------ definition and health


def definition(facts: Facts, model: str, task: str) -> DriftDefinition | None:
    """By what the drift of a (model, task) was measured; None in results of older versions."""
    return next((row for row in facts.stated.drift if (row.model, row.task) == (model, task)), None)


def base_rows(facts: Facts, metric: str, *, pooling: str | None = None, split: str = "probe") -> list[Measured]:
    """What the base itself shows, layer by layer: its health by a pooling, or its sinks (no pooling). Once, though every
    arm's step measured it."""
    name = _REFERENCE + BASE_REFERENCE
    found = {
        (row.model, row.task, row.site, row.layer): row
        for row in facts.measured(metric)
        if row.method == name and row.split == split and row.pooling == pooling
    }
    return list(found.values())


def unhealthy_layers(facts: Facts, model: str, task: str, *, site: str) -> list[int]:
    """The layers of a site that averages leave out, but the embedding."""
    found = _unhealthy(facts, site=site, split="probe")
    return sorted(layer for layer, *cell in found if layer and tuple(cell) == (model, task))


def _is_primary(facts: Facts, row: Measured) -> bool:
    known = definition(facts, row.model, row.task)
    return row.pooling is None or known is None or row.pooling == known.pooling


def _unhealthy(facts: Facts, *, site: str, split: str) -> set[tuple[int | None, str, str]]:
    """(layer, model, task) of what averages leave out. The probe of another task has a health of its own."""
    poolings = {known.pooling for known in facts.stated.drift}
    rows = [row for pooling in poolings for row in base_rows(facts, EFFECTIVE_RANK, pooling=pooling, split=split)]
    return {
        (row.layer, row.model, row.task)
        for row in rows
        if row.site == site and _is_primary(facts, row) and not is_healthy(row.value)
    }


def _of_arms(facts: Facts, rows: list[Measured]) -> list[Measured]:
    """Without references and baselines."""
    return [row for row in rows if row.method in facts.methods and row.task in facts.tasks]
