"""A report on a metric of which less is better: sentences, tables, limitations and figures point the right way."""

from __future__ import annotations

import pytest
from made_up_perplexity import write_perplexity_analysis

from lorascope.report.page import canvas, wording
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.study.forest import draw_forest
from lorascope.report.study.limitations import limitations
from lorascope.report.study.sections import build_document
from lorascope.report.study.summary import comparison_sentence, hypothesis_cards
from lorascope.report.study.tables import differences_table, effects_table, results_table


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """LoRA is a little worse: 7.5 against 7.3."""
    return read_facts(write_perplexity_analysis(tmp_path_factory.mktemp("perplexity") / "analysis", 0.02))


def test_a_higher_perplexity_is_told_as_worse(facts: Facts) -> None:
    (row,) = facts.analysis.comparisons
    sentence = comparison_sentence(facts, row)
    assert sentence.startswith("The perplexity of LoRA is 0.")
    assert " higher (worse) than that of full fine-tuning on RTE (95% interval +0." in sentence
    lower = wording.change_text("loss", -0.28, arms=("LoRA", "full fine-tuning"))
    assert lower == "the loss of LoRA is 0.280 nats lower (better) than that of full fine-tuning"
    same = wording.change_text("loss", 0.0001, arms=("LoRA", "full fine-tuning"))
    assert same == "LoRA has the same loss as full fine-tuning"


def test_no_sentence_of_the_report_gains_or_loses_perplexity(facts: Facts) -> None:
    texts = [card.answer + card.claim for card in hypothesis_cards(facts)]
    assert any("higher (worse)" in text for text in texts)
    assert not any(word in text for text in texts for word in ("gains", "loses"))


def test_tables_name_the_metrics_of_which_less_is_better(facts: Facts) -> None:
    for table in (results_table(facts), differences_table(facts)):
        assert table.note.endswith("Lower is better: perplexity.")


def test_an_arm_with_more_perplexity_than_a_baseline_learned_nothing(facts: Facts) -> None:
    (weak,) = [text for text in limitations(facts) if text.startswith("Some arms learned nothing useful")]
    assert "(not below oracle)" in weak and "untrained base" not in weak


def test_the_forest_has_the_better_side_and_the_margin_where_they_belong(facts: Facts) -> None:
    figure = draw_forest(facts, canvas.WIDE)
    (axes,) = figure.axes
    assert "← method better" in axes.get_xlabel() and "reference better →" in axes.get_xlabel()
    lines = [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "--"]  # type: ignore[index]
    assert sorted(lines) == [-0.5, 0.5], "the margin of equivalence both ways, that of non-inferiority above 0"
    (label,) = [text for text in axes.texts if text.get_text() == "margin close, alike"]
    assert label.get_ha() == "right", "its middle there would take it off the figure"
    labels = {text.get_text(): text.xy[0] for text in axes.texts if hasattr(text, "xy")}  # type: ignore[attr-defined]
    assert labels["margin close, alike"] == 0.5 and labels["margin alike"] == -0.5


def test_a_task_without_labels_has_a_whole_report(facts: Facts) -> None:
    document = build_document(facts)
    assert "Label balance" not in [table.title for table in document.tables]
    effects = effects_table(facts)
    assert "odds" not in effects.note and not any("odds" in column.heading for column in effects.columns)
    assert "McNemar" not in " ".join(table.title for table in document.tables)


def test_axes_of_such_a_metric_say_so() -> None:
    assert wording.metric_style("perplexity").axis == "perplexity, lower is better"
    assert wording.metric_style("accuracy").axis == "accuracy (%)"
    assert wording.metric_style("of_a_plug_in_that_is_gone").axis == "of a plug in that is gone"
