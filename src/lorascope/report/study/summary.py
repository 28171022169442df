"""The executive summary: what ran, and for each hypothesis its verdict, its answer and what would decide it."""

from __future__ import annotations

from lorascope.report.drift.answer import summary_of_drift
from lorascope.report.drift.definition import elsewhere_sentence
from lorascope.report.page import wording
from lorascope.report.page.document import Card
from lorascope.report.page.facts import Facts
from lorascope.report.serving.answer import summary_of_serving
from lorascope.report.study.tables import parts_table, unit_of
from lorascope.stats.analysis import Comparison, HypothesisResult, Interval
from lorascope.stats.facts.declared import HypothesisDeclared


def summary_sentences(facts: Facts) -> tuple[str, ...]:
    """Scale of the study, then what is missing or broken, then every primary difference where no hypothesis says it."""
    sentences = [_scale(facts)]
    failed = [gate for gate in facts.gates if not gate.passed]
    missing = facts.stated.missing_runs
    if missing:
        sentences.append(f"**{wording.plural(missing, 'planned run')} did not finish**; see what failed below.")
    if failed:
        sentences.append(
            f"**{wording.plural(len(failed), 'validity gate')} failed**: treat the results behind them as invalid."
        )
    elif facts.gates:
        sentences.append(f"All {wording.plural(len(facts.gates), 'validity gate')} held.")
    sentences += collapsed_sentences(facts)
    if not facts.analysis.hypotheses:
        sentences.append("The study declares no hypothesis, so it ends without a verdict.")
        sentences += [comparison_sentence(facts, row) for row in facts.analysis.comparisons]
    return (*sentences, *summary_of_drift(facts), *summary_of_serving(facts))


def collapsed_sentences(facts: Facts) -> list[str]:
    """Which runs learnt nothing. They count in every verdict."""
    collapsed = facts.analysis.collapsed
    if not collapsed:
        return []
    named = "; ".join(
        f"{wording.name(run.method)} on {facts.place(run.model, run.task)}, seed {run.seed}, {run.why}"
        for run in collapsed
    )
    counted = (
        f"{len(collapsed)} of {wording.plural(len(facts.runs), 'run')}" if facts.runs else f"{len(collapsed)} runs"
    )
    return [f"**{counted} collapsed**: {named}. All verdicts include {'it' if len(collapsed) == 1 else 'them'}."]


def _scale(facts: Facts) -> str:
    return (
        f"{wording.plural(len(facts.runs), 'run')}: {wording.listing(facts.models)} on "
        f"{wording.listing(wording.name(task) for task in facts.tasks)}, "
        f"{wording.listing(wording.name(method) for method in facts.methods)}, "
        f"{wording.plural(len(facts.seeds), 'seed')} each, {facts.protocol_text()}."
    )


def comparison_sentence(facts: Facts, row: Comparison) -> str:
    style = facts.metric_style(row.metric, task=row.task)
    return wording.gap_sentence(row, place=facts.place(row.model, row.task), style=style)


def hypothesis_cards(facts: Facts) -> tuple[Card, ...]:
    return tuple(
        Card(
            name=result.name,
            verdict=result.verdict,
            claim=result.claim,
            answer=" ".join(
                part
                for part in (
                    _unstable(result),
                    _answer(facts, result),
                    wording.sentence(_reason(result)),
                    elsewhere_sentence(facts, result),
                    _p_value(result),
                    _without_collapsed(facts, result),
                )
                if part
            ),
            parts=parts_table(facts, result),
            would_decide=wording.sentence(result.would_decide) if result.verdict == "inconclusive" else "",
        )
        for result in facts.analysis.hypotheses
    )


def _unstable(result: HypothesisResult) -> str:
    """That more than one run in five of an arm collapsed comes before all else."""
    found = result.without_collapsed
    return f"**Unstable**: {wording.listing(found.unstable)}." if found and found.unstable else ""


def _p_value(result: HypothesisResult) -> str:
    """The p of what is claimed, corrected over the study's hypotheses."""
    if result.p_holm is None or result.verdict == "inconclusive":
        return ""
    what = "refutation" if result.side == "refutation" else "support"
    return f"{wording.p_equals(result.p_holm)} for the {what}, corrected over the study's hypotheses.".replace(
        "p ", "P ", 1
    )


