"""Tables of drift: ratios with their tests, other measures of the same features, weights, and what models do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorascope.report.drift.answer import above, below, less
from lorascope.report.drift.rows import (
    PARTS,
    REFERENCES,
    SITES,
    arm_mean,
    arm_sd,
    averaged_rows,
    drift_of,
    layer_rows,
    probe_tasks,
    reductions,
    reference_mean,
    run_rows,
    seed_v_seed,
    unhealthy_layers,
)
from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts, Measured
from lorascope.report.study.ledger import number_columns
from lorascope.stats.analysis import DriftReduction
from lorascope.stats.drift.health import LEAST_EFFECTIVE_RANK
from lorascope.study.methods import reference_arm

Writer = Callable[[float | None], str]


def _pair(facts: Facts, row: DriftReduction) -> tuple[str, str]:
    return facts.place(row.model, row.task), f"{wording.name(row.method)} v {wording.name(row.reference)}"


def _site(name: str) -> str:
    return SITES.get(name, name)


def left_out_note(facts: Facts) -> str:
    """What averages over layers leave out, as the end of a note; empty where that is nothing."""
    found = [len(unhealthy_layers(facts, *cell, site=site)) for cell in facts.cells for site in SITES]
    if not any(found):
        return ""
    return (
        f" No average over layers counts those with an effective rank below {LEAST_EFFECTIVE_RANK:g} in the base (the table of "
        "the base's health names them)."
    )


def _held(facts: Facts) -> str:
    """What the intervals of drift are over."""
    several = any(row.num_seeds > 1 for row in drift_of(facts).profiles)
    if not drift_of(facts).num_draws:
        return "seeds alone, because no draws of the examples were kept"
    draws = (
        f"{wording.count(drift_of(facts).num_draws)} bootstrap draws of the examples, the same for every arm of a task"
    )
    return f"{'seeds and examples' if several else 'examples alone, because there is one seed'} ({draws})"


def reduction_table(facts: Facts) -> Table | None:
    """Every ratio but those of single layers; for sites other than the residual stream, those over all layers."""
    rows = [
        (
            *_pair(facts, row),
            _site(row.site),
            PARTS[row.part],
            wording.ABSENT if row.ratio is None else wording.ratio(row.ratio.estimate),
            wording.ratio_range(row.ratio),
            (row.reason or wording.ABSENT) if row.ratio is None else less(row.ratio.estimate),
            wording.plain_range(row.hedges_g, signed=True),
            wording.p_value(row.p_value),
            wording.p_value(row.p_holm),
            wording.ABSENT if row.ratio is None else wording.count(row.num_seeds),
        )
        for row in reductions(facts, *PARTS, site=None)
        if row.part == "overall" or row.site == "residual"
    ]
    return Table(
        name="drift_reduction",
        title="Drift as a share of the reference's",
        columns=(
            *number_columns("task", "comparison", "site", "layers", numeric_from=4),
            *number_columns("ratio", "95% interval", "less or more", "Hedges g (95%)", "p", "p Holm", "seeds", numeric_from=0),
        ),
        rows=tuple(rows),
        note=f"Ratio of drifts, geometric mean over seeds; below 1 the method stays closer to the base. Intervals cover "
        f"{_held(facts)}. Hedges g: the mean of the seeds' log ratios in units of their standard deviation, on these "
        "examples. A dash under p Holm: the test belongs to no family." + left_out_note(facts),
    ) if rows else None  # fmt: skip


def layers_table(facts: Facts) -> Table | None:
    """The ratios of single layers of each task, comparison and site in one row."""
    families: dict[tuple[str, ...], list[DriftReduction]] = {}
    for row in reductions(facts, "layer", site=None):
        families.setdefault((*_pair(facts, row), _site(row.site)), []).append(row)
    alpha = facts.analysis.alpha
    rows = []
    for what, family in families.items():
        known = [(row.ratio.estimate, row) for row in family if row.ratio is not None]
        if not known:
            continue
        extremes = [pick(known, key=lambda item: item[0]) for pick in (min, max)]
        tested = [row for row in family if row.p_holm is not None]
        lower, higher = (sum(test(row, alpha=alpha) for row in tested) for test in (below, above))
        rows.append(
            (
                *what,
                wording.count(len(known)),
                *(f"{wording.ratio(ratio)} (layer {row.layer})" for ratio, row in extremes),
                wording.count(len(tested)) if tested else wording.ABSENT,
                wording.count(lower) if tested else wording.ABSENT,
                wording.count(higher) if tested else wording.ABSENT,
            )
        )
    headings = ("layers with a ratio", "lowest ratio", "highest ratio", "layers tested", "lower", "higher")
    return Table(
        name="drift_layers",
        title="Layer by layer",
        columns=(
            *number_columns("task", "comparison", "site", numeric_from=3),
            *number_columns(*headings, numeric_from=0),
        ),
        rows=tuple(rows),
        note=f"Lower, higher: layers whose drift differs from the reference's at {alpha:g} after Holm's correction over "
        "all tests of single layers of that task and site. One seed allows no test.",
    ) if rows else None  # fmt: skip


_MEASURES = {
    "drift": "drift (1 − debiased CKA)",
    "drift_standardised": "standardised",
    "drift_biased": "biased",
    "cosine_distance": "centred cosine",
    "raw_cosine_distance": "raw cosine",
    "procrustes_distance": "Procrustes",
    "neighbour_change": "neighbours",
}


def measures_table(facts: Facts) -> Table | None:
    """Every distance to the base, with the references of drift below each task's arms."""
    frames = {metric: averaged_rows(facts, metric) for metric in _MEASURES}
    shown = [metric for metric, frame in frames.items() if len(frame)]
    rows: list[tuple[str, ...]] = []
    for model, task in facts.cells:
        place, others = facts.place(model, task), (wording.ABSENT,) * len(shown)
        arms = [(m, [arm_mean(frames[metric], model, task, m) for metric in shown]) for m in facts.methods]
        rows += [
            (
                place,
                wording.name(method),
                *map(wording.drift, values),
                wording.drift(arm_sd(frames["drift"], model, task, method)),
            )
            for method, values in arms
            if any(value is not None for value in values)
        ]
        for method in facts.methods:
            value = seed_v_seed(facts, model=model, task=task, method=method)
            if value is not None:
                name = f"reference: {wording.name(method)}, seed v seed"
                rows.append((place, name, wording.drift(value), *others))
        for reference in ("random-initialisation", "other-examples"):
            value = reference_mean(facts, reference, model=model, task=task)
            if value is not None:
                rows.append((place, f"reference: {REFERENCES[reference]}", wording.drift(value), *others))
    return Table(
        name="drift_measures",
        title="Distance to the base by several measures",
        columns=number_columns("task", "arm", *(_MEASURES[metric] for metric in shown), "SD of drift", numeric_from=2),
        rows=tuple(rows),
        note="Means over seeds and over the layers of the residual stream, embeddings left out; 0 is the same as the "
        "base. Standardised: every feature scaled to variance 1 first, so that no outlier dimension decides. Biased: "
        "from the CKA most papers print, which is too high with few examples. Procrustes: what is left after the best "
        "rotation. Neighbours: share of nearest neighbours that changed. SD: of drift, over seeds." + left_out_note(facts),
    ) if rows and "drift" in shown else None  # fmt: skip


