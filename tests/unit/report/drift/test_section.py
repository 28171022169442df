"""The report's section on drift: what it says equals the data, and a study without drift is not touched by it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drift_fixture import DriftShape, write_drift_analysis
from report_fixture import Shape, write_analysis

from lorascope.report.drift.answer import answer, summary_of_drift
from lorascope.report.drift.definition import elsewhere_sentence, health_figure, health_table
from lorascope.report.drift.limits import drift_limitations
from lorascope.report.drift.rows import averaged_rows, run_drifts, unhealthy_layers
from lorascope.report.drift.scale import floor_of, set_scale
from lorascope.report.page import canvas, wording
from lorascope.report.page.document import Bullets, Illustration, Section, Table
from lorascope.report.page.facts import Facts, read_facts
from lorascope.report.page.latex import latex_table
from lorascope.report.render import render_report
from lorascope.report.study.sections import build_document
from lorascope.stats.analysis import Analysis, DriftAnalysis, DriftReduction, Interval, VerdictElsewhere
from lorascope.stats.facts.declared import HypothesisDeclared

SHAPES = {
    "plain": (Shape(), DriftShape(snapshots=(50, 600))),
    "bare": (
        Shape(tasks=("docstrings",), seeds=(42,), hypotheses=False),
        DriftShape(sites=("residual",), examples=96, draws=200, text=False, elsewhere=False),
    ),
    "two_models": (
        Shape(models=("minilm-l6", "smollm2-135m"), methods=("full", "lora", "dora_attention"), seeds=(42, 1337)),
        DriftShape(floor=1.1, no_ratio="rte"),
    ),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("drift")
    return {name: write_drift_analysis(root / name / "analysis", *shapes) for name, shapes in SHAPES.items()}


@pytest.fixture(scope="module")
def report(artifacts) -> Path:
    return render_report(artifacts["plain"], artifacts["plain"].parent / "report").parent


@pytest.fixture(scope="module")
def facts(artifacts) -> Facts:
    return read_facts(artifacts["plain"])


def section_of(facts: Facts) -> Section:
    return next(section for section in build_document(facts).sections if section.anchor == "drift")


def tables_of(facts: Facts) -> dict[str, Table]:
    return {block.name: block for block in section_of(facts).blocks if isinstance(block, Table)}


def figures_of(facts: Facts) -> dict[str, Illustration]:
    return {block.name: block for block in section_of(facts).blocks if isinstance(block, Illustration)}


def with_reductions(facts: Facts, change) -> Facts:
    """change: what becomes of each reduction."""
    assert facts.analysis.drift is not None
    rows = [change(row) for row in facts.analysis.drift.reductions]
    drift = replace(facts.analysis.drift, reductions=rows)
    return replace(facts, analysis=replace(facts.analysis, drift=drift))


def shifted(row: DriftReduction, factor: float) -> DriftReduction:
    assert row.ratio is not None
    ends = (row.ratio.estimate * factor, row.ratio.low * factor, row.ratio.high * factor)
    return replace(row, ratio=Interval(*ends, 0.95, "moved"))


# ------------------------------------------------------------------------------------------------------ without drift


def everything_in(report: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in ("analysis.json", "measurements.parquet")}


def test_a_report_without_drift_does_not_depend_on_drift_rows(tmp_path):
    paths = [write_analysis(tmp_path / name, Shape(tasks=("docstrings",), seeds=(42,))) for name in ("now", "before")]
    for path in paths:
        pd.DataFrame().to_parquet(path / "curves.parquet")
    analysis = json.loads((paths[1] / "analysis.json").read_text())
    assert analysis.pop("drift") is None
    (paths[1] / "analysis.json").write_text(json.dumps(analysis))
    rows = pd.read_parquet(paths[1] / "measurements.parquet")
    rows.assign(value=rows["value"].where(~rows["metric"].str.startswith("drift"), 9.0)).to_parquet(
        paths[1] / "measurements.parquet"
    )
    first, second = (everything_in(render_report(path, path / "report").parent) for path in paths)
    assert first == second
    assert not [name for name in first if "drift" in name]
    assert b"drift" not in first["ANALYSIS_REPORT.md"].lower()


def test_analysis_with_drift_survives_json(facts):
    again = Analysis.from_json(json.loads(json.dumps(facts.analysis.to_json(), allow_nan=False)))
    assert again == facts.analysis


def test_analysis_of_drift_without_any_estimate_is_told_as_such(facts):
    empty = DriftAnalysis(num_draws=1000, num_examples={}, profiles=[], reductions=[], correlations=[])
    bare = replace(facts, analysis=replace(facts.analysis, drift=empty))
    assert "drift_residual" not in figures_of(bare)
    assert "drift_reduction" not in tables_of(bare)
    assert summary_of_drift(bare) == ()


# ---------------------------------------------------------------------------------------------------------- documents


MISSING = re.compile(r"\b(nan|NaN|None|inf|Interval\(|undefined)\b")


def test_drift_is_rendered_in_every_format_without_a_missing_value(report):
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    page = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", (report / "report.html").read_text("utf-8"), flags=re.DOTALL)
    latex = {path.stem: path.read_text("utf-8") for path in (report / "tables").glob("drift_*.tex")}
    assert {"drift_reduction", "drift_layers", "drift_measures", "drift_weights", "drift_function"} <= set(latex)
    assert [MISSING.findall(text) for text in (markdown, page, *latex.values())] == [[]] * (2 + len(latex))
    assert "Drift from the base</h2>" in page
    assert "figures/drift_residual.png" in markdown


@pytest.mark.parametrize("name", SHAPES)
def test_no_text_of_the_section_misses_a_value_or_a_glyph(artifacts, name):
    facts = read_facts(artifacts[name])
    section = section_of(facts)
    texts = [latex_table(table) for table in tables_of(facts).values()]
    texts += [f"{figure.title} {figure.caption}" for figure in figures_of(facts).values()]
    texts += [item for block in section.blocks if isinstance(block, Bullets) for item in block.items]
    texts += [*drift_limitations(facts), *summary_of_drift(facts)]
    assert len(texts) > 10
    assert not [text for text in texts if MISSING.search(text) or "[U+" in text or "  " in text.strip()]


def test_drift_stands_between_differences_and_cost(report):
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", markdown, flags=re.MULTILINE)
    place = headings.index("Drift from the base")
    assert headings[place - 1 : place + 2] == ["Differences", "Drift from the base", "Cost"]


def test_figures_are_those_that_there_are_rows_for(report, artifacts):
    profiles = {"drift_residual", "drift_attention", "drift_mlp"}
    shown = {path.stem for path in (report / "figures").glob("drift_*.png")}
    assert shown == {*profiles, "drift_heat", "drift_weights", "drift_forgetting", "drift_dynamics"}
    assert set(figures_of(read_facts(artifacts["bare"]))) == {"drift_residual", "drift_heat", "drift_weights"}


# -------------------------------------------------------------------------------------------------- numbers in the text


def test_answer_states_ratio_interval_and_size_of_the_sample(facts):
    lead = next(row for row in facts.analysis.drift.reductions if (row.task, row.part) == ("*", "overall"))
    ratio = lead.ratio
    first = answer(facts)[0]
    assert first.startswith("LoRA stays closer to the base than full fine-tuning: its drift is ")
    assert f"{ratio.estimate:.2f} times as large, {100 * (1 - ratio.estimate):.0f}% less, averaged over tasks" in first
    assert f"(95% interval {ratio.low:.2f} to {ratio.high:.2f}, p < 0.001; 5 seeds × 750 examples)" in first
    assert summary_of_drift(facts) == (f"Drift from the base: {first}",)


def test_interval_around_one_leaves_the_question_open(facts):
    opened = with_reductions(facts, lambda row: replace(row, ratio=Interval(0.9, 0.7, 1.1, 0.95, ""), p_value=0.3))
    assert answer(opened)[0].startswith(
        "Whether LoRA stays closer to the base than full fine-tuning is open: its drift"
    )
    assert "p = 0.300" in answer(opened)[0]


def test_ratio_above_one_is_further_from_the_base(facts):
    further = with_reductions(facts, lambda row: shifted(row, 4.0))
    assert "LoRA moves further from the base than full fine-tuning: its drift is 1.6" in answer(further)[0]
    assert "% more" in answer(further)[0]
    assert "drifts less, after Holm's correction: 0 of 6 on MRPC and 0 of 6 on RTE." in " ".join(answer(further))


def test_third_of_the_layers_is_named_only_where_intervals_are_apart(facts):
    assert "By depth the ratios cannot be told apart" in " ".join(answer(facts))
    late = with_reductions(facts, lambda row: shifted(row, 0.5) if row.part == "late" else row)
    assert "By depth the ratio is lower in the late third than in the early third" in " ".join(answer(late))
    assert "cannot be told apart" not in " ".join(answer(late))


def test_seeds_that_share_no_movement_are_named(facts, monkeypatch):
    monkeypatch.setattr("lorascope.report.drift.answer.seed_v_seed", lambda *args, **keys: 10.0)
    said = " ".join(answer(facts))
    assert (
        "arms they share none: full fine-tuning on " in said and "each seed moved the features in a direction" in said
    )


def test_the_movement_that_seeds_share_is_said(facts, artifacts):
    """Seed v seed is 35% of the drift, of 200% for seeds that move on their own."""
    assert "The seeds of an arm share 82% of their movement" in " ".join(answer(facts))
    above = " ".join(answer(read_facts(artifacts["two_models"])))
    assert "The seeds of an arm share 45% of their movement" in above, "seed v seed is 110% of the drift"
    assert "Seed v seed was not measured" in " ".join(answer(read_facts(artifacts["bare"])))


def test_a_task_without_a_ratio_gives_its_reason_everywhere(artifacts):
    facts = read_facts(artifacts["two_models"])
    reason = "the reference's drift of seed 42 is not above 0"
    assert f"RTE · minilm-l6 has no ratio ({reason})" in " ".join(answer(facts))
    rows = [
        row for row in tables_of(facts)["drift_reduction"].rows if row[0].startswith("RTE") and row[3] == "all layers"
    ]
    assert len(rows) == 12
    assert all(row[4:7] == (wording.ABSENT, wording.ABSENT, reason) for row in rows)
    assert [text for text in drift_limitations(facts) if text.startswith("No ratio of drift for LoRA v full")]


def test_reduction_table_holds_the_ratios_of_the_analysis(facts):
    rows = {row[:4]: row for row in tables_of(facts)["drift_reduction"].rows}
    for reduction in facts.analysis.drift.reductions:
        if reduction.site == "residual" and reduction.part in ("overall", "late"):
            place = "all tasks" if reduction.task == "*" else wording.name(reduction.task)
            part = {"overall": "all layers", "late": "late third"}[reduction.part]
            ratio = reduction.ratio
            row = rows[place, "LoRA v full fine-tuning", "residual stream", part]
            assert row[4:6] == (f"{ratio.estimate:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}")


def test_layer_table_counts_after_holm(facts):
    def holm(row: DriftReduction) -> DriftReduction:
        return replace(row, p_holm=0.2 if row.layer in (1, 2) else 0.01) if row.part == "layer" else row

    rows = tables_of(with_reductions(facts, holm))["drift_layers"].rows
    assert {(row[3], *row[6:]) for row in rows} == {("6", "6", "4", "0")}


def test_one_seed_has_ratios_of_layers_but_no_tests(artifacts):
    facts = read_facts(artifacts["bare"])
    (row,) = tables_of(facts)["drift_layers"].rows
    assert row[3] == "6"
    assert row[6:] == (wording.ABSENT,) * 3
    assert "Holm" not in " ".join(answer(facts))
    assert ", p " not in answer(facts)[0]
    assert answer(facts)[0].startswith("LoRA of the only seed stays closer to the base than full fine-tuning")
    assert "95% interval over examples alone" in answer(facts)[0]
    assert "Intervals cover examples alone, because there is one seed" in tables_of(facts)["drift_reduction"].note


def measured_mean(artifact: Path, *, task: str, method: str, **columns) -> float:
    rows = pd.read_parquet(artifact / "measurements.parquet")
    rows["layer"] = pd.to_numeric(rows["layer"])
    wanted = {"task": task, "method": method, **columns}
    for name, value in wanted.items():
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    return float(rows[rows["layer"].isna() | (rows["layer"] != 0)]["value"].mean())


def test_measures_weights_and_functions_are_means_of_the_measurements(facts, artifacts):
    tables, arm = tables_of(facts), {"task": "rte", "method": "lora"}
    probe = {"site": "residual", "split": "probe"}

    def cell(table: str, heading: str) -> str:
        place = [column.heading for column in tables[table].columns].index(heading)
        return next(row for row in tables[table].rows if row[:2] == ("RTE", "LoRA"))[place]

    def mean(**columns) -> float:
        return measured_mean(artifacts["plain"], **arm, **columns)

    drift = mean(metric="drift", **probe)
    assert cell("drift_measures", "drift (1 − debiased CKA)") == wording.drift(drift)
    assert cell("drift_measures", "Procrustes") == wording.drift(mean(metric="procrustes_distance", **probe))
    assert cell("drift_elsewhere", "on MRPC") == wording.drift(0.7 * drift)
    size = mean(metric="relative_update_norm", site=None)
    assert cell("drift_weights", "‖ΔW‖ / ‖W‖") == wording.drift(size)
    assert cell("drift_weights", "rank used") == "67.5%"
    moved = mean(metric="attention_total_variation")
    assert cell("drift_function", "attention moved (total variation)") == wording.drift(moved)
    assert cell("drift_function", "forgetting") == wording.signed_drift(mean(metric="forgetting"))


def test_rank_correlations_are_in_caption_and_table(facts):
    caption = figures_of(facts)["drift_weights"].caption
    assert "Spearman's rho (95% interval): MRPC +0.83 (+0.52 to +0.94), 10 runs" in caption
    rows = tables_of(facts)["drift_correlations"].rows
    assert (
        "RTE",
        "drift and forgetting",
        "+0.83 (+0.52 to +0.94)",
        "+0.21 (−0.33 to +0.65)",
        "10",
        wording.ABSENT,
    ) in rows


def test_too_few_runs_for_a_correlation_is_said(artifacts):
    caption = figures_of(read_facts(artifacts["bare"]))["drift_weights"].caption
    assert caption.endswith("No rank correlation: fewer than 4 runs.")


def test_hypothesis_on_drift_is_told_as_a_share(facts):
    result = replace(facts.analysis.hypotheses[1], metric="drift")
    hypotheses = {"H2": HypothesisDeclared(lower="lora", than="full", on="drift")}
    stated = replace(facts.stated, study=replace(facts.study, hypotheses=hypotheses))
    changed = replace(facts, stated=stated, analysis=replace(facts.analysis, hypotheses=[result]))
    card = build_document(changed).cards[0]
    assert card.answer.startswith(
        "On average LoRA has 41.0% of the drift of full fine-tuning (95% interval 37.0% to 46.0%"
    )


# -------------------------------------------------------------------------------------------------------- limitations


def test_limitations_follow_from_the_data(facts, artifacts):
    plain, bare = (" ".join(drift_limitations(f)) for f in (facts, read_facts(artifacts["bare"])))
    assert "the usual, biased CKA would hide up to 38% of the drift" in plain
    assert "drift is larger in 0 of 4 pairs of arm and probe" in plain
    assert "Where drift is lower, the weights also changed less: LoRA on MRPC" in plain
    assert "Forgetting was not measured" not in plain
    assert "one seed" not in plain
    assert "Drift rests on one seed an arm" in bare
    assert "Forgetting was not measured" in bare
    assert "on other texts it may be larger or smaller" in bare
    assert "200 bootstrap draws" in bare


def test_measure_that_orders_the_methods_the_other_way_is_a_limitation(tmp_path):
    artifact = write_drift_analysis(tmp_path / "analysis", *SHAPES["bare"])
    path = artifact / "measurements.parquet"
    rows = pd.read_parquet(path)
    turned = (rows["metric"] == "drift_standardised") & (rows["method"] == "lora")
    rows.loc[turned, "value"] *= 10
    rows.to_parquet(path)
    told = [text for text in drift_limitations(read_facts(artifact)) if "the opposite way to drift" in text]
    assert len(told) == 1
    assert told[0].startswith("On docstrings standardised features (")


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize("width", [canvas.WIDE, canvas.NARROW])
def test_lines_of_a_profile_are_the_analysis_and_its_references(facts, width):
    figure = figures_of(facts)["drift_residual"].draw(width)
    lines = [np.asarray(line.get_ydata()) for line in figure.axes[1].lines]
    profile = sorted(
        (
            row
            for row in facts.analysis.drift.profiles
            if (row.task, row.method, row.site) == ("rte", "lora", "residual")
        ),
        key=lambda row: row.layer,
    )
    expected = np.array([row.drift.estimate for row in profile])
    assert any(np.allclose(line, expected) for line in lines)
    assert any(np.allclose(line, 0.35 * expected) for line in lines)
    assert any(np.allclose(line, 0.995) for line in lines)
    assert len(lines) == 6  # two methods, their two floors, two references
    shown = {text.get_text() for text in figure.axes[1].texts}
    assert {"LoRA", "full fine-tuning", "random weights", "other examples"} <= shown
    assert next(iter(shown & {"drift, 1 − CKA (log scale, linear below 1e-4)"}), None)


@pytest.mark.parametrize("width", [canvas.WIDE, canvas.NARROW])
@pytest.mark.parametrize("name", SHAPES)
def test_labels_of_a_profile_never_overlap_and_stay_inside(artifacts, name, width):
    figure = figures_of(read_facts(artifacts[name]))["drift_residual"].draw(width)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_position()[0] == 5]
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_every_cell_of_the_heat_map_holds_its_number(facts):
    figure = figures_of(facts)["drift_heat"].draw(canvas.NARROW)
    shown = [text.get_text() for text in figure.axes[1].texts]
    cells = [row for row in facts.analysis.drift.profiles if (row.method, row.site) == ("lora", "residual")]
    assert all(wording.drift(row.drift.estimate) in shown for row in cells)
    assert len(figure.axes[1].patches) == len(cells) == 14


def test_scatter_shows_one_mark_a_run(facts):
    figure = figures_of(facts)["drift_weights"].draw(canvas.WIDE)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_transform() != axes.transAxes]
    assert len(marks) == len(facts.runs) == 20
    assert axes.get_xscale() == "log"


def test_scale_is_logarithmic_only_for_values_that_span_decades():
    assert floor_of([0.2, 0.3, 0.9]) is None
    assert floor_of([0.0, -0.01]) is None
    assert floor_of([0.0, 0.003, 0.9]) == pytest.approx(0.001)
    assert floor_of([1e-12, 0.5]) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("values", "kind", "scale"),
    [
        ([0.2, 0.3], None, "linear"),
        ([0.2, 0.3], "log", "log"),
        ([0.002, 0.3], None, "log"),
        ([0.0, 0.002, 0.3], None, "symlog"),
        ([-0.02, 0.002, 0.3], None, "symlog"),
        ([-0.02, 0.002, 0.3], "linear", "linear"),
    ],
)
def test_every_value_lies_on_the_axis(values, kind, scale):
    figure = canvas.new_figure(4, 3)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    set_scale(axes, values, which="y", kind=kind)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    assert axes.get_yscale() == scale
    assert low <= min(values) < max(values) <= high
    assert [label.get_text() for label in axes.get_yticklabels() if label.get_text()]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0412, "0.041"), (4.12e-5, "4.1e-5"), (-4.12e-5, "−4.1e-5"), (0.0, "0"), (-3e-12, "0"), (None, "–")],
)
def test_drift_is_written_with_two_digits(value, text):
    assert wording.drift(value) == text


# ---------------------------------------------------------------------------------------------------------- definitions


def test_a_report_on_results_of_an_older_version_names_its_definition(facts):
    """They have no column for the pooling, and no facts about it."""
    assert facts.stated.drift == () and {row.pooling for row in facts.measured("drift")} == {None}
    sentences = next(block for block in section_of(facts).blocks if isinstance(block, Bullets)).items
    assert "by the definition of older versions" in sentences[-1] and "over every layer" in sentences[-1]
    assert not {"drift_robustness", "drift_health"} & {
        block.name for block in section_of(facts).blocks if hasattr(block, "name")
    }


@pytest.fixture(scope="module")
def defined(artifacts, tmp_path_factory) -> Facts:
    """The plain study as measured by the decision token: MRPC's layer 2 is unhealthy, and there is a plain mean."""
    directory = tmp_path_factory.mktemp("defined") / "analysis"
    shutil.copytree(artifacts["plain"], directory)
    rows = pd.read_parquet(directory / "measurements.parquet")
    is_drift = rows["split"].notna() & rows["site"].isin(["residual", "attention", "mlp"])
    rows["pooling"] = is_drift.map({True: "decision-token", False: None}).astype("string")
    others = rows[is_drift & (rows["metric"] == "drift") & (rows["site"] == "residual") & (rows["split"] == "probe")]
    others = others[~others["method"].str.startswith("reference:")].assign(value=0.9, pooling="mean")
    base = [
        {"run": "drift-x", "model": model, "task": task, "method": "reference:base", "seed": "*", "split": "probe",
         "site": "residual", "layer": str(layer), "metric": "feature_effective_rank", "unit": "1", "pooling": pooling,
         "value": 1.2 if (task, layer, pooling) == ("mrpc", 2, "decision-token") else 20.0 + layer}
        for model, task in cells_of(directory) for layer in range(7) for pooling in ("decision-token", "mean")
    ]  # fmt: skip
    kinds = {name: "float64" if name == "value" else "string" for name in rows.columns}
    pd.concat([rows, others, pd.DataFrame(base)], ignore_index=True).astype(kinds).to_parquet(
        directory / "measurements.parquet", index=False
    )
    stated = json.loads((directory / "facts.json").read_text())
    stated["drift"] = [
        {"model": model, "task": task, "pooling": "decision-token", "poolings": ["decision-token", "mean"], "num_layers": 6,
         "left_out": {"decision-token": [2] if task == "mrpc" else [], "mean": []}, "least_effective_rank": 3.0}
        for model, task in cells_of(directory)
    ]  # fmt: skip
    (directory / "facts.json").write_text(json.dumps(stated))
    return read_facts(directory)


