"""The runs of one arm and their base: every model is loaded once, read, and dropped.

Adapters of one base are stacked and go through it together; whole models come one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lorascope.drift.adapters import stack_adapters
from lorascope.drift.attention import AttentionPatterns, compare_attention
from lorascope.drift.beside import Cancellation, has_room_beside
from lorascope.drift.extraction import Features, PooledSites, read_runs
from lorascope.drift.forgetting import Forgetting, LanguageHead, TextLoss, text_loss
from lorascope.drift.grams import Grams, grams
from lorascope.drift.health import LayerHealth, layer_health
from lorascope.drift.probe import Pooling, Probe, TokenSample
from lorascope.drift.record import PROBE, Draws, write_representation
from lorascope.drift.resampling import bootstrap_cka, bootstrap_counts
from lorascope.drift.similarity import linear_cka_pairs
from lorascope.drift.sinks import SinkFigures, Sinks, sink_rows
from lorascope.drift.text import TextWindows
from lorascope.drift.updates import base_matrices, weight_updates
from lorascope.drift.views import Points, View, distances, is_block_output, layer_number, mean_drift
from lorascope.drift.weights import device_bytes, measure_updates, relative_parameter_change, weight_measurements
from lorascope.errors import StudyError
from lorascope.methods.base import Method, NotStackable
from lorascope.methods.stacked import view as view_of_run
from lorascope.models.blocks import check_comparable
from lorascope.stats.drift.health import SINK_NORM, SINK_NORM_CHANGE, SINK_SHARE
from lorascope.training.hardware import synchronise

if TYPE_CHECKING:
    from lorascope.data.columns import Examples
    from lorascope.models.loading import BaseModel
    from lorascope.study.measure import DriftSpec
    from lorascope.training.reading import Reading

PRECISION = "fp32"
"""Of all models alike, whatever they were trained in: bf16's rounding would be a drift of its own (extraction.py)."""
SINK_UNITS = {SINK_SHARE: "fraction", SINK_NORM: "1", SINK_NORM_CHANGE: "1"}
_BOOTSTRAP_SEED, _CONTROL_SEED = 20261124, 0


@dataclass(frozen=True)
class ExportedRun:
    """A trained run: its step's id, its seeds' label, the directory of its export."""

    id: str
    seed: str
    export: Path


@dataclass(frozen=True)
class ShownByBase:
    """What the base shows on a probe by one pooling. rows: what a row of the features is. left_out: layers that are constant
    there, in words."""

    rows: Pooling
    points: Points
    view: View
    health: Sequence[LayerHealth]
    left_out: list[str]

    @property
    def unhealthy(self) -> frozenset[tuple[str, int]]:
        """The (site, layer) that averages over layers leave out."""
        return frozenset((row.site, row.layer) for row in self.health if not row.is_healthy)


@dataclass(frozen=True)
class ProbeOfBase:
    """Examples that all models look at, with what the base shows on them. split: "probe", or "probe:TASK" of another task.
    wanted, shown: by pooling, the primary one first. sinks: the base's, which are the same tokens for all models."""

    split: str
    probe: Probe
    reading: Reading
    wanted: Mapping[str, PooledSites]
    shown: Mapping[str, ShownByBase]
    sinks: Sinks
    figures: SinkFigures

    @property
    def primary(self) -> str:
        """The pooling of a run's drift in one number."""
        return next(iter(self.shown))

    @property
    def pooling(self) -> Pooling:
        return self.shown[self.primary].rows

    @property
    def points(self) -> Points:
        return self.shown[self.primary].points

    @property
    def base(self) -> View:
        return self.shown[self.primary].view

    @property
    def left_out(self) -> list[str]:
        return self.shown[self.primary].left_out

    @property
    def num_rows(self) -> int:
        """Of the features: examples, or tokens."""
        return len(self.pooling) if isinstance(self.pooling, TokenSample) else len(self.probe)


@dataclass(frozen=True)
class TextOfBase:
    """A text, the base's language-model head, and the base's loss on it."""

    head: LanguageHead
    windows: TextWindows
    before: TextLoss


