"""Tables of results and of statistics: scores and baselines, differences, effect sizes, tests, published figures."""

from __future__ import annotations

from collections.abc import Iterable

from lorascope.report.page import wording
from lorascope.report.page.document import Column, Table
from lorascope.report.page.facts import Facts
from lorascope.stats.analysis import Comparison, HypothesisResult, Part


def _number(*headings: str) -> tuple[Column, ...]:
    return tuple(Column(heading, numeric=True) for heading in headings)


def _text(*headings: str) -> tuple[Column, ...]:
    return tuple(Column(heading) for heading in headings)


def results_table(facts: Facts) -> Table:
    """Every arm and baseline on every metric."""
    rows = []
    for model, task in facts.cells:
        for metric in facts.metrics(model, task):
            rows += _arm_rows(facts, model, task, metric=metric) + _baseline_rows(facts, model, task, metric=metric)
    return Table(
        name="results",
        title="Test scores",
        columns=_text("task", "arm", "metric") + _number("mean", "95% interval", "SD", "seeds", "test examples"),
        rows=tuple(rows),
        note="Mean over seeds; an arm's t interval and standard deviation are over seed means, so they cover chance in "
        "training but not in the choice of the test set. Baselines in the same units, on the same examples; their intervals "
        "cover the choice of the test set, and chance where they draw."
        f" {wording.sentence(facts.protocol_text())}{_not_comparable(facts)}"
        f"{_direction_note(row.metric for row in (*facts.analysis.scores, *facts.analysis.other_scores))}",
    )


def _not_comparable(facts: Facts) -> str:
    """What must stand by the scores of tasks whose test set nobody else has."""
    tasks = wording.listing(wording.name(task) for task in facts.protocols.get("resplit", []))
    return f" Scores on {tasks} are not comparable with published ones." if tasks else ""


def _direction_note(metrics: Iterable[str]) -> str:
    """Of the metrics of a table, those of which less is better."""
    styles = [wording.metric_style(metric) for metric in dict.fromkeys(metrics)]
    lower = [style.label for style in styles if style.direction == "lower"]
    return f" Lower is better: {wording.listing(lower)}." if lower else ""


def _arm_rows(facts: Facts, model: str, task: str, *, metric: str) -> list[tuple[str, ...]]:
    style = facts.metric_style(metric, task=task)
    found = [facts.score(model, task, method, metric=metric) for method in facts.methods]
    return [
        (
            facts.place(model, task),
            wording.name(row.method),
            style.label,
            wording.score(metric, row.mean),
            wording.score_range(metric, row.interval),
            wording.ABSENT if row.sd is None else wording.decimal(row.sd * style.scale, style.digits),
            wording.count(len(row.seeds)),
            wording.count(row.num_examples),
        )
        for row in found
        if row is not None
    ]


def _baseline_rows(facts: Facts, model: str, task: str, *, metric: str) -> list[tuple[str, ...]]:
    style = facts.metric_style(metric, task=task)
    return [
        (
            facts.place(model, task),
            f"baseline: {row.name}",
            style.label,
            wording.score(metric, row.mean),
            wording.score_range(metric, facts.baseline_interval(model, task, row.name, metric=metric)),
            wording.ABSENT if row.sd is None else wording.decimal(row.sd * style.scale, style.digits),
            wording.count(len(row.values)) if len(row.values) > 1 else wording.ABSENT,
            wording.count(row.num_examples),
        )
        for row in facts.cell_baselines(model, task, metric=metric)
    ]


def published_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            wording.name(row.task),
            row.model,
            wording.name(row.method),
            facts.metric_style(row.metric, task=row.task).label,
            wording.score(row.metric, row.value),
            row.setting,
            row.citation,
        )
        for row in facts.stated.published
    )
    if not rows:
        return None
    return Table(
        name="published",
        title="Published figures",
        columns=_text("task", "model", "method", "metric") + _number("value") + _text("setting", "citation"),
        rows=rows,
        note="Other models, data splits and selection rules: context, not a comparison.",
    )


