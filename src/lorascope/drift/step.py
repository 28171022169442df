"""The `drift` step: one arm's runs, all seeds, compared with their base.

Post hoc: it reads what the runs exported. The base's view of the probe is kept warm for the next arm; nothing else is
stored. On CUDA the weights are measured at the same time as the rest (drift/beside.py). The step commits the files of
drift/record.py: distances, weights, attention and forgetting by run; references; bootstrap draws of drift under the same
example weights for every arm; spectra and heads (detail); and, if the study asks for them, pairs of layers and the
representations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from lorascope.data.columns import ColumnStore
from lorascope.drift.arm import (
    PRECISION,
    ExportedRun,
    MeasuredArm,
    ProbeOfBase,
    ShownByBase,
    TextOfBase,
    Watch,
    keep_representations,
    neighbours,
    shown_by_base,
)
from lorascope.drift.beside import beside
from lorascope.drift.extraction import PooledSites, read_runs
from lorascope.drift.forgetting import load_language_head, text_loss
from lorascope.drift.poolings import ordered_poolings
from lorascope.drift.probe import choose_probe, class_labels, rows_of
from lorascope.drift.record import PROBE, SEED_V_SEED, Draws, DriftRecord, ProbeRecord, write_heads, write_tables
from lorascope.drift.similarity import expected_biased_cka
from lorascope.drift.sinks import sink_rows
from lorascope.drift.text import WINDOW_TOKENS, causal_windows, masked_windows
from lorascope.drift.views import Points, Row, debiased_grams, drift_between, is_block_output, layer_number, mean_rows
from lorascope.engine.context import StepContext
from lorascope.engine.events import Notice, StepProgress
from lorascope.engine.warm import Kept
from lorascope.errors import DataError, StudyError
from lorascope.models.architectures import known_architecture
from lorascope.models.checkpoint import allows_pickle, checkpoint_directory
from lorascope.models.config_facts import most_tokens
from lorascope.models.loading import BASE, BaseModel
from lorascope.stats.drift.health import (
    BASE_REFERENCE,
    EFFECTIVE_RANK,
    LABEL_CORRELATION,
    LENGTH_CORRELATION,
    TOP_SHARE,
    none_healthy,
)
from lorascope.study.measure import DriftSpec
from lorascope.study.spec import Seeds
from lorascope.tasks.description import task_from_result
from lorascope.training.hardware import peak_memory_bytes, reset_peak_memory
from lorascope.training.preparation import base_for, make_deterministic, method_from_params, processor_for, reading_for

if TYPE_CHECKING:
    from lorascope.data.columns import Examples
    from lorascope.study.measure import PoolingName

_PROBE_SEED, _RANDOM_MODEL_SEED, _MASK_SEED = 0, 0, 0

# What the base shows, for the next arm; training, which has no use for it, may have it dropped.
_PROBES = Kept[ProbeOfBase]("the base on the probe", is_spare=True)
_REFERENCES = Kept[list[tuple[str, Row]]]("drift's references", is_spare=True)
_VECTORS = Kept[dict[str, torch.Tensor]]("the base's singular vectors", most=1, is_spare=True)
_TEXT = Kept[TextOfBase]("the base on text", most=1, is_spare=True)


def measure_drift(context: StepContext) -> dict[str, Any]:
    """params: model, method, drift, other_task; deps: data, tokens, other_data and other_tokens, and the arm's train steps.

    A run whose features cannot be compared, and a text for which the base has no head, are left out, and the result says
    so (`not_measured`). Raises StudyError for too few test examples, a site the architecture lacks, features that are not
    finite, and where no run could be measured.
    """
    params, watch = context.step.params, Watch(context.device)
    make_deterministic(context.device)
    reset_peak_memory(context.device)
    spec = DriftSpec.model_validate({k: v for k, v in params["drift"].items() if k != "text_sha256"})
    base, method = (
        base_for(context, task_from_result(context.deps["data"].result)),
        method_from_params(params["method"]),
    )
    trained = [artifact for role, artifact in context.deps.items() if role.startswith("train:")]
    runs = [ExportedRun(a.id, Seeds.model_validate(a.step.params["seeds"]).label, a.file("export")) for a in trained]
    arm = MeasuredArm(
        base,
        method,
        runs,
        device=context.device,
        spec=spec,
        watch=watch,
        progress=_progress(context, 2 * len(runs)),
        out=context.out,
    )
    measure_weights = partial(arm.measure_weights, _known_vectors(context))
    with beside(measure_weights, device=context.device, at_once=arm.can_do_both) as weights:
        with watch.timing("base"):
            probes = _probes(context, base, spec)
            references = _fixed_references(context, base, probes[0], spec)
            text = None
            if params["drift"]["text_sha256"] is not None:
                try:
                    text = _text(context, base)
                except StudyError as error:  # a checkpoint without its language-model head: the rest is measured
                    arm.not_measured["forgetting"] = error.message
        if spec.keep:
            keep_representations(context.out, "base", probes[0].base)
        test = ColumnStore.open(context.deps["tokens"].file("test"))
        attention = spec.attention_examples and choose_probe(test, spec.attention_examples, seed=_PROBE_SEED).columns
        arm.read(probes, attention=attention or None, text=text)
        arm.not_measured.update(_without_average(probes[0]))
        for what, why in arm.not_measured.items():
            context.emit(Notice(step=context.step.id, level="warning", text=f"{what} is not measured: {why}"))
        draws = arm.draw(probes[0])
        arm.note_weights(weights())
    _write(context.out, arm, draws, [*references, *_between_seeds(arm, probes[0])], probes)
    return _record(arm, probes).to_json()


def _progress(context: StepContext, total: int) -> Any:
    done = iter(range(1, total + 1))

    def advance() -> None:
        context.emit(StepProgress(step=context.step.id, done=next(done), total=total, unit="part", rates={}))

    return advance


# ------------------------------------------------------------------------------------------------------- base, probes


def _probes(context: StepContext, base: BaseModel, spec: DriftSpec) -> list[ProbeOfBase]:
    """The in-task probe, then the other task's, which is read by the primary pooling alone. What the base shows on them stays
    warm for the next arm."""
    params, task = context.step.params, task_from_result(context.deps["data"].result)
    directory = checkpoint_directory(params["model"], locations=context.step.locations, cache_dir=context.cache_dir)
    poolings = ordered_poolings(spec.pooling, model=base.model, head=task.head, directory=directory)
    found = [_probe(context, base, spec, poolings, split=PROBE, prefix="")]
    if params["other_task"] is not None:
        split = f"{PROBE}:{params['other_task']}"
        found.append(_probe(context, base, spec, poolings[:1], split=split, prefix="other_"))
    return found


def _probe(
    context: StepContext, base: BaseModel, spec: DriftSpec, poolings: Sequence[PoolingName], *, split: str, prefix: str
) -> ProbeOfBase:
    tokens, warm = context.deps[f"{prefix}tokens"], context.warm
    key = f"{split}:{tokens.id}:{spec.examples}:{spec.sites}:{poolings}:{context.device}"
    if not prefix and not warm.has(_PROBES, key):
        warm.drop(_PROBES)

    def look() -> ProbeOfBase:
        task = task_from_result(context.deps[f"{prefix}data"].result)
        reading = reading_for(context, task, base, precision=PRECISION)
        probe = choose_probe(ColumnStore.open(tokens.file("test")), spec.examples, seed=_PROBE_SEED)
        wanted = _wanted(spec, poolings, probe.columns)
        seen = read_runs(base.model, probe.columns, reading=reading, wanted=wanted, names=["the base"])
        labels = class_labels(task, probe.columns)
        shown = {
            pooling: shown_by_base(
                wanted[pooling].pooling, features, probe.columns, labels=labels, only_drift=pooling != poolings[0]
            )
            for pooling, features in seen.features[0].items()
        }
        return ProbeOfBase(split, probe, reading, wanted, shown, seen.sinks, seen.figures[0])

    return warm.keep(_PROBES, key, look)


def _wanted(spec: DriftSpec, poolings: Sequence[PoolingName], columns: Examples) -> dict[str, PooledSites]:
    """The primary pooling is read at every site, the others at the residual stream, whose drift hypotheses are about."""
    others = ("residual",) if "residual" in spec.sites else spec.sites
    sites = {pooling: others if index else spec.sites for index, pooling in enumerate(poolings)}
    return {pooling: PooledSites(rows_of(pooling, columns), sites[pooling]) for pooling in poolings}


def _fixed_references(
    context: StepContext, base: BaseModel, probe: ProbeOfBase, spec: DriftSpec
) -> list[tuple[str, Row]]:
    """What no training makes, by the primary pooling: the base on other examples, and an untrained model of its
    architecture, whose sinks are its base's."""
    pooling = cast("PoolingName", probe.primary)
    key = f"{context.deps['tokens'].id}:{spec.examples}:{spec.sites}:{pooling}:{context.device}"

    def look() -> list[tuple[str, Row]]:
        validation = ColumnStore.open(context.deps["tokens"].file("validation"))
        others = choose_probe(validation, len(probe.probe), seed=_PROBE_SEED).columns
        elsewhere = read_runs(
            base.model, others, reading=probe.reading, wanted=_wanted(spec, [pooling], others), names=["the base"]
        ).features[0][pooling]
        count = min(x.shape[1] for features in (elsewhere, probe.base.features) for x in features.values())
        untrained = read_runs(
            _untrained(base), probe.probe.columns, reading=probe.reading, wanted={pooling: probe.wanted[pooling]},
            names=["an untrained model"], sinks=probe.sinks,
        ).features[0][pooling]  # fmt: skip
        pairs = {
            "other-examples": (
                debiased_grams(probe.base.features, _all_of(probe.points), examples=count),
                debiased_grams(elsewhere, probe.points, examples=count),
            ),
            "random-initialisation": (probe.base.debiased, debiased_grams(untrained, probe.points)),
        }
        return [(name, row) for name, (a, b) in pairs.items() for row in drift_between(a, b, probe.points)]

    return context.warm.keep(_REFERENCES, key, look)


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


