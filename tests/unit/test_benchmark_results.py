"""Committed benchmark results have one format, documents quote them, and the scripts that write them can be started."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not part of a source distribution")
DOCUMENTS = sorted(BENCHMARKS.glob("**/*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SCRIPTS = {
    "drift": ("compare", "definitions", "extraction", "simulate_coverage", "weights", "whole_study"),
    "engine": ("overhead", "ray_overhead"),
    "numerics": ("capture", "compare", "gangs", "speed"),
    "planning": ("many_steps", "reality"),
    "search": ("compare", "fresh_seeds", "peer"),
    "serving": ("agreement", "make_checkpoint", "read_processes", "simulate_coverage"),
    "training": ("compare", "comparisons", "figure", "ours", "peers"),
}


def module(name: str) -> ModuleType:
    """A script at the top of benchmarks/, under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


if BENCHMARKS.exists():
    ratios = module("ratios")
    LISTS = {path: rows for area in ratios.areas() for path, rows in ratios.lists(area).items()}
else:
    LISTS = {}


def row(**changes: Any) -> dict[str, Any]:
    compared = ratios.compared("work", [2.0, 4.0], [6.0, 6.0], peer_name="peer")
    (whole,) = ratios.described([compared], machine="machine", versions={"python": "3"}, command="python x.py")
    return {**whole, **changes}


def run(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, **more)


# ---------------------------------------------------------------------------------------------------------- the format


@pytest.mark.parametrize("path", LISTS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_every_committed_list_has_the_format(path: Path):
    assert ratios.problems(LISTS[path], path.parent) == []


def test_every_area_is_known_and_has_lists():
    assert {path.parts[-3] for path in LISTS} == set(SCRIPTS)


def test_every_raw_file_belongs_to_a_list():
    named = {path.parent / row["raw"] for path, rows in LISTS.items() for row in rows if "raw" in row}
    assert set(BENCHMARKS.glob("*/results/raw/*")) == named


def test_ratio_is_of_medians_with_the_extremes_over_all_pairs():
    assert {key: row()[key] for key in ("ours", "peer", "ratio", "ratio_low", "ratio_high", "repeats")} == {
        "ours": 3.0, "peer": 6.0, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 3.0, "repeats": 2,
    }  # fmt: skip


def test_higher_figure_of_ours_is_better_where_it_is_said_so():
    shares = ratios.compared("share", [0.8], [0.4], peer_name="p", unit="fraction", higher_is_better=True)
    assert (shares["ratio"], shares["ours"], shares["peer"]) == (2.0, 0.8, 0.4)


def test_one_repeat_has_no_interval_and_a_failed_side_no_ratio():
    alone = ratios.compared("work", [2.0], [6.0, 8.0], peer_name="peer")
    assert (alone["ratio"], alone["ratio_low"], alone["interval"], alone["repeats"]) == (3.5, None, None, 1)
    failed = ratios.compared("work", [], [6.0], peer_name="peer")
    assert (failed["ours"], failed["peer"], failed["ratio"], failed["repeats"]) == (None, 6.0, None, 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"work": ""}, "work is ''"),
        ({"ratio": "2x"}, "ratio is '2x'"),
        ({"machine": {"name": "x"}}, "machine is"),
        ({"peer": None}, "a ratio without both sides"),
        ({"ratio_low": 2.5}, "the ratio 2.0 and its interval 2.5 to 3.0"),
        ({"interval": None}, "an interval is named where there is one"),
        ({"repeats": 1}, "an interval from one repeat"),
        ({"raw": "raw/none.json"}, "raw/none.json does not exist"),
    ],
)
def test_row_out_of_format_is_refused_with_a_reason(changes: dict[str, Any], said: str, tmp_path: Path):
    assert ratios.problems([row()], tmp_path) == []
    assert said in "; ".join(ratios.problems([row(**changes)], tmp_path))


def test_list_that_lacks_a_field_is_not_written(tmp_path: Path):
    incomplete = {key: value for key, value in row().items() if key != "command"}
    with pytest.raises(ValueError, match="lacks command"):
        ratios.write_list(tmp_path / "list.json", [incomplete])
    assert list(tmp_path.iterdir()) == []


def test_command_is_kept_without_the_paths_of_the_machine():
    typed = "python benchmarks/x.py --data /home/me/data --out=/tmp/o --steps 3 --study studies/a.yaml"
    assert ratios.without_paths(typed) == (
        "python benchmarks/x.py --data DATA --out=OUT --steps 3 --study studies/a.yaml"
    )


# ------------------------------------------------------------------------------------------------------- the documents


def test_script_prints_every_ratio_of_every_list():
    printed = run(str(BENCHMARKS / "ratios.py"), check=True).stdout
    for path, rows in LISTS.items():
        start = printed.index(f"(results/{path.name})")
        own = printed[start:].split("\n\n[")[0].split("\n## ")[0]
        cells = [line.split(" | ")[-1].rstrip(" |").split(" [")[0] for line in own.splitlines() if line[:2] == "| "]
        assert sorted(cell for cell in cells if cell not in ("ratio", "")) == sorted(map(ratios.spelled_ratio, rows))