# --------------------------------------------------------------------------------------------------------- statistics


def _what(facts: Facts, row: Comparison) -> tuple[str, str]:
    """Where and what; the metric is named where comparisons are made on several."""
    metrics = {other.metric for other in (*facts.analysis.comparisons, *facts.analysis.other_comparisons)}
    label = facts.metric_style(row.metric, task=row.task).label
    metric = f", {label}" if len(metrics) > 1 or row.metric == "f1" else ""
    return facts.place(row.model, row.task), f"{wording.name(row.method)} v {wording.name(row.reference)}{metric}"


def differences_table(facts: Facts) -> Table:
    rows = tuple(
        (
            *_what(facts, row),
            wording.gap(row.metric, row.difference.estimate),
            wording.gap_range(row.metric, row.difference),
            wording.gap_range(row.metric, row.difference_90),
            wording.p_value(row.p_value),
            wording.p_value(row.p_holm),
            wording.p_value(row.p_bonferroni),
            wording.ABSENT
            if row.detectable_difference is None
            else wording.margin_text(row.metric, row.detectable_difference),
            f"{row.num_seeds} × {wording.count(row.num_examples)}",
        )
        for row in (*facts.analysis.comparisons, *facts.analysis.other_comparisons)
    )
    methods = wording.listing(dict.fromkeys(row.difference.method for row in facts.analysis.comparisons))
    return Table(
        name="differences",
        title="Differences between arms (primary analysis)",
        columns=_text("task", "comparison")
        + _number("difference", "95% interval", "90% interval", "p", "p Holm", "p Bonferroni", "detectable")
        + _number("seeds × examples"),
        rows=rows,
        note=f"Intervals and p: {methods}, paired by example, seeds as a random effect. Corrected p-values: "
        f"{facts.analysis.family}{_other_family(facts)}. Detectable: the true difference that these seeds and examples would "
        f"have shown with 80% power.{_direction_note(row.metric for row in facts.analysis.comparisons)}",
    )


def _other_family(facts: Facts) -> str:
    """Metrics that are not a task's primary one are compared too, and corrected by themselves."""
    others = dict.fromkeys(
        facts.metric_style(row.metric, task=row.task).label for row in facts.analysis.other_comparisons
    )
    return f"; further metrics ({wording.listing(others)}) are a family apart" if others else ""


def effects_table(facts: Facts) -> Table:
    """Without odds where no task has right and wrong examples."""
    has_odds = any(row.mcnemar or row.odds_ratio for row in facts.analysis.comparisons)
    rows = tuple(
        (
            *_what(facts, row),
            wording.gap_range(row.metric, row.seed_difference),
            wording.plain_range(row.hedges_g, signed=True),
            *([wording.plain_range(row.odds_ratio)] if has_odds else []),
            permutation_text(row, alpha=facts.analysis.alpha),
        )
        for row in facts.analysis.comparisons
    )
    odds_heading = ("odds ratio (95%)",) if has_odds else ()
    odds_note = " The odds ratio is of being right, method against reference." if has_odds else ""
    return Table(
        name="effects",
        title="Effect sizes and seed-level tests",
        columns=_text("task", "comparison")
        + _number("95% t interval on seed differences", "Hedges g (95%)", *odds_heading)
        + _text("permutation test over seeds"),
        rows=rows,
        note="Hedges g is the difference in units of the spread between seeds: with few seeds it can be large by chance "
        f"alone.{odds_note}",
    )


def permutation_text(row: Comparison, *, alpha: float) -> str:
    """The p-value, or why it is withheld and how many seeds would give one."""
    if row.permutation_p is not None:
        return f"p = {wording.p_value(row.permutation_p)}".replace("= <", "< ")
    floor = f"smallest possible p is {wording.p_value(row.permutation_floor)}, above {alpha:g}"
    return f"not printed: {floor}; needs {wording.plural(row.seeds_needed, 'seed')}"