def cells_of(directory: Path) -> list[tuple[str, str]]:
    return read_facts(directory).cells


def test_figures_show_the_primary_pooling_and_leave_out_sick_layers(defined: Facts, facts: Facts) -> None:
    assert {row.pooling for row in run_drifts(defined)} == {"decision-token"}
    assert len(run_drifts(defined)) == len(run_drifts(facts))
    model = defined.models[0]
    own, before = (
        {row.layer for row in averaged_rows(f, "drift") if (row.model, row.task) == (model, "mrpc")}
        for f in (defined, facts)
    )
    assert before - own == {2}
    assert unhealthy_layers(defined, model, "mrpc", site="residual") == [2]
    sentences = next(block for block in section_of(defined).blocks if isinstance(block, Bullets)).items
    assert "averaged over 5 of 6 layers (MRPC)" in sentences[-1]
    health = next(block for block in section_of(defined).blocks if getattr(block, "name", "") == "drift_health")
    assert any("Grey: layers with an effective rank below 3" in b.caption for b in section_of(defined).blocks
               if isinstance(b, Illustration))  # fmt: skip
    assert health is not None


def test_health_figure_and_table_are_drawn(defined: Facts) -> None:
    illustration, table = health_figure(defined), health_table(defined)
    assert illustration is not None and table is not None
    assert len(illustration.draw(7.0).axes) == len(defined.cells)
    first = next(row for row in table.rows if row[:2] == ("MRPC", "decision token (primary)"))
    assert first[2] == "2" and first[3].startswith("1.2 to")


def test_a_card_says_where_another_definition_decides_otherwise(defined: Facts) -> None:
    result = replace(
        defined.analysis.hypotheses[0],
        elsewhere=[
            VerdictElsewhere("mean", True, "refuted", None, "refuted instead of supported"),
            VerdictElsewhere("mean", False, "supported", None, ""),
        ],
    )
    said = elsewhere_sentence(defined, result)
    assert (
        said == "**It depends on how drift is measured**: by the plain mean, every layer: refuted instead of supported."
    )
    assert elsewhere_sentence(defined, replace(result, elsewhere=result.elsewhere[1:])) == ""