def _between_seeds(arm: MeasuredArm, probe: ProbeOfBase) -> list[tuple[str, Row]]:
    """How far two runs of this arm that differ in their seeds are from each other, the mean over pairs."""
    runs = [by_pooling[probe.primary] for by_pooling in arm.grams.values()]
    pairs = [drift_between(a, b, probe.points) for a, b in combinations(runs, 2)]
    return [(SEED_V_SEED, row) for row in mean_rows(pairs)] if pairs else []


def _known_vectors(context: StepContext) -> dict[str, torch.Tensor]:
    """The base's singular vectors as far as they are known; of one base at a time."""
    return context.warm.keep(_VECTORS, context.warm.last_key(BASE), dict)


def _text(context: StepContext, base: BaseModel) -> TextOfBase:
    params, locations, warm = context.step.params, context.step.locations, context.warm
    key = f"{params['drift']['text_sha256']}:{warm.last_key(BASE)}"

    def read() -> TextOfBase:
        directory = checkpoint_directory(params["model"], locations=locations, cache_dir=context.cache_dir)
        head = load_language_head(directory, device=context.device, allows_pickle=allows_pickle(params["model"]))
        task = task_from_result(context.deps["data"].result)
        tokenizer, path = processor_for(context, task), Path(locations["text"])
        config = base.model.config
        places = most_tokens(known_architecture(config.model_type), config.to_dict()) or WINDOW_TOKENS
        length = min(WINDOW_TOKENS, getattr(config, "max_position_embeddings", WINDOW_TOKENS), places)
        if head.objective == "causal":
            windows = causal_windows(path, tokenizer, length=length)
        else:
            windows = masked_windows(path, tokenizer, generator=np.random.default_rng(_MASK_SEED), length=length)
        if windows.sha256 != params["drift"]["text_sha256"]:
            raise DataError(
                f"{path} is not the text it was when the study began",
                hint="run the study again with the text as it is now",
            )
        return TextOfBase(head, windows, text_loss(base.model, head, windows, precision=PRECISION))

    return warm.keep(_TEXT, key, read)


