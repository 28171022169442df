"""The report's section on serving: what it says equals the data, and a study without serving is not touched by it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from report_fixture import Shape, write_analysis
from served_report_fixture import CASES, write_served_analysis

from lorascope.report.page import wording
from lorascope.report.page.document import Bullets, Illustration, Section, Table
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.page.latex import latex_table
from lorascope.report.render import render_report
from lorascope.report.serving.answer import answer, summary_of_serving
from lorascope.report.serving.limits import serving_limitations
from lorascope.report.serving.rows import overheads_of
from lorascope.report.serving.trade import draw_trade
from lorascope.report.serving.tuning import tuning_blocks
from lorascope.report.study.sections import build_document
from lorascope.stats.analysis import Analysis
from lorascope.stats.interval import Interval
from lorascope.stats.serving.advice import recommend

MISSING = re.compile(r"\b(nan|NaN|None|inf|Interval\(|undefined)\b")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("serving")
    return {name: write_served_analysis(root / name / "analysis", shape, **g) for name, (shape, g) in CASES.items()}


@pytest.fixture(scope="module")
def report(artifacts) -> Path:
    return render_report(artifacts["plain"], artifacts["plain"].parent / "report").parent


@pytest.fixture(scope="module")
def facts(artifacts) -> Facts:
    return read_facts(artifacts["plain"])


def section_of(facts: Facts) -> Section:
    return next(section for section in build_document(facts).sections if section.anchor == "serving")


def tables_of(facts: Facts) -> dict[str, Table]:
    return {block.name: block for block in section_of(facts).blocks if isinstance(block, Table)}


def figures_of(facts: Facts) -> dict[str, Illustration]:
    return {block.name: block for block in section_of(facts).blocks if isinstance(block, Illustration)}


def test_a_study_without_serving_has_no_part_on_serving(tmp_path):
    first = write_analysis(tmp_path / "now", Shape(tasks=("docstrings",), seeds=(42,)))
    analysis = json.loads((first / "analysis.json").read_text())
    again = Analysis.from_json(analysis)
    assert again.serving is None and "serving" not in again.to_json()
    analysis.pop("serving")
    second = write_analysis(tmp_path / "before", Shape(tasks=("docstrings",), seeds=(42,)))
    (second / "analysis.json").write_text(json.dumps(analysis))
    pages = [render_report(path, path / "report").parent / "ANALYSIS_REPORT.md" for path in (first, second)]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert "serving" not in pages[0].read_text().lower()
    assert not list(pages[0].parent.rglob("*serving*"))


def test_serving_is_rendered_in_every_format_without_a_missing_value(report):
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    page = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", (report / "report.html").read_text("utf-8"), flags=re.DOTALL)
    latex = {path.stem: path.read_text("utf-8") for path in (report / "tables").glob("serving_*.tex")}
    assert {"serving_results", "serving_overhead_merged", "serving_gates", "serving_engines"} <= set(latex)
    assert [MISSING.findall(text) for text in (markdown, page, *latex.values())] == [[]] * (2 + len(latex))
    assert "Serving</h2>" in page and "figures/serving_batch.png" in markdown
    assert (report / "serving.parquet").exists()


@pytest.mark.parametrize("name", CASES)
def test_no_text_of_the_section_misses_a_value_or_a_glyph(artifacts, name):
    facts = read_facts(artifacts[name])
    section = section_of(facts)
    texts = [latex_table(table) for table in tables_of(facts).values()]
    texts += [f"{figure.title} {figure.caption}" for figure in figures_of(facts).values()]
    texts += [item for block in section.blocks if isinstance(block, Bullets) for item in block.items]
    texts += [*serving_limitations(facts), *summary_of_serving(facts)]
    assert len(texts) > 10
    assert not [text for text in texts if MISSING.search(text) or "[U+" in text or "  " in text.strip()]


def test_serving_stands_before_cost(report):
    headings = re.findall(r"^## (.+)$", (report / "ANALYSIS_REPORT.md").read_text("utf-8"), flags=re.MULTILINE)
    assert headings[headings.index("Serving") + 1] == "Cost"


def test_figures_are_those_that_there_are_rows_for(facts, artifacts):
    drawn = {"serving_batch", "serving_overhead", "serving_tokens", "serving_rate", "serving_memory",
             "serving_switching", "serving_break_even", "serving_tuning"}  # fmt: skip
    assert set(figures_of(facts)) == drawn
    assert set(figures_of(read_facts(artifacts["bare"]))) == {"serving_batch", "serving_overhead", "serving_memory"}


def test_the_answer_states_overhead_and_interval_by_batch_size(facts):
    rows = [o for o in overheads_of(facts, ("minilm-l6", "generation"), "latency_ms_p95") if o.arm == "adapters-4"]
    text = next(t for t in answer(facts) if t.startswith("Generation: 4 adapters have a higher p95 latency"))
    assert len(rows) == 5 and text.endswith("5 repeats.")
    for o in rows:
        assert o.interval is not None
        told = f"{100 * (o.estimate - 1):.0f}% more at batch {o.level:g} [+{100 * (o.interval.low - 1):.1f}% to "
        assert told in text


def test_no_direction_is_claimed_where_an_interval_holds_no_difference(facts):
    serving = facts.analysis.serving
    assert serving is not None
    opened = [replace(o, interval=Interval(1.02, 0.9, 1.2, 0.95, "")) for o in serving.overheads]
    changed = replace(facts, analysis=replace(facts.analysis, serving=replace(serving, overheads=opened)))
    texts = " ".join(answer(changed))
    assert "depends on the batch size or is open" in texts and "than the merged model at every" not in texts


def test_the_hypothesis_is_told_with_repeats_and_never_with_seeds(facts):
    card = next(card for card in build_document(facts).cards if card.name == "H3")
    assert card.claim.startswith("adapters-4 costs at most 30% more p95 latency than merged at every model, workload")
    assert "5 repeats" in card.answer and "seed" not in card.answer
    assert "On average adapters-4 has 14" in card.answer and "of the p95 latency of merged" in card.answer
    assert card.parts is not None
    headings = [column.heading for column in card.parts.columns]
    assert "repeats" in headings and "seeds × examples" not in headings
    assert card.parts.rows[0][0] == "classification, batch 1" and card.parts.rows[0][5] == "5"
    assert any(text.startswith(f"**H3 is {card.verdict}**") for text in answer(facts))


def test_the_overhead_table_says_why_the_bootstrap_does_not_decide(facts):
    table = tables_of(facts)["serving_overhead_merged"]
    (o,) = [
        o
        for o in overheads_of(facts, ("minilm-l6", "classification"), "latency_ms_p95")
        if (o.arm, o.level) == ("adapters-2", 8.0)
    ]
    row = next(r for r in table.rows if r[:4] == ("classification", "2 adapters", "batch 8", "p95 latency"))
    assert row[4] == f"+{100 * (o.estimate - 1):.1f}%"
    assert o.interval is not None
    assert row[5] == f"+{100 * (o.interval.low - 1):.1f}% to +{100 * (o.interval.high - 1):.1f}%"
    assert "decides nothing" in table.note


def test_coverage_in_the_note_is_what_the_benchmark_found(facts):
    stored = Path(__file__).parents[4] / "benchmarks" / "serving" / "results" / "coverage.json"
    rows = [r for r in json.loads(stored.read_text())["rows"] if "bootstrap" in r["test"]]
    note = tables_of(facts)["serving_overhead_merged"].note
    for repeats in (5, 10):
        rates = [r["rate"] for r in rows if r["repeats"] == repeats]
        assert f"{100 * sum(rates) / len(rates):.0f}%" in note


def test_arms_that_failed_are_named_marked_and_in_no_figure(artifacts):
    facts = read_facts(artifacts["two_models"])
    tables = tables_of(facts)
    assert "full fine-tuning" not in {row[1] for row in tables["serving_results"].rows}
    gates = tables["serving_gates"]
    assert {gates.rows[index][1] for index in gates.marked} == {"full fine-tuning"}
    assert tables["serving_failures"].rows[0][-1] == "CUDA out of memory"
    texts = " ".join(answer(facts))
    assert "**full fine-tuning (generation · minilm-l6)** Failed its equivalence gate: token match" in texts
    assert any(text.startswith("Not every arm of serving is compared") for text in serving_limitations(facts))


def test_the_gain_of_tuning_is_told_by_batch_size_with_intervals(facts):
    serving = facts.analysis.serving
    assert serving is not None
    (text,) = [text for text in tuning_texts(facts) if text.startswith("Generation")]
    assert "of 2 settings other than the default, lora_target_modules was the fastest in the search" in text
    assert "In 5 repeats, the study confirms it at every batch size" in text
    gains = [t for t in serving.tuning if (t.workload, t.metric, t.loop, t.choice) ==
             ("generation", "latency_ms_p95", "batch", "round-robin")]  # fmt: skip
    assert len(gains) == 5
    for gain in gains:
        assert gain.interval is not None
        assert f"+{100 * (gain.estimate - 1):.1f}% [+{100 * (gain.interval.low - 1):.1f}% to " in text
    table = tables_of(facts)["serving_trials"]
    assert {table.rows[index][1] for index in table.marked} == {"lora_target_modules"}
    assert "not known to this version: vLLM 0.1 does not know the option" in {row[-1] for row in table.rows}
    assert ("max_loras 2", "+20.0%") in {(row[1], row[3]) for row in table.rows}


def test_no_gain_of_tuning_is_claimed_without_evidence(facts):
    serving = facts.analysis.serving
    assert serving is not None
    opened = [replace(t, interval=Interval(1.02, 0.9, 1.2, 0.95, "")) for t in serving.tuning]
    changed = replace(facts, analysis=replace(facts.analysis, serving=replace(serving, tuning=opened)))
    assert all("shows no gain, every interval includes zero" in text for text in tuning_texts(changed))
    trials = tuple(replace(trial, chosen=False) for trial in facts.served.trials)
    stated = replace(facts.stated, serving=replace(facts.served, trials=trials))
    texts = tuning_texts(replace(facts, stated=stated))
    assert texts and all("none was faster in the search. The default is the best that was found." in t for t in texts)


def tuning_texts(facts: Facts) -> list[str]:
    return [item for block in tuning_blocks(facts) if isinstance(block, Bullets) for item in block.items]


def test_what_merging_changes_stands_beside_what_rounding_changes(facts):
    table = tables_of(facts)["serving_merging"]
    generation = [row for row in table.rows if row[0] == "generation"]
    assert [(row[1], row[2], row[-1]) for row in generation] == [
        ("merged v adapter", "float32", "0.0% of 80"),
        ("merged v adapter", "bfloat16", "1.2% of 80"),
        ("adapter v float32 adapter", "bfloat16", "2.5% of 80"),
    ]


def test_every_break_even_has_interval_and_repeats_in_text_and_table(facts):
    serving = facts.analysis.serving
    assert serving is not None
    (row,) = [t for t in serving.traffic if (t.workload, t.num_tasks, t.mix) == ("generation", 4, "uniform")]
    held = row.last.interval
    assert held is not None and row.last.num_repeats == 5
    last, low, high = (wording.significant(v, 3) for v in (held.estimate, held.low, held.high))
    text = next(text for text in answer(facts) if text.startswith("Generation, machines for 4 tasks"))
    assert f"never needs more machines beyond {last} requests/s [95% interval {low} to {high}, 5 repeats]" in text
    (advice,) = [r.text for r in serving.recommendations if "generation: for 4 tasks asked for equally" in r.text]
    assert f"beyond {last} requests/s in all (95% interval {low} to {high})" in advice
    (gain,) = [m.gain for m in serving.one_machine if (m.workload, m.num_tasks, m.batch) == ("generation", 4, 16)]
    text = next(text for text in answer(facts) if text.startswith("Generation, one machine"))
    assert f"{wording.ratio(gain.value)} with 4 tasks [{wording.ratio_range(gain.interval)}]." in text
    assert "fewer than 2 tasks (in each of 5 repeats)" in " ".join(answer(facts))
    rows = {row[:2]: row[2:] for row in tables_of(facts)["serving_break_even"].rows}
    what = "requests/s beyond which merging never needs more machines, 4 tasks, equal shares"
    assert rows["generation", what] == (last, f"{low} to {high}", "5 of 5")
    assert rows["generation", "tasks from which adapters take less memory"] == ("2", "2.0 to 2.0", "5 of 5")
    assert "95% t intervals over repeats" in figures_of(facts)["serving_break_even"].caption


def test_a_break_even_without_an_interval_counts_repeats_instead(facts):
    serving = facts.analysis.serving
    assert serving is not None
    opened = [replace(t, last=replace(t.last, interval=None, num_found=3)) for t in serving.traffic]
    changed = replace(facts, analysis=replace(facts.analysis, serving=replace(serving, traffic=opened)))
    text = next(text for text in answer(changed) if text.startswith("Generation, machines for 4 tasks"))
    assert "(such a point exists in 3 of 5 repeats: no interval)" in text
    assert all(row[3] == "–" for row in tables_of(changed)["serving_break_even"].rows if "beyond which" in row[1])
    assert any("never needs more machines" in r.text for r in serving.recommendations)
    assert not any("never needs more machines" in r.text for r in recommend(replace(serving, traffic=opened)))


def test_the_figure_draws_each_interval_of_break_even_and_throughput(facts):
    panels = draw_trade(facts, 7.0).axes
    spans = [patch for panel in panels for patch in panel.patches if isinstance(patch, Rectangle)]
    serving = facts.analysis.serving
    assert serving is not None
    most = [t.last.interval for t in serving.traffic if t.num_tasks == 4]
    drawn = sorted(x for span in spans for x in (span.get_x(), span.get_x() + span.get_width()))
    assert drawn == pytest.approx(sorted(x for interval in most if interval for x in (interval.low, interval.high)))
    bars = [len(c.get_segments()) for panel in panels for c in panel.collections if isinstance(c, LineCollection)]
    assert bars == [3, 3, 3, 3]  # 2, 3 and 4 tasks, of two curves in two workloads


def test_limitations_follow_from_repeats_engine_and_device(facts, artifacts):
    plain = " ".join(serving_limitations(facts))
    assert "4 degrees of freedom" in plain and "vLLM turns compilation off" in plain and "not corrected" in plain
    bare = " ".join(serving_limitations(read_facts(artifacts["bare"])))
    assert "An interval over engine processes needs at least 3 repeats" in bare
    assert "degrees of freedom" not in " ".join(serving_limitations(read_facts(artifacts["two_models"])))


def test_advice_names_what_it_rests_on(facts):
    bullets = [block for block in section_of(facts).blocks if isinstance(block, Bullets)]
    assert all("(Rests on: " in item for item in bullets[-1].items)


def test_a_break_even_at_the_edge_is_a_bound_without_an_interval():
    from lorascope.stats.interval import Interval
    from lorascope.stats.serving.analysis import Figure, TasksBreakEven

    interval = Interval(2.0, 1.6, 2.5, 0.95, "t")
    edge = TasksBreakEven("m", "generation", 8.0, Figure(2.0, interval, 5, 5), 4, 2)
    within = TasksBreakEven("m", "generation", 8.0, Figure(3.0, interval, 5, 5), 4, 2)
    never = TasksBreakEven("m", "generation", 8.0, Figure(None, None, 0, 5), 4, 2)
    assert [row.at_edge for row in (edge, within, never)] == ["at most", "", "more than"]