def mcnemar_table(facts: Facts) -> Table | None:
    comparisons = [row for row in facts.analysis.comparisons if row.mcnemar]
    if not comparisons:
        return None
    seeds = list(dict.fromkeys(test.seed for row in comparisons for test in row.mcnemar))
    rows = []
    for row in comparisons:
        tests = {test.seed: test for test in row.mcnemar}
        cells = (
            f"{tests[seed].b}/{tests[seed].c}, p {wording.p_value(tests[seed].p_value)}"
            if seed in tests
            else wording.ABSENT
            for seed in seeds
        )
        rows.append((*_what(facts, row), *cells))
    return Table(
        name="mcnemar",
        title="McNemar's exact test, seed by seed",
        columns=_text("task", "comparison") + _number(*(f"seed {seed}" for seed in seeds)),
        rows=tuple(rows),
        note="a/b: examples that only the method, only the reference got right. One test for each seed, never pooled "
        "over seeds: the same examples would be counted once for every seed.",
    )


def anova_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            row["model"],
            row["term"].replace(" x ", " × "),
            wording.significant(row["f"], 3),
            f"{wording.count(row['df'])}, {wording.count(row['df_residual'])}",
            wording.p_value(row["p_value"]),
            wording.decimal(row["partial_eta_squared"], 3),
        )
        for row in facts.analysis.anova or []
        if row["kind"] == "effect"
    )
    if not rows:
        return None
    return Table(
        name="anova",
        title="Analysis of variance on seed scores",
        columns=_text("model", "source") + _number("F", "degrees of freedom", "p", "partial eta squared"),
        rows=rows,
        note="Partial eta squared: the share of variance a source explains, the other sources set aside.",
    )


def post_hoc_table(facts: Facts) -> Table | None:
    rows = tuple(
        (
            facts.place(row["model"], row["task"]),
            f"{wording.name(row['first'])} v {wording.name(row['second'])}",
            wording.gap(metric, row["difference"]),
            f"{wording.gap(metric, row['low'], unit=False)} to {wording.gap(metric, row['high'], unit=False)}",
            wording.p_value(row["p_value"]),
        )
        for row in facts.analysis.anova or []
        if row["kind"] == "post-hoc" and (metric := facts.primary_metric(row["task"]))
    )
    if not rows:
        return None
    return Table(
        name="post_hoc",
        title="Methods pair by pair (Tukey's HSD on seed scores)",
        columns=_text("task", "pair") + _number("difference", "95% interval", "p"),
        rows=rows,
        note="Corrected within a task; made on seed scores alone, without pairing by example.",
    )


def unit_of(result: HypothesisResult) -> str:
    """What its n counts: engine processes started anew, or trained runs."""
    return "repeat" if result.kind == "overhead" else "seed"


def parts_table(facts: Facts, result: HypothesisResult) -> Table | None:
    """The (model, task) cells a hypothesis rests on; none where it rests on one."""
    if len(result.parts) < 2:
        return None
    return Table(
        name=f"hypothesis_{result.name}",
        title=f"{result.name}, part by part",
        columns=_text("where", "verdict")
        + _number("estimate", "interval", "p", "repeats" if result.kind == "overhead" else "seeds × examples")
        + _text("why"),
        rows=tuple(_part_row(facts, result, part) for part in result.parts),
        note="p: of the claim where a part is supported or open, against it where it is refuted; corrected as its verdict is.",
    )


def _part_row(facts: Facts, result: HypothesisResult, part: Part) -> tuple[str, ...]:
    estimate = part.estimate
    metric = facts.hypothesis_metric(result, task=part.task)
    interval = (
        ""
        if estimate is None
        else f"{wording.gap_range(metric, estimate)} ({wording.decimal(estimate.confidence * 100, 0)}%)"
    )
    return (
        facts.place(part.model, part.task),
        part.verdict,
        wording.ABSENT if estimate is None else wording.gap(metric, estimate.estimate),
        interval or wording.ABSENT,
        wording.p_value(part.p_holm) + (" against" if part.side == "refutation" else ""),
        wording.count(part.num_seeds)
        if result.kind == "overhead"
        else f"{part.num_seeds} × {wording.count(part.num_examples)}",
        part.reason,
    )
