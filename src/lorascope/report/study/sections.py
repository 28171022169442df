"""The order of a report: from the summary over results, search, differences, drift, serving and cost to limitations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from lorascope.report.drift.section import drift_blocks
from lorascope.report.page import wording
from lorascope.report.page.document import Block, Bullets, Document, Illustration, Paragraph, Section
from lorascope.report.page.facts import Facts
from lorascope.report.search.section import search_blocks
from lorascope.report.serving.section import serving_blocks
from lorascope.report.study import cost, curves, examples, forest, ledger, results, sources, tables
from lorascope.report.study.limitations import limitations
from lorascope.report.study.summary import comparison_sentence, conclusion, hypothesis_cards, summary_sentences

_SENTENCES_AT_MOST = 8


def build_document(facts: Facts) -> Document:
    """Every section that has something to show; a study in which nothing finished still gets gates and failures."""
    builders = (
        ("results", "Results against baselines", _results),
        ("search", "Search", search_blocks),
        ("learning", "Learning curves", _learning),
        ("differences", "Differences", _differences),
        ("examples", "Single examples", _examples),
        ("drift", "Drift from the base", drift_blocks),
        ("serving", "Serving", serving_blocks),
        *_further_measures(facts),
        ("cost", "Cost", _cost),
        ("gates", "Gates", _gates),
        ("data", "Data", _data),
        ("provenance", "Provenance", _provenance),
        ("limitations", "Limitations", _limitations),
    )
    built = ((anchor, title, tuple(block for block in build(facts) if block)) for anchor, title, build in builders)
    finished = facts.stated.provenance.finished or ""
    return Document(
        title=facts.study.name,
        question=facts.study.question,
        subtitle=f"Finished {finished[:16].replace('T', ' ')}" if finished else "",
        summary=summary_sentences(facts),
        cards=hypothesis_cards(facts),
        conclusion=conclusion(facts),
        sections=tuple(Section(anchor, title, blocks) for anchor, title, blocks in built if blocks),
    )


def _further_measures(facts: Facts) -> Iterator[tuple[str, str, Callable[[Facts], list[Block | None]]]]:
    """What measures without a section of their own state, a section each."""
    for kind, stated in facts.stated.measures.items():
        blocks: list[Block | None] = [Bullets(stated.sentences)]
        yield f"measure-{kind}", stated.title, lambda facts, blocks=blocks: blocks


def _n(facts: Facts) -> str:
    """ "5 seeds an arm; 277 to 872 test examples"."""
    scores = facts.analysis.scores
    if not scores:
        return wording.plural(len(facts.seeds), "seed")
    seeds = wording.range_text([len(score.seeds) for score in scores])
    examples = wording.range_text([score.num_examples for score in scores])
    return f"{seeds} {'seed' if seeds == '1' else 'seeds'} an arm, {examples} test examples"


def _results(facts: Facts) -> list[Block | None]:
    if not facts.analysis.scores:
        return [Paragraph("No arm has a test score: no run finished."), tables.published_table(facts)]
    several = any(len(score.seeds) > 1 for score in facts.analysis.scores)
    bars = (
        "Bars: 95% t interval over seed means; dots below: single seeds. " if several else "One seed, so no interval. "
    )
    if results.cut_short(facts):
        bars += "Bars end where the metric ends, the table has the whole intervals. "
    return [
        Illustration(
            name="results",
            title="Test scores against baselines",
            caption=f"Marker: mean over seeds. {bars}Dashed: baselines, named in the rows below the "
            f"methods. {_n(facts)}.",
            draw=partial(results.draw_results, facts),
        ),
        tables.results_table(facts),
        tables.published_table(facts),
        ledger.protocol_gap_table(facts),
    ]


def _learning(facts: Facts) -> list[Block | None]:
    logged = set(facts.curves["name"])
    num_seeds = len(set(facts.curves["seed"]))
    band = (
        "Line: mean over seeds as far as all have a value; band: lowest to highest seed; thin lines beyond: single "
        f"seeds. {num_seeds} seeds."
        if num_seeds > 1
        else "One seed, so no band."
    )
    blocks: list[Block | None] = [
        Illustration(
            name=f"learning_{name.removeprefix('validation/')}",
            title=f"Validation {facts.metric_style(name.removeprefix('validation/'), task='*').label} during training",
            caption=f"{band} Dots: the checkpoint each run kept.",
            draw=partial(curves.draw_validation, facts, name=name),
        )
        for name in curves.validation_names(facts)
    ]
    for name, title in (("train/loss", "Training loss"), ("validation/loss", "Validation loss")):
        if name in logged:
            blocks.append(
                Illustration(
                    name=f"learning_{name.replace('/', '_')}",
                    title=title,
                    caption=band,
                    draw=partial(curves.draw_loss, facts, name=name),
                )
            )
    return blocks


def _differences(facts: Facts) -> list[Block | None]:
    if not facts.analysis.comparisons:
        return []
    return [
        Illustration(
            name="forest",
            title="Differences from the reference",
            caption="Thin bar: 95% interval; thick bar: 90% interval, which a margin is tested with "
            "(one-sided 5%). Paired "
            f"by example, seeds as a random effect. {_margin_note(facts)}n = seeds × test examples.",
            draw=partial(forest.draw_forest, facts),
        ),
        _sentences(facts),
        tables.differences_table(facts),
        tables.effects_table(facts),
        tables.mcnemar_table(facts),
        tables.anova_table(facts),
        tables.post_hoc_table(facts),
    ]


def _examples(facts: Facts) -> list[Block | None]:
    found = examples.predicted(facts)
    return [examples.confusion_table(facts, found), examples.disagreements_table(facts, found)]


def _sentences(facts: Facts) -> Bullets | None:
    """Differences in words, while they are few enough to be read; the figure and the table hold them all."""
    comparisons = facts.analysis.comparisons
    if len(comparisons) > _SENTENCES_AT_MOST:
        return None
    return Bullets(tuple(comparison_sentence(facts, row) for row in comparisons))


def _margin_note(facts: Facts) -> str:
    margins = any(hypothesis.absolute_margin for hypothesis in facts.study.hypotheses.values())
    return "Dashed: a margin declared by the study. " if margins else ""


def _cost(facts: Facts) -> list[Block | None]:
    if not facts.runs:
        return []
    return [
        Illustration(
            name="cost",
            title="What a run costs",
            caption=f"Bar and number: median over runs; dots: single runs. "
            f"{wording.plural(len(facts.runs), 'run')} in all, "
            f"{wording.listing(wording.name(task) for task in facts.tasks)} together.",
            draw=partial(cost.draw_cost, facts),
        ),
        ledger.cost_table(facts),
    ]


def _gates(facts: Facts) -> list[Block | None]:
    return [ledger.gates_table(facts), ledger.failures_table(facts)]


def _data(facts: Facts) -> list[Block | None]:
    return [sources.sizes_table(facts), sources.balance_table(facts), sources.checksums_table(facts)]


def _provenance(facts: Facts) -> list[Block | None]:
    return [sources.settings_table(facts), sources.heads_table(facts), sources.provenance_table(facts)]


def _limitations(facts: Facts) -> list[Block | None]:
    return [Bullets(limitations(facts))]
