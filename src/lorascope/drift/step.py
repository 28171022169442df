"""The `drift` step: one arm's runs, all seeds, beside the base they came from.

Post hoc: it reads what the runs exported. The base's view of the probe is kept warm for the next arm; nothing else is
stored. It commits drift.parquet (distances, weights, attention, forgetting by run), references.parquet, draws.npz
(bootstrap draws of drift under the same example weights for every arm) and spectra.parquet, heads.npz (detail).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lorascope.data.columns import ColumnStore, ColumnSubset
from lorascope.data.tasks import task_from_result
from lorascope.drift.adapters import stack_adapters
from lorascope.drift.attention import AttentionPatterns, compare_attention
from lorascope.drift.extraction import extract, extract_gang
from lorascope.drift.forgetting import LanguageHead, TextLoss, load_language_head, text_loss
from lorascope.drift.grams import Grams
from lorascope.drift.probe import Probe, choose_probe
from lorascope.drift.resampling import bootstrap_cka, bootstrap_counts
from lorascope.drift.similarity import expected_biased_cka
from lorascope.drift.text import WINDOW_TOKENS, TextWindows, causal_windows, masked_windows
from lorascope.drift.updates import weight_updates
from lorascope.drift.views import (
    Points,
    Row,
    View,
    debiased_grams,
    distances,
    drift_between,
    is_block_output,
    mean_drift,
    mean_rows,
)
from lorascope.drift.weights import measure_updates, weight_measurements
from lorascope.engine.context import StepContext
from lorascope.engine.events import StepProgress
from lorascope.methods.base import Method, NotStackable
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.loading import BaseModel
from lorascope.study.spec import DriftSpec, Seeds
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory, synchronise
from lorascope.training.run import base_for, make_deterministic, method_from_params, tokenizer_for

_PROBE_SEED, _BOOTSTRAP_SEED, _CONTROL_SEED, _RANDOM_MODEL_SEED, _MASK_SEED = 0, 20261124, 0, 0, 0
PRECISION = "fp32"
"""Of all models alike, whatever they were trained in: bf16's rounding would be a drift of its own (extraction.py)."""


@dataclass(frozen=True)
class _Run:
    id: str
    seed: str
    export: Path


@dataclass(frozen=True)
class _Probe:
    """Examples that all models look at, with what the base shows on them. split: "probe", or "probe:TASK" of another task."""

    split: str
    probe: Probe
    task: Any
    points: Points
    base: View
    constant: list[str]


@dataclass
class _Watch:
    """Where the time goes. seconds: part -> seconds."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def measure_drift(context: StepContext) -> dict[str, Any]:
    """params: model, method, drift, other_task; deps: data, tokens, other_data and other_tokens, and the arm's train steps.

    Raises StudyError for too few test examples, a site the architecture lacks, features that are not finite.
    """
    params = context.step.params
    make_deterministic(context.device)
    reset_peak_memory(context.device)
    spec = DriftSpec.model_validate({k: v for k, v in params["drift"].items() if k != "text_sha256"})
    task = task_from_result(context.deps["data"].result)
    base, method = base_for(context, task), method_from_params(params["method"])
    watch = _Watch(context.device)
    runs = [
        _Run(a.id, Seeds.model_validate(a.step.params["seeds"]).label, a.path / "export")
        for role, a in context.deps.items() if role.startswith("train:")
    ]  # fmt: skip
    with watch.timing("base"):
        probes = _probes(context, base, spec)
    arm = _Arm(context, base, method, runs, spec, watch)
    views = [arm.compare(probe) for probe in probes]
    grams = views[0]
    arm.draw(probes[0], grams)
    references = [*_warm_references(context, base, probes[0], spec), *_between_seeds(grams, probes[0])]
    if spec.attention_examples:
        arm.read_attention(probes[0])
    arm.measure_weights()
    if params["drift"]["text_sha256"] is not None:
        arm.measure_forgetting()
    arm.write(references, probes[0])
    hidden = next(iter(probes[0].base.features.values())).shape[-1]
    return {
        "num_examples": len(probes[0].probe),
        "probes": {p.split: {"examples": len(p.probe), "ids_sha256": p.probe.ids_sha256} for p in probes},
        "left_out": {p.split: p.constant for p in probes if p.constant},
        "pooling": spec.pooling,
        "precision": PRECISION,
        "neighbours": _neighbours(spec, probes[0]),
        "draws": spec.draws,
        "expected_biased_cka": expected_biased_cka(len(probes[0].probe), hidden),
        "hidden": hidden,
        "drift": {run.seed: mean_drift(arm.rows[run.id, "probe"]) for run in runs},
        "seconds": {part: round(seconds, 3) for part, seconds in watch.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(context.device),
    }


def _neighbours(spec: DriftSpec, probe: _Probe) -> int:
    """Of a probe that turned out smaller than asked, k is what it allows."""
    return min(spec.neighbours, len(probe.probe) - 2)


# ------------------------------------------------------------------------------------------------------- base, probes


def _probes(context: StepContext, base: BaseModel, spec: DriftSpec) -> list[_Probe]:
    """The in-task probe, then the other task's. What the base shows on them stays warm for the next arm."""
    probes = [_probe(context, base, spec, split="probe", prefix="")]
    if context.step.params["other_task"] is not None:
        split = f"probe:{context.step.params['other_task']}"
        probes.append(_probe(context, base, spec, split=split, prefix="other_"))
    return probes


