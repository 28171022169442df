"""What a figure shows: labels that can be told apart, and no score beyond what the metric can be."""

from __future__ import annotations

import dataclasses

import pytest
from report_fixture import write_analysis

from lorascope.report.page import canvas
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.page.templating import markdown_page
from lorascope.report.study import forest, results
from lorascope.report.study.sections import build_document
from lorascope.stats.facts.declared import HypothesisDeclared


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> Facts:
    return read_facts(write_analysis(tmp_path_factory.mktemp("analysis")))


def with_first_score(facts: Facts, **changes) -> Facts:
    first, *others = facts.analysis.scores
    assert first.interval is not None
    first = dataclasses.replace(first, interval=dataclasses.replace(first.interval, **changes))
    return dataclasses.replace(facts, analysis=dataclasses.replace(facts.analysis, scores=[first, *others]))


@pytest.mark.parametrize("width", [canvas.WIDE, canvas.NARROW])
@pytest.mark.parametrize("margin", [0.0005, 0.002, 0.03])
def test_labels_above_a_forest_plot_never_overlap(facts, margin, width):
    hypotheses = {"H1": HypothesisDeclared(equivalent="lora", to="full", margin=margin)}
    stated = dataclasses.replace(facts.stated, study=dataclasses.replace(facts.study, hypotheses=hypotheses))
    figure = forest.draw_forest(dataclasses.replace(facts, stated=stated), width)
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text().startswith(("margin", "no diff"))]
    assert len(texts) == 3
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_bars_of_accuracy_end_where_accuracy_ends(facts):
    wide = with_first_score(facts, low=-0.2, high=1.3)
    assert results.drawn_ends(wide.analysis.scores[0]) == (0.0, 1.0)
    drawn = [x for axes in results.draw_results(wide, 7.0).axes for line in axes.lines for x in line.get_xdata()]
    assert min(drawn) >= 0
    assert max(drawn) <= 100
    captions = {figure.name: figure.caption for figure in build_document(wide).illustrations}
    assert "Bars end where the metric ends" in captions["results"]


def test_bars_within_the_range_are_drawn_whole_without_a_remark(facts):
    score = facts.analysis.scores[0]
    assert score.interval is not None
    assert results.drawn_ends(score) == (score.interval.low, score.interval.high)
    captions = {figure.name: figure.caption for figure in build_document(facts).illustrations}
    assert "ends" not in captions["results"]


def test_a_task_of_images_without_classes_has_no_balance_and_no_tokens(facts):
    data = {
        name: dataclasses.replace(found, balance=None, unit="image", truncated_fraction={"m": {"test": 0.5}})
        for name, found in facts.data.items()
    }
    images = dataclasses.replace(facts, stated=dataclasses.replace(facts.stated, data=data))
    tables = {table.name: table for table in build_document(images).tables}
    assert "balance" not in tables
    assert "images/s" in [column.heading for column in tables["cost"].columns]
    assert "token" not in markdown_page("report.md.j2", document=build_document(images)).lower()
