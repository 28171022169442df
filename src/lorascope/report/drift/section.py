"""The section "Drift from the base": the answer in words, figures by layer and by run, tables; nothing without drift."""

from __future__ import annotations

from functools import partial

from lorascope.report.drift import dynamics, heat, profiles, scatter
from lorascope.report.drift import tables as drift_tables
from lorascope.report.drift.answer import answer
from lorascope.report.drift.definition import definition_sentence, health_figure, health_table, robustness_table
from lorascope.report.drift.rows import (
    SITES,
    correlations,
    drift_of,
    num_examples,
    reference_profile,
    runs_with,
    sites,
    snapshot_rows,
    unhealthy_layers,
)
from lorascope.report.page import wording
from lorascope.report.page.document import Block, Bullets, Illustration
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import DriftCorrelation
from lorascope.stats.drift.health import LEAST_EFFECTIVE_RANK

_RHOS_AT_MOST = 4


def drift_blocks(facts: Facts) -> list[Block | None]:
    """Empty for a study that did not measure drift."""
    if facts.analysis.drift is None:
        return []
    shown = sites(facts)
    return [
        Bullets((*answer(facts), definition_sentence(facts))),
        *(_profile(facts, site) for site in shown[:1]),
        drift_tables.reduction_table(facts),
        robustness_table(facts),
        drift_tables.layers_table(facts),
        *(_profile(facts, site) for site in shown[1:]),
        _heat(facts),
        health_figure(facts),
        health_table(facts),
        drift_tables.measures_table(facts),
        drift_tables.elsewhere_table(facts),
        _against_weights(facts),
        drift_tables.weights_table(facts),
        _against_forgetting(facts),
        drift_tables.function_table(facts),
        drift_tables.correlations_table(facts),
        _dynamics(facts),
    ]


def _n(facts: Facts) -> str:
    seeds = [row.num_seeds for row in drift_of(facts).profiles]
    examples = num_examples(facts)
    arms = f"{wording.range_text(seeds)} {'seed' if max(seeds) == 1 else 'seeds'} an arm"
    return f"{arms}, {wording.range_text(examples)} probe examples" if examples else arms


def _band(facts: Facts) -> str:
    one = max(row.num_seeds for row in drift_of(facts).profiles) == 1
    return "Band: 95% interval over examples, of one seed." if one else "Band: 95% interval over seeds and examples."


def _profile(facts: Facts, site: str) -> Illustration:
    return Illustration(
        name=f"drift_{site}",
        title=f"Drift by layer: {SITES.get(site, site)}",
        caption=f"1 − debiased linear CKA to the base; 0: the same features, 1: unrelated. Line: mean over seeds. "
        f"{_band(facts)} {_reference_lines(facts, site)}{_grey(facts, site)}n = seeds × examples: {_n(facts)}.",
        draw=partial(profiles.draw_profiles, facts, site=site),
    )


def _reference_lines(facts: Facts, site: str) -> str:
    """What the dashed and dotted lines of a profile are, as far as there are any."""

    def drawn(reference: str, method: str | None = None) -> bool:
        return any(
            reference_profile(facts, reference, model=model, task=task, site=site, method=method)
            for model, task in facts.cells
        )

    text = ""
    if any(drawn("seed-v-seed", method) for method in (None, *facts.methods)):
        text += "Dashed, in the method's colour: two seeds of the same arm against each other. "
    dotted = {
        "random-initialisation": "the same architecture with random weights",
        "other-examples": "the base on other examples",
    }
    shown = [label for reference, label in dotted.items() if drawn(reference)]
    return text + (f"Dotted: {wording.listing(shown)}, against the base. " if shown else "")


def _grey(facts: Facts, site: str) -> str:
    """What a grey layer of a profile is."""
    if not any(unhealthy_layers(facts, *cell, site=site) for cell in facts.cells):
        return ""
    return f"Grey: layers with an effective rank below {LEAST_EFFECTIVE_RANK:g} in the base, left out of averages. "


def _heat(facts: Facts) -> Illustration | None:
    if not any(row.site == "residual" for row in drift_of(facts).profiles):
        return None
    return Illustration(
        name="drift_heat",
        title="Drift by layer and task: residual stream",
        caption=f"1 − debiased linear CKA to the base, mean over seeds; darker is further from the base, on one scale "
        f"for all panels. Layer 0: embeddings. {_n(facts)}.",
        draw=partial(heat.draw_drift_heat, facts),
    )


def _against_weights(facts: Facts) -> Illustration | None:
    if not runs_with(facts, "relative_update_norm"):
        return None
    return Illustration(
        name="drift_weights",
        title="Drift against the size of the weight change",
        caption="One mark a run; colour: method, shape: task. ‖ΔW‖ / ‖W‖: Frobenius norms over all linear weights; "
        "drift: mean over the layers of the residual stream. "
        f"{_rank_correlations(facts, 'weight_change')}",
        draw=partial(scatter.draw_drift_v_weights, facts),
    )


def _against_forgetting(facts: Facts) -> Illustration | None:
    if not runs_with(facts, "forgetting"):
        return None
    return Illustration(
        name="drift_forgetting",
        title="Forgetting against drift",
        caption="One mark a run; colour: method, shape: task. Forgetting: rise in loss on general text, nat per token; "
        f"0: nothing forgotten. {_rank_correlations(facts, 'forgetting')}",
        draw=partial(scatter.draw_drift_v_forgetting, facts),
    )


def _rank_correlations(facts: Facts, other: str) -> str:
    """Spearman's rho with interval and n, or why there is none."""
    found = correlations(facts, other)
    if not found:
        return "No correlation was computed."
    known = [row for row in found if row.rho is not None]
    notes = "; ".join(dict.fromkeys(row.note.rstrip(".") for row in found if row.rho is None and row.note))
    if not known:
        return f"No rank correlation: {notes or 'too few runs'}."
    if len(known) > _RHOS_AT_MOST:
        low, high = (pick(row.rho.estimate for row in known if row.rho) for pick in (min, max))
        spread = " to ".join(dict.fromkeys(wording.decimal(rho, 2, signed=True) for rho in (low, high)))
        return f"Spearman's rho by task: {spread}, intervals in the table of rank correlations."
    missing = f" None for the others: {notes}." if notes else ""
    parts = "; ".join(_rho(facts, row) for row in known)
    return f"Spearman's rho ({wording.confidence_of(row.rho for row in known)}): {parts}.{missing}"


def _rho(facts: Facts, row: DriftCorrelation) -> str:
    assert row.rho is not None
    partial_rho = (
        f", {wording.plain_range(row.partial, signed=True)} with the weight change held" if row.partial else ""
    )
    rho = wording.plain_range(row.rho, signed=True)
    return f"{facts.place(row.model, row.task)} {rho}{partial_rho}, {wording.plural(row.num_runs, 'run')}"


def _dynamics(facts: Facts) -> Illustration | None:
    rows = snapshot_rows(facts)
    if not rows:
        return None
    runs: dict[tuple[str, str, str], set[str]] = {}
    for _, row in rows:
        runs.setdefault((row.model, row.task, row.method), set()).add(row.run)
    seeds = [len(found) for found in runs.values()]
    return Illustration(
        name="drift_dynamics",
        title="Drift during training: residual stream",
        caption="1 − debiased linear CKA to the base at snapshots of training, mean over seeds; darker is further from "
        f"the base, on one scale for all panels. {wording.range_text(seeds)} "
        f"{'seed' if max(seeds) == 1 else 'seeds'} an arm.",
        draw=partial(dynamics.draw_drift_dynamics, facts),
    )