@pytest.mark.parametrize("area", SCRIPTS)
def test_readme_of_an_area_holds_its_table_as_printed(area: str):
    stale = f"write it again: python benchmarks/ratios.py {area} --write"
    assert ratios.table(BENCHMARKS / area / "results") in (BENCHMARKS / area / "README.md").read_text(), stale


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/training/comparisons.py; modules that other areas name alike are not left behind."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "training"))
    for name in ("ratios", "figure", "comparisons"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    loaded = importlib.import_module("comparisons")
    for name in ("ratios", "figure", "comparisons"):
        monkeypatch.delitem(sys.modules, name)
    return loaded


def test_training_lists_are_what_the_raw_figures_give(training: ModuleType, tmp_path: Path):
    results = BENCHMARKS / "training" / "results"
    (tmp_path / "raw").symlink_to(results / "raw")
    training.write_lists(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.json")}
    assert written == {path.name: path.read_text() for path in results.glob("*.json")}


def test_performance_document_quotes_the_training_ratios():
    text = (ROOT / "docs" / "performance.md").read_text()
    measured = text.split("<!-- measured: begin -->")[1].split("<!-- measured: end -->")[0]
    quoted = re.findall(r"\| (\d+\.\d)x \|", measured)
    rows = [row for path, rows in LISTS.items() if path.parts[-3] == "training" for row in rows]
    held = [f"{row['ratio']:.1f}" for row in rows if row["ratio"] and "warm-up" not in row["work"]]
    assert sorted(quoted) == sorted(held)
    for ratio in ("47", "55", "31", "24.6", "4.1", "12.3", "1.5", "15.8"):  # of the table with must and aim
        assert f"{ratio}x" in text.split("<!-- measured: begin -->")[0]
        assert any(ratio in (held_ratio, f"{float(held_ratio):.0f}") for held_ratio in held)


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_links_of_the_benchmarks_lead_somewhere(document: Path):
    missing = []
    for target in LINK.findall(document.read_text()):
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        if "://" not in target and (not found.exists() or (anchor and anchor not in anchors(found))):
            missing.append(target)
    assert missing == []


def test_lines_of_the_readmes_fit_a_screen():
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in DOCUMENTS
        if path.name == "README.md"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > 150
    ]
    assert long == []


# ------------------------------------------------------------------------------------------------------- rendered files


def test_rendered_files_are_committed_only_where_none_can_be_made():
    rendered = [path for path in BENCHMARKS.glob("**/*") if path.suffix in (".png", ".pdf", ".svg", ".tex", ".html")]
    assert {path.name for path in rendered} == {"report.html"}
    assert [path for path in rendered if (path.parent / "facts.json").exists()] == []


def test_render_finds_its_entry_point_and_says_what_is_missing(tmp_path: Path):
    assert callable(module("render").entry_point())
    (tmp_path / "analysis.json").write_text("{}")
    refused = run(str(BENCHMARKS / "render.py"), str(tmp_path), "--into", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "lacks facts.json, curves.parquet, measurements.parquet" in refused.stderr


def test_render_names_the_files_that_differ_from_an_earlier_rendering(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    for directory, text in ((old, "before"), (new, "after")):
        (directory / "tables").mkdir(parents=True)
        (directory / "report.html").write_text("same")
        (directory / "tables" / "cost.tex").write_text(text)
    (old / "tables" / "gone.tex").write_text("")
    assert module("render").differences(new, old) == ["tables/cost.tex", "tables/gone.tex"]


# ---------------------------------------------------------------------------------------------------------------- smoke


IMPORT_ALL = """
import importlib, json, sys, traceback
root, areas = sys.argv[1], json.loads(sys.argv[2])
for area, names in areas.items():
    path = list(sys.path)
    sys.path.insert(0, f"{root}/{area}")
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            print(f"{area}/{name}.py: {traceback.format_exc().splitlines()[-1]}")
    sys.path[:] = path
    for name in [n for n, m in sys.modules.items() if (getattr(m, "__file__", None) or "").startswith(root)]:
        del sys.modules[name]  # areas have modules of one name
"""


def test_every_script_finds_what_it_imports():
    done = run("-c", IMPORT_ALL, str(BENCHMARKS), json.dumps(SCRIPTS))  # one process: torch is imported once
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-3000:]


def test_bootstrap_benchmark_runs_and_writes_the_format(tmp_path: Path):
    output = tmp_path / "bootstrap.json"
    sizes = ["--models", "1", "--layers", "1", "--examples", "16", "--draws", "4", "--repeats", "2", "--threads", "1"]
    script = str(BENCHMARKS / "drift" / "compare.py")
    done = run(script, "--bench", "bootstrap", *sizes, "--output", str(output))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(output.read_text())
    assert ratios.problems(rows, tmp_path) == []
    assert rows[0]["command"].endswith("--output OUTPUT")