def _probe(context: StepContext, base: BaseModel, spec: DriftSpec, *, split: str, prefix: str) -> _Probe:
    tokens = context.deps[f"{prefix}tokens"]
    key = f"drift:{split}:{tokens.id}:{spec.examples}:{spec.sites}:{spec.pooling}:{context.device}"
    if key not in context.warm:
        for stale in [k for k in context.warm if k.startswith(f"drift:{split.partition(':')[0]}:") and prefix == ""]:
            del context.warm[stale]
        task = task_from_result(context.deps[f"{prefix}data"].result)
        probe = choose_probe(ColumnStore.open(tokens.path / "test"), spec.examples, seed=_PROBE_SEED)
        features = _features(base.model, probe.columns, base, task, spec, name="the base")
        points = Points.of(features)
        context.warm[key] = _Probe(split, probe, task, points, View.of(features, points), points.left_out(features))
    return context.warm[key]


def _features(
    model: nn.Module, columns: ColumnSubset, base: BaseModel, task: Any, spec: DriftSpec, *, name: str
) -> dict[str, Tensor]:
    return extract(
        model, columns, task=task, pad_token_id=base.pad_token_id, sites=spec.sites, pooling=spec.pooling,
        precision=PRECISION, name=name,
    )  # fmt: skip


def _warm_references(context: StepContext, base: BaseModel, probe: _Probe, spec: DriftSpec) -> list[tuple[str, Row]]:
    """What no training makes: the base on other examples, and an untrained model of its architecture."""
    key = f"drift:references:{context.deps['tokens'].id}:{spec.examples}:{spec.sites}:{spec.pooling}:{context.device}"
    if key not in context.warm:
        validation = ColumnStore.open(context.deps["tokens"].path / "validation")
        others = choose_probe(validation, len(probe.probe), seed=_PROBE_SEED)
        count = min(len(others), len(probe.probe))
        elsewhere = _features(base.model, others.columns, base, probe.task, spec, name="the base")
        untrained = _features(_untrained(base), probe.probe.columns, base, probe.task, spec, name="an untrained model")
        pairs = {
            "other-examples": (
                debiased_grams(probe.base.features, _all_of(probe.points), examples=count),
                debiased_grams(elsewhere, probe.points, examples=count),
            ),
            "random-initialisation": (probe.base.debiased, debiased_grams(untrained, probe.points)),
        }
        context.warm[key] = [
            (name, row) for name, (a, b) in pairs.items() for row in drift_between(a, b, probe.points)
        ]  # fmt: skip
    return context.warm[key]


def _all_of(points: Points) -> Points:
    """The positions in features that hold the kept layers only."""
    return Points({site: tuple(range(len(kept))) for site, kept in points.kept.items()})


def _untrained(base: BaseModel) -> nn.Module:
    """The base's architecture with the weights it would be initialised with."""
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(_RANDOM_MODEL_SEED)
        config: Any = base.model.config
        model: Any = type(base.model)(config)
    return model.to(base.device).eval()


def _between_seeds(grams: Mapping[str, dict[str, Grams]], probe: _Probe) -> list[tuple[str, Row]]:
    """How far two runs of this arm that differ in their seeds are from each other, the mean over pairs."""
    pairs = [drift_between(a, b, probe.points) for a, b in combinations(grams.values(), 2)]
    return [("seed-v-seed", row) for row in mean_rows(pairs)] if pairs else []


# ---------------------------------------------------------------------------------------------------------------- arm


