"""The section "Search": what was found and where it lies, from records alone; and what a search may be expected to find."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from environment import ENVIRONMENT
from report_fixture import Shape, write_analysis
from search_report_fixture import write_searched_analysis

from lorascope.report.page import canvas
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.render import render_report
from lorascope.report.search.rows import count, saved_fraction, searches_of
from lorascope.report.search.section import answer, progress, search_blocks
from lorascope.report.search.tables import budget_table, optima_table
from lorascope.report.study.sections import build_document
from lorascope.stats.search import best_so_far, expected_best


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(write_searched_analysis(tmp_path_factory.mktemp("searched") / "analysis"))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    directory = tmp_path_factory.mktemp("pruned") / "analysis"
    return read_facts(write_searched_analysis(directory, pruning="halving", train_examples=1000))


def test_the_expected_best_is_the_mean_over_all_ways_to_draw(facts: Facts) -> None:
    scores = [0.7, 0.9, 0.8, 0.8]
    for num_drawn, expected in enumerate(expected_best(scores), start=1):
        draws = itertools.product(scores, repeat=num_drawn)
        assert expected == pytest.approx(mean(max(draw) for draw in draws))
    with pytest.raises(ValueError, match="no score"):
        expected_best([])


def test_the_best_so_far_never_falls_and_begins_with_the_first_score() -> None:
    assert best_so_far([None, 0.5, 0.4, None, 0.6]) == [None, 0.5, 0.5, 0.5, 0.6]


def test_a_study_without_a_search_has_no_such_section(tmp_path: Path) -> None:
    facts = read_facts(write_analysis(tmp_path / "analysis"))
    assert search_blocks(facts) == []
    assert "search" not in [section.anchor for section in build_document(facts).sections]


def test_every_optimum_is_shown_with_its_range_and_the_edges_are_marked(facts: Facts) -> None:
    table = optima_table(facts)
    assert table is not None
    assert len(table.rows) == 3 * (5 + 5)
    rates = [row for row in table.rows if row[2] == "learning rate" and row[1] == "full fine-tuning"]
    assert {row[4] for row in rates} == {"1e-6 to 5e-5, log"}
    assert all("high: extend to" in row[6] for row in rates), "the best rate lies above the range"
    assert table.marked == {index for index, row in enumerate(table.rows) if row[6]}
    said = " ".join(answer(facts))
    assert "**At an end of its range**: the best learning rate for full fine-tuning on SST-2" in said


def test_copies_of_a_setting_count_once_as_trials_and_as_work(tmp_path: Path) -> None:
    lists = {"learning_rate": [1e-5, 3e-5], "warmup": [0.0, 0.1]}
    space = {"full": lists, "lora": lists}
    directory = write_searched_analysis(
        tmp_path / "analysis", Shape(tasks=("mrpc",)), space=space, trials=9, at_once=3, pruning="none"
    )
    facts = read_facts(directory)
    for search in searches_of(facts):
        assert len(search.trials) == 9 and len(search.tried) <= 4
        assert len({str(trial.params) for trial in search.tried}) == len(search.tried)
    table = budget_table(facts)
    assert table is not None
    for row, search in zip(table.rows, searches_of(facts), strict=True):
        assert row[2] == str(len(search.tried)) and row[7] == f"{300 * len(search.tried):,}"
    assert "of 18 proposals repeated a setting that had been tried" in " ".join(answer(facts))
    progress.draw_progress(facts, canvas.WIDE)


def test_the_budget_shows_equal_trials_and_what_pruning_spared(facts: Facts, pruned: Facts) -> None:
    for given in (facts, pruned):
        table = budget_table(given)
        assert table is not None
        assert {row[2] for row in table.rows} == {"15"}
    whole, spared = saved_fraction(searches_of(facts)), saved_fraction(searches_of(pruned))
    assert whole == 0
    assert spared is not None and spared > 0.6
    assert "of the training tokens" in " ".join(answer(pruned))
    assert "of the training tokens" not in " ".join(answer(facts))


def with_proposers(facts: Facts, *versions: str | None) -> Facts:
    """The first searches proposed by these, the others by the last of them."""
    rows = searches_of(facts)
    told = [*versions, *[versions[-1]] * (len(rows) - len(versions))]
    found = tuple(replace(row, proposed_by=who) for row, who in zip(rows, told, strict=True))
    return replace(facts, stated=replace(facts.stated, search=found))


def test_the_section_names_the_version_of_the_sampler_that_proposed(facts: Facts) -> None:
    said = next(answer(with_proposers(facts, "optuna 9.8.7")))
    assert "at once by a tree-structured Parzen estimator (TPE) in optuna 9.8.7, each trained with" in said


def test_where_versions_differ_each_search_says_which_proposed_its_trials(facts: Facts) -> None:
    both = "optuna 9.8.7 (trials 1 to 5), optuna 9.9.0 (trials 6 to 15)"
    first, *others = answer(with_proposers(facts, both, "optuna 9.9.0"))
    assert "optuna" not in first
    assert f"The trials of full fine-tuning on SST-2 were proposed by {both}." in others
    assert sum(text.endswith("were proposed by optuna 9.9.0.") for text in others) == len(searches_of(facts)) - 1
    same = list(answer(with_proposers(facts, both)))
    assert sum(text.endswith(f"were proposed by {both}.") for text in same) == len(searches_of(facts))


def test_a_grid_names_no_version(facts: Facts) -> None:
    assert not any("optuna" in text for text in answer(with_proposers(facts, None)))


def test_the_settings_table_shows_what_runs_were_trained_with(facts: Facts) -> None:
    tables = {table.name: table for table in build_document(facts).tables}
    rows = tables["settings"].rows
    assert len(rows) == 6
    optimum = searches_of(facts)[0].optimum
    assert optimum is not None
    assert float(rows[0][2]) == pytest.approx(optimum.params["learning_rate"], rel=1e-2)
    assert "5e-5" not in {row[2] for row in rows[3:]}


def test_limitations_speak_of_edges_and_of_unequal_updates(facts: Facts) -> None:
    section = build_document(facts).sections[-1]
    text = repr(section.blocks)
    assert "ended at an end of a range" in text
    assert "searched for full fine-tuning alone" in text
    assert "not searched" not in text


@pytest.mark.parametrize("width", [canvas.WIDE, canvas.NARROW])
def test_every_trial_has_a_mark_and_diverged_ones_stand_below_all_scores(facts: Facts, width: float) -> None:
    figure = progress.draw_progress(facts, width)
    for axes, task in zip(figure.axes, ("sst2", "mrpc", "rte"), strict=True):
        rows = [row for row in searches_of(facts) if row.task == task]
        marks = [line for line in axes.lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]
        assert len(marks) == sum(len(row.trials) for row in rows)
        crosses = [line for line in marks if line.get_marker() == "x"]
        assert len(crosses) == sum(count(row, "diverged") for row in rows)
        lowest = min(trial.value for row in rows for trial in row.trials if trial.value is not None)
        assert all(line.get_ydata()[0] < 100 * lowest for line in crosses)  # type: ignore[index]


def test_the_captions_name_only_marks_that_occur(facts: Facts, pruned: Facts) -> None:
    captions = [
        {block.name: block.caption for block in build_document(given).illustrations}["search_progress"]
        for given in (facts, pruned)
    ]
    assert ["pruned" in caption for caption in captions] == [False, True]


def test_a_whole_report_of_a_search_without_an_optimum(tmp_path: Path) -> None:
    directory = write_searched_analysis(tmp_path / "analysis", Shape(tasks=("mrpc",)), trials=2, at_once=2)
    raw = json.loads((directory / "facts.json").read_text())
    for trial in raw["search"][0]["trials"]:
        trial |= {"state": "diverged", "value": None, "loss": None, "by_step": [], "diverged": "nan"}
    raw["search"][0] |= {"optimum": None, "edges": []}
    (directory / "facts.json").write_text(json.dumps(raw))
    page = render_report(directory, tmp_path / "results").read_text()
    assert "every trial of full fine-tuning on MRPC diverged" in page
    assert "nan" not in (tmp_path / "results" / "ANALYSIS_REPORT.md").read_text().lower().split()


def test_the_report_of_a_search_needs_neither_optuna_nor_torch(tmp_path: Path) -> None:
    directory = write_searched_analysis(tmp_path / "analysis", Shape(tasks=("mrpc",)), trials=2, at_once=2)
    program = (
        "import sys; from pathlib import Path; from lorascope.report.render import render_report\n"
        f"render_report(Path({str(directory)!r}), Path({str(tmp_path / 'results')!r}))\n"
        "print([name for name in ('optuna', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