def _without_collapsed(facts: Facts, result: HypothesisResult) -> str:
    """What the claim would be without the runs that learnt nothing, labelled as secondary."""
    found = result.without_collapsed
    if found is None:
        return ""
    runs = wording.plural(found.num_left_out, "collapsed run")
    if found.average is None:
        return f"Secondary, without the {runs}: {found.verdict}."
    metric = facts.hypothesis_metric(result, task=facts.tasks[0])
    stated = _statement(facts, result, found.average, metric=metric)
    return f"Secondary, without the {runs}: {found.verdict}; on average {stated} ({_bounds(metric, found.average)})."


def _reason(result: HypothesisResult) -> str:
    """Why the verdict; the place is left out where there is only one, since the answer has just named it."""
    if len(result.parts) == 1:
        part, joint = result.parts[0], ", " if result.kind == "overhead" else " on "
        return result.reason.removeprefix(f"{part.model}{joint}{part.task}: ")
    return result.reason


def _answer(facts: Facts, result: HypothesisResult) -> str:
    """The average where there is one, else the single part; with several parts and no average the table says it."""
    estimate, where = result.average, "On average"
    if len(result.parts) == 1:
        part = result.parts[0]
        estimate = part.estimate or result.average
        where = f"On {facts.place(part.model, part.task)}" if part.task != "*" else where
    if estimate is None:
        return _range_of_parts(facts, result)
    metric = facts.hypothesis_metric(result, task=facts.tasks[0])
    n = wording.sample(result.num_seeds, result.num_examples, unit=unit_of(result))
    return f"{where} {_statement(facts, result, estimate, metric=metric)} ({_bounds(metric, estimate)}; {n})."


def _range_of_parts(facts: Facts, result: HypothesisResult) -> str:
    """ "Estimates run from −1.2 to −0.3 points (5 seeds × 277 to 408 examples)"."""
    known = [part for part in result.parts if part.estimate is not None]
    metrics = {facts.hypothesis_metric(result, task=part.task) for part in known}
    if not known or len(metrics) > 1:
        return ""
    metric = metrics.pop()
    low, high = (pick(part.estimate.estimate for part in known if part.estimate) for pick in (min, max))
    seeds = wording.range_text([part.num_seeds for part in known])
    examples = wording.range_text([part.num_examples for part in known])
    n = f"{seeds} {unit_of(result)}s" + (f" × {examples} examples" if examples != "0" else "")
    first = wording.gap(metric, low, unit=False)
    return f"Estimates run from {first} to {wording.gap(metric, high)} ({n})."


def _bounds(metric: str, interval: Interval) -> str:
    if metric in wording.COSTS and interval.low == interval.high:
        return "the same with every seed"
    return f"{wording.confidence(interval)} {wording.gap_range(metric, interval)}"


def _style(facts: Facts, result: HypothesisResult, metric: str) -> wording.MetricStyle:
    """How the metric of a hypothesis is written: of its task, or of all of them."""
    return facts.metric_style(metric, task=result.parts[0].task if len(result.parts) == 1 else "*")


def _statement(facts: Facts, result: HypothesisResult, estimate: Interval, *, metric: str) -> str:
    declared = facts.study.hypotheses.get(result.name, HypothesisDeclared())
    subject, reference = declared.subject, declared.reference
    value = wording.gap(metric, estimate.estimate)
    if subject is None or reference is None:
        return f"the estimate is {value}"
    first, second = wording.name(subject), wording.name(reference)
    if result.is_ratio:
        return f"{first} reaches {value} of the {_style(facts, result, wording.unshared(metric)).label} of {second}"
    if metric == "drift":
        return f"{first} has {value} of the drift of {second}"
    if metric in wording.SERVED:
        return f"{first} has {value} of the {wording.SERVED[metric]} of {second}"
    if metric in wording.COSTS:
        return f"{first} needs {value} of the {wording.COSTS[metric]} of {second}"
    style = _style(facts, result, metric)
    if wording.gap(metric, estimate.estimate, unit=False).strip("+−0.,") == "":
        return f"{first} and {second} {'score' if style.direction == 'higher' else 'have'} the same {style.label}"
    return wording.change_text(metric, estimate.estimate, arms=(first, second), style=style)


def conclusion(facts: Facts) -> tuple[str, str] | None:
    """(verdict, sentence) of the study's own conclusion formula."""
    stated = facts.analysis.conclusion
    if not stated:
        return None
    verdicts = wording.listing(f"{name} is {verdict}" for name, verdict in stated["values"].items())
    return stated["verdict"], f"`{stated['text']}`: {verdicts}."