# -------------------------------------------------------------------------------------------------------------- files


def _record(arm: MeasuredArm, probes: list[ProbeOfBase]) -> DriftRecord:
    """The step's result. probes: the in-task one first."""
    probe, hidden = probes[0], next(iter(probes[0].base.features.values())).shape[-1]
    return DriftRecord(
        num_examples=len(probe.probe),
        probes={p.split: ProbeRecord(len(p.probe), p.probe.ids_sha256) for p in probes},
        layers={site: [layer for s, layer in probe.points if s == site] for site in probe.base.features},
        left_out={p.split: p.left_out for p in probes if p.left_out},
        pooling=probe.primary,
        num_rows=probe.num_rows,
        precision=PRECISION,
        neighbours=neighbours(arm.spec, probe),
        draws=arm.spec.draws,
        hidden=hidden,
        expected_biased_cka=expected_biased_cka(probe.num_rows, hidden),
        drift={run.seed: arm.drift[run.id] for run in arm.runs if run.id in arm.drift},
        not_measured=arm.not_measured,
        seconds={part: round(seconds, 3) for part, seconds in arm.watch.seconds.items()},
        peak_memory_bytes=peak_memory_bytes(arm.device),
        poolings=list(probe.shown),
        unhealthy={
            pooling: [f"{row.site} {row.layer}" for row in shown.health if not row.is_healthy]
            for pooling, shown in probe.shown.items()
        },
    )


