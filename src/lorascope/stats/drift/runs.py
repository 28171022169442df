"""Drift of arms as numbers with variances: over seeds from the runs, over examples from bootstrap draws.

Drift (1 - debiased CKA to the base) is no mean over examples, so its variance over examples comes from draws: the drift of
every run under the same resamples. What `multibootstrap` does with a mean difference is done here with a mean drift and
with the log of a ratio of two drifts, log(method / reference), paired by seed and by resample:

    Var = s^2 / n + c

with s^2 the variance of the seeds' values and c the covariance that shared examples put between two seeds. s^2 already
holds what the finite probe adds to each seed on its own, so adding the whole variance over draws would count it twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.errors import DataError
from lorascope.stats.facts.study import Seeding
from lorascope.stats.quality.multibootstrap import (
    BootstrapEstimate,
    SeedDifferences,
    average_estimates,
    average_over_tasks,
    estimate_difference,
)

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.study.spec import Study

ROUNDING = 1e-9
"""Drift up to here is no drift: the same weights in other batches reach it (drift/extraction.py)."""

Key = tuple[str, str, str]  # model, task, method
NO_SHARED_SEED = "the two arms share no seed"


@dataclass(frozen=True, eq=False)
class DriftDraws:
    """Drift of one arm's runs under bootstrap resamples of the probe examples, the same for all arms of a (model, task).

    draws: [draws, seeds, points], a point being a site and a layer. summary: [draws, seeds], the mean over the layers 1..L
    of the residual stream that are not `unhealthy`. num_examples: in the probe. pooling: by which the features were made
    (None: as rows without one). others: the same by the study's other poolings.
    """

    seeds: tuple[str, ...]
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    draws: np.ndarray
    summary: np.ndarray
    num_examples: int
    pooling: str | None = None
    unhealthy: frozenset[tuple[str, int]] = frozenset()
    others: tuple[DriftDraws, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.sites) == len(self.layers)
        assert self.draws.shape[1:] == (len(self.seeds), len(self.sites)), self.draws.shape
        assert self.summary.shape == self.draws.shape[:2], self.summary.shape


@dataclass(frozen=True, eq=False)
class DriftSample:
    """One drift an arm's run: values [seeds], and [draws, seeds] the same under resamples of the examples."""

    method: str
    seeds: tuple[str, ...]
    values: np.ndarray
    draws: np.ndarray
    num_examples: int

    def at(self, seeds: Sequence[str]) -> DriftSample:
        """The same of chosen seeds."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        return DriftSample(self.method, tuple(seeds), self.values[chosen], self.draws[:, chosen], self.num_examples)

    def why_no_log(self) -> str:
        """Why these drifts have no logarithm, in words; empty where they have one."""
        for seed, value, draws in zip(self.seeds, self.values, self.draws.T, strict=True):
            if value <= ROUNDING:
                return (
                    f"{self.method}, seed {seed}, did not drift (estimated drift {value:.2g}): no ratio has a meaning"
                )
            vanished = int((draws <= ROUNDING).sum())
            if vanished:
                return (
                    f"the drift of {self.method}, seed {seed}, is 0 or less in {vanished} of {len(draws)} resamples of "
                    "the examples: too close to 0 for a ratio"
                )
        return ""


@dataclass(frozen=True, eq=False)
class DriftArm:
    """The drift of one (model, task, method) by one pooling. points: (site, layer). values: [seeds, points]; draws: [draws,
    seeds, points]. summary, summary_draws: the mean over the layers 1..L of the residual stream that are not `unhealthy`;
    summary is None where there are none. others: the same by the study's other poolings."""

    method: str
    seeds: tuple[str, ...]
    points: tuple[tuple[str, int], ...]
    values: np.ndarray
    draws: np.ndarray
    summary: np.ndarray | None
    summary_draws: np.ndarray
    num_examples: int
    pooling: str | None = None
    unhealthy: frozenset[tuple[str, int]] = frozenset()
    others: tuple[DriftArm, ...] = ()

    def averaged(self, site: str) -> tuple[int, ...]:
        """The layers of a site that averages are over: not the embedding, and none that is unhealthy in the base."""
        return tuple(layer for layer in self.layers(site) if layer > 0 and (site, layer) not in self.unhealthy)

    def over_every_layer(self) -> DriftArm:
        """The same with no layer left out."""
        blocks = [index for index, (site, layer) in enumerate(self.points) if site == "residual" and layer > 0]
        summary, draws = (
            (self.values[:, blocks].mean(1), self.draws[:, :, blocks].mean(2)) if blocks else (None, self.summary_draws)
        )
        return replace(self, unhealthy=frozenset(), summary=summary, summary_draws=draws)

    def at(self, seeds: Sequence[str]) -> DriftArm:
        """The same of chosen seeds."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        return replace(
            self,
            seeds=tuple(seeds),
            values=self.values[chosen],
            draws=self.draws[:, chosen],
            summary=None if self.summary is None else self.summary[chosen],
            summary_draws=self.summary_draws[:, chosen],
        )

    def layers(self, site: str) -> tuple[int, ...]:
        return tuple(layer for found, layer in self.points if found == site)

    def sample(self, site: str, layers: Sequence[int]) -> DriftSample:
        """The mean over some layers of a site."""
        chosen = [self.points.index((site, layer)) for layer in layers]
        values, draws = self.values[:, chosen].mean(1), self.draws[:, :, chosen].mean(2)
        return DriftSample(self.method, self.seeds, values, draws, self.num_examples)

    def overall(self) -> DriftSample | None:
        """A run's drift in one number: the mean over the healthy layers 1..L of the residual stream."""
        if self.summary is None:
            return None
        return DriftSample(self.method, self.seeds, self.summary, self.summary_draws, self.num_examples)