def elsewhere_table(facts: Facts) -> Table | None:
    """Drift on the examples of tasks that a model was not trained on."""
    probes = probe_tasks(facts)
    if not probes:
        return None
    own = averaged_rows(facts, "drift")
    away = {probe: averaged_rows(facts, "drift", split=f"probe:{probe}") for probe in probes}
    rows = [
        (
            facts.place(model, task),
            wording.name(method),
            wording.drift(arm_mean(own, model, task, method)),
            *(wording.drift(arm_mean(away[probe], model, task, method)) for probe in probes),
        )
        for model, task in facts.cells
        for method in facts.methods
        if arm_mean(own, model, task, method) is not None
    ]
    names = [f"on {wording.name(probe)}" for probe in probes]
    return Table(
        name="drift_elsewhere",
        title="Drift on other tasks' examples",
        columns=number_columns("trained on", "method", "on its own task", *names, numeric_from=2),
        rows=tuple(rows),
        note="Means over seeds and over the layers of the residual stream.",
    )


_WEIGHTS: dict[str, tuple[str, Writer]] = {
    "relative_update_norm": ("‖ΔW‖ / ‖W‖", wording.drift),
    "stable_rank": ("stable rank", wording.significant),
    "effective_rank": ("effective rank", wording.significant),
    "rank_utilisation": ("rank used", wording.fraction),
    "changed_matrices": ("matrices changed", wording.significant),
    "intruder_dimensions": ("intruders", wording.significant),
    "intruder_energy_share": ("their energy", wording.percentage),
    "random_intruder_dimensions": ("intruders of a random update", wording.significant),
    "random_intruder_energy_share": ("their energy", wording.percentage),
}


