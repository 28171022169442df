"""What a report says so that its verdicts can be trusted: collapsed runs, the p of what is claimed, intervals of baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import Shape, write_analysis

from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.study.limitations import limitations
from lorascope.report.study.summary import hypothesis_cards, summary_sentences
from lorascope.report.study.tables import differences_table, parts_table, results_table
from lorascope.stats.analysis import CollapsedRun, Interval, Score, SoundRunsResult

WHY = "predicts class 1 for all 408 test examples"
UNSTABLE = ["lora on mrpc with minilm-l6: 2 of 5 runs collapsed"]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(write_analysis(tmp_path_factory.mktemp("trust") / "analysis", Shape()))


def changed(facts: Facts, **changes) -> Facts:
    return replace(facts, analysis=replace(facts.analysis, **changes))


def collapsed(facts: Facts, *, unstable: list[str]) -> Facts:
    secondary = SoundRunsResult(1, Interval(-0.004, -0.02, 0.01, 0.9, "multi-bootstrap"), "supported", unstable)
    first, *others = facts.analysis.hypotheses
    return changed(
        facts,
        collapsed=[CollapsedRun("minilm-l6", "mrpc", "lora", "3407", WHY)],
        hypotheses=[replace(first, without_collapsed=secondary), *others],
    )


def test_a_collapsed_run_is_named_in_the_summary_and_counts(facts: Facts):
    text = " ".join(summary_sentences(collapsed(facts, unstable=[])))
    assert f"**1 of 20 runs collapsed**: LoRA on MRPC, seed 3407, {WHY}. All verdicts include it." in text
    assert "collapsed" not in " ".join(summary_sentences(facts))


def test_an_unstable_arm_is_the_first_word_of_a_card(facts: Facts):
    card = hypothesis_cards(collapsed(facts, unstable=UNSTABLE))[0]
    assert card.answer.startswith(f"**Unstable**: {UNSTABLE[0]}.")
    assert "**Unstable**" not in hypothesis_cards(collapsed(facts, unstable=[]))[0].answer


def test_the_answer_without_collapsed_runs_is_labelled_secondary(facts: Facts):
    answer = hypothesis_cards(collapsed(facts, unstable=[]))[0].answer
    assert "Secondary, without the 1 collapsed run: supported; on average" in answer
    assert "90% interval −2.0 to +1.0" in answer


def test_the_p_next_to_a_verdict_is_that_of_its_side(facts: Facts):
    first, *others = facts.analysis.hypotheses
    for verdict, side, words in (
        ("refuted", "refutation", "P = 0.024 for the refutation, corrected"),
        ("supported", "support", "P = 0.024 for the support, corrected"),
    ):
        judged = replace(first, verdict=verdict, side=side, p_holm=0.024)
        assert words in hypothesis_cards(changed(facts, hypotheses=[judged, *others]))[0].answer
    parts = [replace(part, side="refutation", p_holm=0.01, verdict="refuted") for part in first.parts]
    table = parts_table(facts, replace(first, parts=parts))
    assert table is not None and {row[4] for row in table.rows} == {"0.010 against"}


def test_where_no_run_collapsed_the_report_says_how_many_could(facts: Facts):
    (sentence,) = [text for text in limitations(facts) if "collapse" in text]
    assert (
        sentence.startswith("No run collapsed")
        and "With 5 runs an arm, up to 45% of its runs could collapse" in sentence
    )
    (other,) = [text for text in limitations(collapsed(facts, unstable=[])) if "collapse" in text]
    assert other.startswith("In the other arms no run collapsed")


def test_baselines_have_intervals_and_further_metrics_have_rows(facts: Facts):
    task = facts.tasks[0]
    metric = facts.primary_metric(task)
    names = [row.name for row in facts.cell_baselines("minilm-l6", task, metric=metric)]
    interval = Interval(0.68, 0.63, 0.73, 0.95, "bootstrap over examples")
    baselines = [
        Score("minilm-l6", task, name.replace(" ", "-"), metric, 0.68, None, interval, {}, 408) for name in names
    ]
    other = Score("minilm-l6", task, "lora", "mcc", 0.5, 0.01, None, {"42": 0.5}, 408)
    comparison = replace(facts.analysis.comparisons[0], metric="mcc")
    whole = changed(facts, baselines=baselines, other_scores=[other], other_comparisons=[comparison])
    rows = results_table(whole).rows
    assert {row[4] for row in rows if row[0] == facts.place("minilm-l6", task) and row[1].startswith("baseline")} == {
        "63.0 to 73.0"
    }
    assert any(row[1] == "LoRA" and "Matthews" in row[2] for row in rows), [row[2] for row in rows]
    table = differences_table(whole)
    assert any("Matthews" in row[1] for row in table.rows) and "are a family apart" in table.note


def test_a_report_of_before_baselines_had_intervals_still_reads(facts: Facts, tmp_path: Path):
    assert facts.analysis.baselines == [] and results_table(facts).rows