# ----------------------------------------------------------------------------------------------------------- reading


def read_drift_arms(study: Study, table: pd.DataFrame, draws: Mapping[Key, DriftDraws]) -> dict[Key, DriftArm]:
    """Every arm of the study whose drift was measured, seeds in the study's order.

    Raises DataError where rows and draws are not of the same runs, layers or examples, and where a run's summary row is
    not the mean of its layers.
    """
    rows: Any = table[(table["split"] == "probe") & (table["metric"] == "drift") & table["example_id"].isna()]
    groups: dict[Any, Any] = dict(iter(rows.groupby(["model", "task", "method"], sort=False)))
    order = [seed.label for seed in study.seeds]
    arms: dict[Key, DriftArm] = {}
    for model in study.models:
        for task in study.tasks:
            for method in study.methods:
                key = (model.name, task.name, method.name)
                if key not in groups:
                    continue
                if key not in draws:
                    raise _broken(key, "has drift but no draws of its examples, without which no interval can be given")
                found = [_read_arm(key, groups[key], drawn, order) for drawn in (draws[key], *draws[key].others)]
                if found[0].seeds:
                    arms[key] = replace(found[0], others=tuple(arm for arm in found[1:] if arm.seeds))
            _require_same_resamples({k: d for k, d in draws.items() if k[:2] == (model.name, task.name)})
    return arms


def _read_arm(key: Key, rows: Any, draws: DriftDraws, order: Sequence[str]) -> DriftArm:
    points = tuple(zip(draws.sites, draws.layers, strict=True))
    rows = rows[rows["pooling"].isna() if draws.pooling is None else rows["pooling"] == draws.pooling]
    layered, summed = rows[rows["layer"].notna()], rows[rows["layer"].isna() & (rows["site"] == "residual")]
    drifts = _by_name(key, layered, ("seed", "site", "layer"))
    means = _by_name(key, summed, ("seed",))
    seeds = tuple(seed for seed in order if any(seed == found for found, _, _ in drifts))
    for seed in seeds:
        if seed not in draws.seeds:
            raise _broken(key, f"has drift of seed {seed}, but its draws are of {', '.join(draws.seeds) or 'no seed'}")
        measured = {(site, int(layer)) for found, site, layer in drifts if found == seed}
        if measured != set(points):
            only = ", ".join(f"{site} {layer}" for site, layer in sorted(measured ^ set(points)))
            raise _broken(key, f"has rows and draws of different layers (seed {seed}: {only})")
    values = np.array([[drifts[seed, site, layer] for site, layer in points] for seed in seeds])
    values = values.reshape(len(seeds), len(points))
    chosen = [draws.seeds.index(seed) for seed in seeds]
    return DriftArm(
        method=key[2],
        seeds=seeds,
        points=points,
        values=values,
        draws=np.asarray(draws.draws, float)[:, chosen],
        summary=_summaries(key, means, values, seeds, [None if p in draws.unhealthy else p for p in points]),
        summary_draws=np.asarray(draws.summary, float)[:, chosen],
        num_examples=draws.num_examples,
        pooling=draws.pooling,
        unhealthy=draws.unhealthy,
    )


def _by_name(key: Key, rows: Any, names: Sequence[str]) -> dict[Any, float]:
    """Value by what names it (the bare name if one column does). Raises DataError for two values of one name."""
    columns = [rows[name].tolist() for name in names]
    places = columns[0] if len(names) == 1 else list(zip(*columns, strict=True))
    found: dict[Any, float] = {}
    for place, value in zip(places, rows["value"].tolist(), strict=True):
        if place in found:
            raise _broken(key, f"has two drifts of {' '.join(map(str, [place] if len(names) == 1 else place))}")
        found[place] = value
    return found


def _summaries(
    key: Key,
    means: Mapping[str, float],
    values: np.ndarray,
    seeds: Sequence[str],
    points: Sequence[tuple[str, int] | None],
) -> np.ndarray | None:
    """[seeds], checked against the layers. points: None for one that averages leave out. The result is None where the
    residual stream was not measured or no layer of it counts."""
    counted = [(index, point) for index, point in enumerate(points) if point is not None]
    blocks = [index for index, (site, layer) in counted if site == "residual" and layer > 0]
    if not blocks:
        return None
    summary = np.array([means.get(seed, math.nan) for seed in seeds])
    if not np.allclose(summary, values[:, blocks].mean(1), rtol=1e-4, atol=ROUNDING):
        raise _broken(key, "has no summary of its drift that is the mean over the residual stream's layers 1 to L")
    return summary