class _Arm:
    """The runs of one arm, and what is found of them. rows: (run, split) -> distances."""

    def __init__(
        self, context: StepContext, base: BaseModel, method: Method, runs: list[_Run], spec: DriftSpec, watch: _Watch
    ) -> None:
        self.context, self.base, self.method, self.runs, self.spec, self.watch = (
            context,
            base,
            method,
            runs,
            spec,
            watch,
        )
        self.rows: dict[tuple[str, str], list[Row]] = {}
        self.tables: list[pd.DataFrame] = []
        self.spectra: list[pd.DataFrame] = []
        self.heads: dict[str, AttentionPatterns] = {}
        self.draws: dict[str, np.ndarray] = {}
        self._done, self._steps = 0, 2 * len(runs)

    def compare(self, probe: _Probe) -> dict[str, dict[str, Grams]]:
        """Notes every run's distances on a probe; returns the runs' Grams."""
        kept: dict[str, dict[str, Grams]] = {}
        for run, features in self._all_features(probe):
            with self.watch.timing("similarity"):
                view = View.of(features, probe.points)
                rows = distances(probe.base, view, probe.points, neighbours=_neighbours(self.spec, probe))
            self.rows[run.id, probe.split] = rows
            table = pd.DataFrame(rows, columns=["site", "layer", "metric", "value"])
            summary = mean_drift(rows)
            if summary is not None:
                table.loc[len(table)] = ["residual", None, "drift", summary]
            self._note(run, table.assign(unit="1"), split=probe.split)
            kept[run.id] = view.debiased
            if probe.split == "probe":
                self._progress()
        return kept

    def _all_features(self, probe: _Probe) -> Iterator[tuple[_Run, dict[str, Tensor]]]:
        """Adapters go through the base together, whole models one at a time."""
        exports = {run.id: run.export for run in self.runs}
        together = None
        if self.method.shares_base:
            try:
                with self.watch.timing("extraction"):
                    together = extract_gang(
                        self.base, exports, probe.probe.columns, task=probe.task, sites=self.spec.sites,
                        pooling=self.spec.pooling, precision=PRECISION,
                    )  # fmt: skip
            except NotStackable:  # adapters that are more than plain LoRA: each in a copy of the base
                together = None
        for run in self.runs:
            if together is not None:
                yield run, together.pop(run.id)
                continue
            with self.watch.timing("loading"):
                model = self._reload(run)
            with self.watch.timing("extraction"):
                columns = probe.probe.columns
                features = _features(model, columns, self.base, probe.task, self.spec, name=f"seed {run.seed}")
            yield run, features

    def _reload(self, run: _Run) -> nn.Module:
        return self.method.reload(run.export, base=self.base).to(self.context.device).eval()

    def draw(self, probe: _Probe, grams: Mapping[str, dict[str, Grams]]) -> None:
        """Drift in resamples of the probe, the same ones for every arm of this model and task."""
        generator = np.random.default_rng([_BOOTSTRAP_SEED, len(probe.probe)])
        counts = bootstrap_counts(len(probe.probe), generator=generator, draws=self.spec.draws)
        with self.watch.timing("bootstrap"):
            draws = [
                1 - bootstrap_cka(probe.base.debiased[s], [grams[run.id][s] for run in self.runs], counts=counts)
                for s in probe.base.debiased
            ]
            values = torch.cat(draws, dim=2).cpu().numpy()
        points = [point for point in probe.points if point[0] in probe.base.debiased]
        in_summary = [is_block_output(*point) for point in points]
        self.draws = {
            "draws": values.astype(np.float32),
            "runs": np.array([run.id for run in self.runs]),
            "seeds": np.array([run.seed for run in self.runs]),
            "sites": np.array([site for site, _ in points]),
            "layers": np.array([layer for _, layer in points]),
        }
        if any(in_summary):
            self.draws["summary"] = values[:, :, in_summary].mean(axis=2).astype(np.float32)

    def read_attention(self, probe: _Probe) -> None:
        """Where each head looks, beside the base's, on few examples."""
        columns = choose_probe(
            ColumnStore.open(self.context.deps["tokens"].path / "test"), self.spec.attention_examples, seed=_PROBE_SEED
        ).columns
        reading: dict[str, Any] = {"task": probe.task, "pad_token_id": self.base.pad_token_id, "precision": PRECISION}
        with self.watch.timing("attention"):
            for group, model in self._models():
                names = ", ".join(run.seed for run in group)
                found = compare_attention(
                    self.base.model, model, columns, runs=len(group), name=f"seed {names}", **reading
                )
                self.heads |= {run.id: patterns for run, patterns in zip(group, found, strict=True)}
        for run in self.runs:
            patterns = self.heads[run.id]
            metrics = {
                "attention_entropy": ("nat", patterns.entropy),
                "attention_base_entropy": ("nat", patterns.base_entropy),
                "attention_total_variation": ("1", patterns.total_variation),
            }
            rows = [
                ("attention-pattern", layer, metric, float(value), unit)
                for metric, (unit, values) in metrics.items() for layer, value in enumerate(values.mean(1), start=1)
            ]  # fmt: skip
            self._note(run, pd.DataFrame(rows, columns=["site", "layer", "metric", "value", "unit"]), split="probe")

    def _models(self) -> Iterator[tuple[list[_Run], nn.Module]]:
        """The arm's models, as many runs in each as can share one."""
        if self.method.shares_base:
            try:
                yield self.runs, stack_adapters(self.base, [run.export for run in self.runs])
                return
            except NotStackable:
                pass
        for run in self.runs:
            yield [run], self._reload(run)

    def measure_weights(self) -> None:
        """The updates themselves. The base's singular vectors stay warm."""
        warm, base_key = self.context.warm, self.context.warm.get("base_key")
        if warm.get("drift:vectors", (None,))[0] != base_key:
            warm["drift:vectors"] = base_key, {}
        known = warm["drift:vectors"][1]
        for run in self.runs:
            with self.watch.timing("weights"):
                generator = torch.Generator().manual_seed(_CONTROL_SEED)
                updates = weight_updates(self.base, run.export)
                found = measure_updates(updates, generator=generator, device=self.context.device, known_vectors=known)
                table = weight_measurements(found)
            is_spectrum = table["metric"].str.startswith("singular_value_")
            self._note(run, table[~is_spectrum])
            self.spectra.append(table[is_spectrum].assign(run=run.id, seed=run.seed))
            self._progress()

    def measure_forgetting(self) -> None:
        """Cross-entropy of the study's text before and after."""
        with self.watch.timing("text"):
            head, windows, before = self._text()
            for run in self.runs:
                after = text_loss(self._reload(run), head, windows, precision=PRECISION).nats_per_token
                values = {
                    "text_loss_before": before.nats_per_token,
                    "text_loss_after": after,
                    "forgetting": after - before.nats_per_token,
                }
                rows = [(None, None, metric, value, "nat") for metric, value in values.items()]
                self._note(run, pd.DataFrame(rows, columns=["site", "layer", "metric", "value", "unit"]))

    def _text(self) -> tuple[LanguageHead, TextWindows, TextLoss]:
        params, locations, warm = self.context.step.params, self.context.step.locations, self.context.warm
        key = f"drift:text:{params['drift']['text_sha256']}:{warm.get('base_key')}"
        if key not in warm:
            directory = checkpoint_directory(params["model"], locations=locations, cache_dir=self.context.cache_dir)
            head = load_language_head(directory, device=self.context.device)
            tokenizer, path = tokenizer_for(self.context), Path(locations["text"])
            length = min(WINDOW_TOKENS, getattr(self.base.model.config, "max_position_embeddings", WINDOW_TOKENS))
            if head.objective == "causal":
                windows = causal_windows(path, tokenizer, length=length)
            else:
                windows = masked_windows(path, tokenizer, generator=np.random.default_rng(_MASK_SEED), length=length)
            warm[key] = head, windows, text_loss(self.base.model, head, windows, precision=PRECISION)
        return warm[key]

    def _note(self, run: _Run, table: Any, *, split: str | None = None) -> None:
        self.tables.append(table.assign(run=run.id, seed=run.seed, split=split))

    def _progress(self) -> None:
        self._done += 1
        self.context.emit(
            StepProgress(step=self.context.step.id, done=self._done, total=self._steps, unit="part", rates={})
        )

    def write(self, references: list[tuple[str, Row]], probe: _Probe) -> None:
        out = self.context.out
        columns = ["run", "seed", "split", "site", "layer", "metric", "value", "unit"]
        _typed(pd.concat(self.tables, ignore_index=True)[columns]).to_parquet(out / "drift.parquet", index=False)
        rows = [(name, probe.split, *row) for name, row in references]
        table = pd.DataFrame(rows, columns=["reference", "split", "site", "layer", "metric", "value"])
        _typed(table).to_parquet(out / "references.parquet", index=False)
        _typed(pd.concat(self.spectra, ignore_index=True)).to_parquet(out / "spectra.parquet", index=False)
        np.savez_compressed(out / "draws.npz", **self.draws)  # type: ignore[arg-type]
        if self.heads:
            fields = ("entropy", "base_entropy", "total_variation", "jensen_shannon")
            stacked = {name: np.stack([getattr(self.heads[run.id], name) for run in self.runs]) for name in fields}
            np.savez_compressed(out / "heads.npz", runs=np.array([run.id for run in self.runs]), **stacked)  # type: ignore[arg-type]


def _typed(table: Any) -> pd.DataFrame:
    text = {name: "string" for name in table.columns if name not in ("layer", "value")}
    return table.astype({**text, "layer": "Int64", "value": "float64"})