def weights_table(facts: Facts) -> Table | None:
    """The weight change of whole models, means over seeds."""
    frames = {metric: run_rows(facts, metric) for metric in _WEIGHTS}
    return _arm_table(
        facts,
        {metric: (frame, *_WEIGHTS[metric]) for metric, frame in frames.items()},
        name="drift_weights",
        title="Weight space",
        note="Means over seeds, whole models: norms over all linear weights, ranks as means over the changed matrices, "
        "intruders added up. Rank used: effective rank over the adapter's rank. Intruder: a leading singular direction "
        "of the tuned weights that the base does not have; energy: its share of the squared norm. The random update is a "
        "control of the same size and rank.",
    )


def function_table(facts: Facts) -> Table | None:
    """What models do differently: which examples they decide differently, where attention looks, what they forgot."""
    reference = reference_arm((method.name, method.kind) for method in facts.study.methods)
    decisions = {
        f"flips_from_{reference}": (f"decisions unlike {wording.name(reference)}'s", wording.percentage),
        "flips_between_seeds": ("unlike another seed's", wording.percentage),
        f"js_from_{reference}": (f"divergence from {wording.name(reference)} (nat)", wording.drift),
        "js_between_seeds": ("from another seed (nat)", wording.drift),
    }
    attention = {
        metric: layer_rows(facts, metric, site="attention-pattern")
        for metric in ("attention_total_variation", "attention_base_entropy", "attention_entropy")
    }
    text = {metric: run_rows(facts, metric) for metric in ("text_loss_before", "text_loss_after", "forgetting")}
    headings = ("attention moved (total variation)", "attention entropy of the base (nat)", "of the model (nat)")
    losses = ("text loss before (nat per token)", "after", "forgetting")
    writers = (wording.drift, wording.two_digits, wording.two_digits)
    last = (wording.three_digits, wording.three_digits, wording.signed_drift)
    columns = {metric: (run_rows(facts, metric), *how) for metric, how in decisions.items()}
    has_probabilities = any(len(columns[metric][0]) for metric in decisions if metric.startswith("js_"))
    columns |= {
        metric: (frame, heading, write)
        for (metric, frame), heading, write in zip(
            [*attention.items(), *text.items()], (*headings, *losses), (*writers, *last), strict=True
        )
    }
    divergence = " and the Jensen-Shannon divergence of class probabilities" if has_probabilities else ""
    return _arm_table(
        facts,
        columns,
        name="drift_function",
        title="Functional change",
        note=f"Means over seeds. Decisions{divergence}: on the test examples, "
        "against the run of the same seed, or the arm's other seeds. Attention: also over layers and heads. Total "
        "variation: 0 where every head looks where it did, 1 where it looks entirely elsewhere. Forgetting: rise in "
        "loss on general text.",
    )


_QUANTITIES = {
    "drift": "drift",
    "quality": "test score",
    "weight_change": "size of the weight change",
    "forgetting": "forgetting",
}


def correlations_table(facts: Facts) -> Table | None:
    rows = [
        (
            facts.place(row.model, row.task),
            " and ".join(_QUANTITIES.get(name, name.replace("_", " ")) for name in (row.x, row.y)),
            wording.plain_range(row.rho, signed=True),
            wording.plain_range(row.partial, signed=True),
            wording.count(row.num_runs),
            row.note or wording.ABSENT,
        )
        for row in drift_of(facts).correlations
    ]
    headings = ("Spearman's rho (95% interval)", "the same, weight change held", "runs")
    return Table(
        name="drift_correlations",
        title="Rank correlations over runs",
        columns=(Column("task"), Column("between"), *number_columns(*headings, numeric_from=0), Column("remark")),
        rows=tuple(rows),
        note="Runs of all arms together. Weight change held: partial correlation of the ranks given ‖ΔW‖ / ‖W‖.",
    ) if rows else None  # fmt: skip


def _arm_table(
    facts: Facts, columns: dict[str, tuple[list[Measured], str, Writer]], *, name: str, title: str, note: str
) -> Table | None:
    """One row an arm; a column that no run has is left out, and the table with the last of them."""
    shown: Sequence[tuple[list[Measured], str, Writer]] = [column for column in columns.values() if len(column[0])]
    rows = []
    for model, task in facts.cells:
        for method in facts.methods:
            values = [arm_mean(frame, model, task, method) for frame, _, _ in shown]
            if any(value is not None for value in values):
                cells = (write(value) for (_, _, write), value in zip(shown, values, strict=True))
                rows.append((facts.place(model, task), wording.name(method), *cells))
    if not rows:
        return None
    headings: tuple[Column, ...] = number_columns(
        "task", "method", *(heading for _, heading, _ in shown), numeric_from=2
    )
    return Table(name=name, title=title, columns=headings, rows=tuple(rows), note=note)