def _require_same_resamples(draws: Mapping[Key, DriftDraws]) -> None:
    """Arms of a (model, task) are compared draw by draw, so their draws must be of the same resamples."""
    sizes = {key: (len(found.draws), found.num_examples) for key, found in draws.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(
            f"{key[2]}: {count} draws of {examples} examples" for key, (count, examples) in sizes.items()
        )
        key = next(iter(sizes))
        raise DataError(
            f"the drifts on {key[1]} with {key[0]} are not of the same examples ({listed})", hint=_MEASURE_AGAIN
        )


_MEASURE_AGAIN = "The drift of all arms is measured on one probe; run the study's drift steps again."


def _broken(key: Key, what: str) -> DataError:
    return DataError(f"{key[2]} on {key[1]} with {key[0]} {what}", hint=_MEASURE_AGAIN)


# --------------------------------------------------------------------------------------------------------- estimates


def estimate_mean(sample: DriftSample) -> BootstrapEstimate:
    """The mean drift over seeds. One seed: its variance is over examples only."""
    return estimate_difference(_with_draws(sample.values, sample.draws, sample.num_examples), continuous=True)


def estimate_log_ratio(method: DriftSample, reference: DriftSample) -> tuple[BootstrapEstimate | None, str]:
    """The mean over shared seeds of log(drift of method / drift of reference), or None and the reason in words."""
    logs, reason = log_ratios(method, reference)
    return (estimate_difference(logs, continuous=True) if logs else None), reason


def log_ratios(
    method: DriftSample, reference: DriftSample, seeds: Sequence[str] | None = None
) -> tuple[SeedDifferences | None, str]:
    """log(drift of method / drift of reference) of every shared seed, or None and the reason in words. seeds: only these.

    A log needs drifts above 0, in every run and every resample; the debiased estimator may give less for a run that
    hardly moved. Nothing is clipped or left out, for that would make small drifts look larger than they are.
    """
    shared = tuple(seed for seed in method.seeds if seed in reference.seeds and (seeds is None or seed in seeds))
    if not shared:
        return None, NO_SHARED_SEED
    first, second = method.at(shared), reference.at(shared)
    reason = first.why_no_log() or second.why_no_log()
    if reason:
        return None, reason
    values, draws = np.log(first.values / second.values), np.log(first.draws / second.draws)
    return _with_draws(values, draws, first.num_examples), ""


def average_log_ratios(
    models: Sequence[Sequence[tuple[DriftSample, DriftSample]]], *, seeding: Seeding
) -> tuple[BootstrapEstimate | None, str]:
    """The mean of log(drift of method / drift of reference) over models and tasks. models: for each, (method, reference) of
    every task. Seeds that tasks share are averaged over tasks first; derived ones are independent between tasks."""
    if seeding == "derived":
        estimates = [[estimate_log_ratio(*pair) for pair in tasks] for tasks in models]
        reason = next((why for tasks in estimates for _, why in tasks if why), "")
        if reason:
            return None, reason
        by_task = [average_over_models([e for e, _ in column if e]) for column in zip(*estimates, strict=True)]
        return average_estimates(by_task), ""
    in_all = set.intersection(*(set(sample.seeds) for tasks in models for pair in tasks for sample in pair))
    by_model = []
    for tasks in models:
        logs = [log_ratios(*pair, seeds=sorted(in_all)) for pair in tasks]
        reason = next((why for _, why in logs if why), "")
        if reason:
            return None, reason
        by_model.append(estimate_difference(average_over_tasks([found for found, _ in logs if found]), continuous=True))
    return average_over_models(by_model), ""


def average_over_models(estimates: Sequence[BootstrapEstimate]) -> BootstrapEstimate:
    """The mean over models of the same tasks. They share examples but not resamples, so how their estimates move together
    with the examples is not known: the shared part is taken at its largest, as if they moved as one."""
    if len(estimates) == 1:
        return estimates[0]
    k = len(estimates)
    shared = float(np.mean([math.sqrt(e.shared_variance) for e in estimates])) ** 2
    own = sum(e.variance - e.shared_variance for e in estimates) / k**2
    return BootstrapEstimate(
        float(np.mean([e.mean for e in estimates])),
        own + shared,
        min(e.df for e in estimates),
        sum(e.seed_variance for e in estimates) / k**2,
        sum(e.interaction_variance for e in estimates) / k**2,
        shared,
        min(e.num_seeds for e in estimates),
        min(e.num_examples for e in estimates),
    )


def _with_draws(values: np.ndarray, draws: np.ndarray, num_examples: int) -> SeedDifferences:
    deviations = (draws - draws.mean(0)).T / math.sqrt(len(draws) - 1)
    return SeedDifferences(values, deviations, num_examples)