def _without_average(probe: ProbeOfBase) -> dict[str, str]:
    """By which poolings there is no drift in one number, and why."""
    found = {}
    for pooling, shown in probe.shown.items():
        blocks = [row for row in shown.health if is_block_output(row.site, row.layer)]
        if blocks and not any(row.is_healthy for row in blocks):
            found[f"drift in one number, pooling {pooling}"] = none_healthy(len(blocks))
    return found


def _write(
    out: Path, arm: MeasuredArm, draws: Draws, references: list[tuple[str, Row]], probes: list[ProbeOfBase]
) -> None:
    primary, split = probes[0].primary, probes[0].split
    rows = [(name, split, primary, *row) for name, row in references]
    for probe in probes:
        rows += [
            (BASE_REFERENCE, probe.split, None, site, layer_number(site, index), metric, value)
            for site, index, metric, value in sink_rows(probe.figures, is_base=True)
        ]
        rows += [row for pooling, shown in probe.shown.items() for row in _health_rows(probe.split, pooling, shown)]
    write_tables(
        out,
        distances=pd.concat(arm.tables, ignore_index=True),
        references=rows,
        spectra=pd.concat(arm.spectra, ignore_index=True),
        pairs=arm.pairs,
        health=[
            (probe.split, pooling, *astuple(row), row.is_healthy)
            for probe in probes for pooling, shown in probe.shown.items() for row in shown.health
        ],
    )  # fmt: skip
    draws.write(out)
    write_heads(out, {run.id: arm.heads[run.id] for run in arm.runs} if arm.heads else {})


def _health_rows(split: str, pooling: str, shown: ShownByBase) -> Iterator[tuple[Any, ...]]:
    """Of the base, in the long table."""
    for row in shown.health:
        values = {
            EFFECTIVE_RANK: row.effective_rank,
            TOP_SHARE: row.top_share,
            LENGTH_CORRELATION: row.length_correlation,
            LABEL_CORRELATION: row.label_correlation,
        }
        for metric, value in values.items():
            if value is not None:
                yield BASE_REFERENCE, split, pooling, row.site, row.layer, metric, value