@dataclass
class Watch:
    """Where the time goes. seconds: part -> seconds on the clock. A part that goes on beside others has all of its own time,
    so parts may sum to more than the whole."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Adds what happens within to a part, until the device has finished what this thread gave it."""
        start = time.perf_counter()
        yield
        if self.device.startswith("cuda"):
            torch.cuda.current_stream(self.device).synchronize()
        else:
            synchronise(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


class MeasuredArm:
    """What is found of an arm's runs. tables: measurements; spectra: singular values of the updates; heads: run ->
    attention patterns by head; grams: run -> pooling -> the Grams of its features on the first probe; pairs: "SITE/SEED" ->
    debiased CKA of each layer of the base (rows) with each of the run; not_measured: what could not be -> why. out: where
    representations are kept, if they are."""

    def __init__(
        self, base: BaseModel, method: Method, runs: Sequence[ExportedRun], *, device: str, spec: DriftSpec, watch: Watch,
        progress: Callable[[], None], out: Path,
    ) -> None:  # fmt: skip
        self._out = out
        self.pairs: dict[str, np.ndarray] = {}
        self.not_measured: dict[str, str] = {}
        self.base, self.method, self.runs = base, method, list(runs)
        self.device, self.spec, self.watch, self._progress = device, spec, watch, progress
        self.tables: list[pd.DataFrame] = []
        self.spectra: list[pd.DataFrame] = []
        self.heads: dict[str, AttentionPatterns] = {}
        self.grams: dict[str, dict[str, dict[str, Grams]]] = {}
        self.drift: dict[str, float | None] = {}

    def read(self, probes: Sequence[ProbeOfBase], *, attention: Examples | None, text: TextOfBase | None) -> None:
        """Notes what every run shows on the probes, where its heads look, and how it predicts the text."""
        for group, model in self._models():
            for probe in probes:
                with self.watch.timing("extraction"):
                    shown = read_runs(
                        model, probe.probe.columns, reading=probe.reading, wanted=probe.wanted, sinks=probe.sinks,
                        names=[f"seed {run.seed}" for run in group],
                    )  # fmt: skip
                for run, features, figures in zip(group, shown.features, shown.figures, strict=True):
                    with self.watch.timing("similarity"):
                        self._note_features(run, probe, features)
                        rows = [(site, layer_number(site, i), *rest) for site, i, *rest in sink_rows(figures)]
                        table = pd.DataFrame(rows, columns=["site", "layer", "metric", "value"])
                        self._note(
                            run,
                            table.assign(unit=[SINK_UNITS[metric] for metric in table["metric"]]),
                            split=probe.split,
                        )
            if attention is not None:
                with self.watch.timing("attention"):
                    self._note_attention(group, model, attention, probes[0])
            if text is not None:
                with self.watch.timing("text"):
                    for index, run in enumerate(group):
                        self._note_forgetting(run, _one_of(model, group, index), text)
            for _ in group:
                self._progress()

    def _models(self) -> Iterator[tuple[list[ExportedRun], nn.Module]]:
        """The arm's models, as many runs in each as can share one."""
        if self.method.change == "low-rank":
            try:
                with self.watch.timing("loading"):
                    stacked = stack_adapters(self.base, [run.export for run in self.runs])
            except NotStackable:  # adapters that are more than plain LoRA: each in a copy of the base
                pass
            else:
                yield self.runs, stacked
                return
        for run in self.runs:
            with self.watch.timing("loading"):
                model = self.method.reload(run.export, base=self.base).to(self.device).eval()
            check_comparable(model, self.base.model, name=f"the run of seed {run.seed}")
            yield [run], model

    def _note_features(self, run: ExportedRun, probe: ProbeOfBase, features: Mapping[str, Features]) -> None:
        """What a run's features give by every pooling. What cannot be compared is this run's alone: the arm's others are
        measured, and without the primary pooling the others say nothing."""
        what = f"{probe.split} of seed {run.seed}"
        for pooling in probe.shown:
            try:
                self._note_distances(run, probe, pooling, features[pooling])
            except StudyError as error:
                is_primary = pooling == probe.primary
                self.not_measured[what if is_primary else f"{what}, pooling {pooling}"] = error.message
                if is_primary:
                    return

    def _note_distances(self, run: ExportedRun, probe: ProbeOfBase, pooling: str, features: Features) -> None:
        shown, is_primary = probe.shown[pooling], pooling == probe.primary
        view = View.of(features, shown.points, only_drift=not is_primary)
        rows = distances(shown.view, view, shown.points, neighbours=neighbours(self.spec, probe))
        summary = mean_drift(rows, without=shown.unhealthy)
        table = pd.DataFrame(rows, columns=["site", "layer", "metric", "value"])
        if summary is not None:
            table.loc[len(table)] = ["residual", None, "drift", summary]
        self._note(run, table.assign(unit="1", pooling=pooling), split=probe.split)
        if probe.split != PROBE:
            return
        self.grams.setdefault(run.id, {})[pooling] = view.debiased
        if is_primary:
            self.drift[run.id] = summary
            if self.spec.layer_pairs:
                for site, base in probe.base.debiased.items():
                    self.pairs[f"{site}/{run.seed}"] = linear_cka_pairs(base, view.debiased[site]).cpu().numpy()
            if self.spec.keep:
                keep_representations(self._out, f"seed-{run.seed}", view)

    def _note_attention(
        self, group: list[ExportedRun], model: nn.Module, columns: Examples, probe: ProbeOfBase
    ) -> None:
        found = compare_attention(
            self.base.model, model, columns, reading=probe.reading, runs=len(group),
            name=", ".join(f"seed {run.seed}" for run in group),
        )  # fmt: skip
        for run, patterns in zip(group, found, strict=True):
            self.heads[run.id] = patterns
            metrics = {
                "attention_entropy": ("nat", patterns.entropy),
                "attention_base_entropy": ("nat", patterns.base_entropy),
                "attention_total_variation": ("1", patterns.total_variation),
            }
            rows = [
                ("attention-pattern", layer, metric, float(value), unit)
                for metric, (unit, values) in metrics.items() for layer, value in enumerate(values.mean(1), start=1)
            ]  # fmt: skip
            self._note(run, pd.DataFrame(rows, columns=["site", "layer", "metric", "value", "unit"]), split=PROBE)

    def _note_forgetting(self, run: ExportedRun, model: nn.Module, text: TextOfBase) -> None:
        found = Forgetting(text.before, text_loss(model, text.head, text.windows, precision=PRECISION))
        values = {
            "text_loss_before": found.before.nats_per_token,
            "text_loss_after": found.after.nats_per_token,
            "forgetting": found.nats_per_token,
        }
        rows = [(None, None, metric, value, "nat") for metric, value in values.items()]
        self._note(run, pd.DataFrame(rows, columns=["site", "layer", "metric", "value", "unit"]))

    @property
    def can_do_both(self) -> bool:
        """Whether the weights may be measured beside `read`: the device has room for the base, a run and the measuring."""
        model = sum(parameter.nbytes for parameter in self.base.model.parameters())
        return has_room_beside(self.device, needed=2 * model + device_bytes(base_matrices(self.base)))

    def measure_weights(
        self, known_vectors: dict[str, Tensor], cancellation: Cancellation
    ) -> list[tuple[pd.DataFrame, float]]:
        """Of each run, what its updates measure and its relative change of all parameters, which `note_weights` takes. Changes
        nothing here but the watch, so that it may go on beside `read`. known_vectors: the base's singular vectors, kept for
        the next arm of the same base."""
        change = self.method.change
        with self.watch.timing("weights"):
            found = measure_updates(
                zip(*(weight_updates(self.base, run.export, change=change) for run in self.runs), strict=True),
                generator=torch.Generator().manual_seed(_CONTROL_SEED),
                device=self.device,
                known_vectors=known_vectors,
                cancellation=cancellation,
                spare_cores=int(self.device.startswith("cuda")),  # for the thread that feeds the device
            )
            return [
                (
                    weight_measurements(drifts),
                    relative_parameter_change(self.base, run.export, change=change, linear=drifts),
                )
                for run, drifts in zip(self.runs, found, strict=True)
            ]

    def note_weights(self, measured: Sequence[tuple[pd.DataFrame, float]]) -> None:
        """Notes what `measure_weights` found."""
        for run, (table, share) in zip(self.runs, measured, strict=True):
            # Embeddings, norms and biases included, which full fine-tuning moves too.
            whole = [(None, None, "relative_parameter_change", share, "fraction")]
            self._note(run, pd.DataFrame(whole, columns=["site", "layer", "metric", "value", "unit"]))
            is_spectrum = table["metric"].str.startswith("singular_value_")
            self._note(run, table[~is_spectrum])
            self.spectra.append(table[is_spectrum].assign(run=run.id, seed=run.seed))
            self._progress()

    def draw(self, probe: ProbeOfBase) -> Draws:
        """Drift in resamples of the probe, the same ones for every arm of this model and task."""
        runs = [run for run in self.runs if run.id in self.grams]
        if not runs:
            raise StudyError("no run of this arm could be measured: " + "; ".join(self.not_measured.values()))
        generator = np.random.default_rng([_BOOTSTRAP_SEED, len(probe.probe)])
        counts = bootstrap_counts(len(probe.probe), generator=generator, draws=self.spec.draws)
        with self.watch.timing("bootstrap"):
            values = [self._draw(runs, pooling, shown, counts) for pooling, shown in probe.shown.items()]
        points = [(pooling, *point) for pooling, shown in probe.shown.items() for point in shown.points]
        unhealthy = probe.shown[probe.primary].unhealthy
        in_summary = [
            pooling == probe.primary and is_block_output(site, layer) and (site, layer) not in unhealthy
            for pooling, site, layer in points
        ]
        drawn = np.concatenate(values, axis=2)
        return Draws(
            draws=drawn.astype(np.float32),
            runs=np.array([run.id for run in runs]),
            seeds=np.array([run.seed for run in runs]),
            sites=np.array([site for _, site, _ in points]),
            layers=np.array([layer for *_, layer in points]),
            summary=drawn[:, :, in_summary].mean(axis=2).astype(np.float32) if any(in_summary) else None,
            poolings=np.array([pooling for pooling, *_ in points]),
        )

    def _draw(self, runs: Sequence[ExportedRun], pooling: str, shown: ShownByBase, counts: Tensor) -> np.ndarray:
        """[draws, runs, points] by one pooling, NaN for a run that has no features by it."""
        if isinstance(shown.rows, TokenSample):  # tokens of one example come and go together
            counts = counts[:, torch.from_numpy(shown.rows.examples)]
        known = [index for index, run in enumerate(runs) if pooling in self.grams[run.id]]
        values = np.full((len(counts), len(runs), len(list(shown.points))), np.nan)
        if known:
            found = [
                1 - bootstrap_cka(base, [self.grams[runs[index].id][pooling][site] for index in known], counts=counts)
                for site, base in shown.view.debiased.items()
            ]
            values[:, known] = torch.cat(found, dim=2).cpu().numpy() if found else 0
        return values

    def _note(self, run: ExportedRun, table: Any, *, split: str | None = None) -> None:
        self.tables.append(table.assign(run=run.id, seed=run.seed, split=split))


def shown_by_base(
    rows: Pooling, features: Features, columns: Examples, *, labels: np.ndarray | None, only_drift: bool
) -> ShownByBase:
    """The base's side of every comparison by one pooling, with the health of its layers. labels: of the examples."""
    points = Points.of(features)
    view = View.of(features, points, is_base=True, only_drift=only_drift)
    biased = view.biased or {site: grams(x, estimator="biased", site=site) for site, x in view.features.items()}
    lengths = np.asarray(columns.lengths)
    if isinstance(rows, TokenSample):
        lengths, labels = lengths[rows.examples], None if labels is None else labels[rows.examples]
    health = layer_health(biased, points, lengths=lengths, labels=labels)
    return ShownByBase(rows, points, view, health, points.left_out(features))


def keep_representations(out: Path, name: str, view: View) -> None:
    """Stores a view's features."""
    for site, features in view.features.items():
        write_representation(out, name, site, features.cpu().numpy())


def neighbours(spec: DriftSpec, probe: ProbeOfBase) -> int:
    """k of the nearest neighbours: what was asked for, or what a smaller probe allows."""
    return min(spec.neighbours, probe.num_rows - 2)


def _one_of(model: nn.Module, group: Sequence[ExportedRun], index: int) -> nn.Module:
    """The one-run model: a view of a stacked one, or the model itself."""
    return view_of_run(model, index) if any(hasattr(m, "view") for m in model.modules()) else model
