"""Whole reports from synthetic artifacts: every file there, self-contained, nothing unsaid, nothing called nan."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "support" / "report_fixture.py"
_SPEC = importlib.util.spec_from_file_location("report_fixture", _PATH)
assert _SPEC
assert _SPEC.loader
fixture = importlib.util.module_from_spec(_SPEC)
sys.modules["report_fixture"] = fixture
_SPEC.loader.exec_module(fixture)

from lorascope.report.render import render_report  # noqa: E402

SHAPES = {
    "plain": fixture.Shape(),
    "failed": fixture.Shape(failed=True, measured=False, seeds=(42, 1337, 2024)),
    "one_seed": fixture.Shape(tasks=("docstrings",), seeds=(42,), hypotheses=False, protocol="paper"),
    "large": fixture.Shape(
        models=("minilm-l6", "smollm2-135m"),
        tasks=("mrpc", "sst2", "rte", "docstrings"),
        methods=("full", "lora", "lora-r64", "adalora", "dora_attention"),
        seeds=(42, 1337),
    ),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    made = {}
    for name, shape in SHAPES.items():
        artifact = fixture.write_analysis(root / name / "analysis", shape)
        made[name] = render_report(artifact, root / name / "report").parent
    return made


@pytest.fixture(params=SHAPES)
def report(request, reports) -> Path:
    return reports[request.param]


class _Page(HTMLParser):
    """What a page loads, and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self._skip = 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._skip += tag == "style"
        for key, value in attrs:
            if key in ("src", "srcset", "data", "action") or (
                key in ("href", "xlink:href") and not value.startswith("#")
            ):
                self.loads.append(value)
            if key == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        self._skip -= tag == "style"

    def handle_data(self, data):
        if not self._skip:
            self.text.append(data)


def _page(report: Path) -> _Page:
    page = _Page()
    page.feed((report / "report.html").read_text(encoding="utf-8"))
    return page


def test_page_loads_nothing_and_runs_nothing(report):
    page = _page(report)
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    style = re.findall(r"<style.*?</style>", (report / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not any("@import" in sheet or "http" in sheet for sheet in style)


def test_ids_are_unique_and_every_link_has_its_target(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    ids = _page(report).ids
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {first or second for first, second in targets} <= set(ids)


def test_no_missing_value_shows(report):
    words = " ".join(_page(report).text) + (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    words += "".join(path.read_text(encoding="utf-8") for path in (report / "tables").glob("*.tex"))
    # "NaN" is the text of a failure in the fixture; a number that is missing would print as "nan" or "None"
    assert re.findall(r"\b(nan|None|inf|Interval\(|undefined)\b", words) == []


def test_every_figure_is_there_in_both_formats_and_in_the_page(report):
    figures = {path.stem for path in (report / "figures").iterdir()}
    assert {"results", "cost", "forest", "learning_accuracy", "learning_train_loss"} <= figures
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    ids = _page(report).ids
    for name in figures:
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (report / "figures" / f"{name}.png").stat().st_size > 5000
        assert f"](figures/{name}.png)" in markdown
        assert any(identifier.startswith(f"{name}-w-") for identifier in ids)
        assert any(identifier.startswith(f"{name}-n-") for identifier in ids)


def test_every_table_is_in_markdown_too(report):
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    for path in (report / "tables").glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{table}") > 0, path.name
    assert markdown.count("\n| --- |") >= len(list((report / "tables").glob("*.tex")))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_tables_compile_in_a_plain_document(report, tmp_path):
    inputs = "".join(f"\\input{{{path}}}\\clearpage\n" for path in sorted((report / "tables").glob("*.tex")))
    text = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{inputs}\\end{{document}}\n"
    (tmp_path / "main.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_second_rendering_gives_the_same_bytes_and_leaves_no_scraps(reports):
    report = reports["plain"]
    before = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    render_report(report.parent / "analysis", report)
    after = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    assert before == after
    assert not [path for path in after if path.name.startswith(".")]


def test_measurements_and_analysis_are_copied_whole(reports):
    report = reports["plain"]
    for name in ("measurements.parquet", "analysis.json"):
        assert (report / name).read_bytes() == (report.parent / "analysis" / name).read_bytes()


def test_missing_input_is_named_and_nothing_is_written(tmp_path):
    artifact = fixture.write_analysis(tmp_path / "analysis")
    (artifact / "curves.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"curves\.parquet"):
        render_report(artifact, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_summary_comes_first_and_sections_follow_in_order(reports):
    markdown = (reports["plain"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", markdown, flags=re.MULTILINE)
    assert headings == [
        "Executive summary",
        "Results against baselines",
        "Learning curves",
        "Differences",
        "Cost",
        "Gates",
        "Data",
        "Provenance",
        "Limitations",
    ]


def test_a_hypothesis_shows_verdict_estimate_interval_and_n(reports):
    markdown = (reports["plain"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    summary = markdown.split("## Results")[0]
    assert "### H1: inconclusive" in summary
    assert "What would decide it: About 640 test examples" in summary
    assert "### H2: supported" in summary
    assert (
        "On average LoRA needs 41.0% of the peak memory of full fine-tuning (95% interval 37.0% to 46.0%; 5 seeds)."
        in summary
    )
    assert "### Conclusion: inconclusive\n\n`H1 and H2`: H1 is inconclusive and H2 is supported." in summary
    assert re.search(r"\| RTE \| inconclusive \| −\d\.\d points \| −\d\.\d to \+\d\.\d \(90%\) \|", summary)


def test_results_table_holds_the_scores_of_the_analysis(reports):
    report = reports["plain"]
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    scores = json.loads((report / "analysis.json").read_text())["scores"]
    lora = next(row for row in scores if (row["task"], row["method"], row["metric"]) == ("rte", "lora", "accuracy"))
    interval = f"{lora['interval']['low'] * 100:.1f} to {lora['interval']['high'] * 100:.1f}"
    assert (
        f"| RTE | LoRA | accuracy | {lora['mean'] * 100:.1f}% | {interval} | {lora['sd'] * 100:.1f} | 5 | 277 |"
        in markdown
    )
    assert "| RTE | baseline: majority | accuracy | 52.7% | – | – | – | 277 |" in markdown


def test_analysis_of_variance_shows_effects_and_pairs(reports):
    markdown = (reports["plain"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    assert "| minilm-l6 | method | 1.84 | 1, 16 | 0.191 | 0.094 |" in markdown
    assert "| RTE | LoRA v full fine-tuning | −1.2 points | −2.3 to 0.0 | 0.045 |" in markdown


def test_failed_gate_stands_first_and_failure_is_told(reports):
    markdown = (reports["failed"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    gates = markdown.split("**Validity gates**")[1]
    assert gates.splitlines()[4].startswith("| **above baselines** | FAILED | RTE, LoRA, seed 2024 | 0.512 | 0.527 |")
    assert "training loss became NaN at update 212 of 600 hint: lower methods[1].learning_rate" in markdown
    assert "**1 planned run did not finish**" in markdown
    assert "1 run of 12 planned is missing" in markdown


def test_permutation_below_its_floor_is_withheld_with_the_reason(reports):
    markdown = (reports["failed"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    assert "not printed: smallest possible p is 0.100, above 0.05; needs 4 seeds" in markdown


def test_unmeasured_energy_is_a_dash_and_a_limitation(reports):
    report = reports["failed"]
    markdown = (report / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    assert "Not measured on cpu: energy and MFU." in markdown
    assert "kJ" not in "".join(_page(report).text)


def test_one_seed_without_hypotheses_says_what_it_cannot_say(reports):
    markdown = (reports["one_seed"] / "ANALYSIS_REPORT.md").read_text(encoding="utf-8")
    for sentence in (
        "The study declares no hypothesis, so it ends without a verdict.",
        "LoRA loses ",
        "One seed: the effect of initialisation and data order cannot be told from that of the methods",
        "Protocol `paper`: the checkpoint was chosen on the same examples that are reported",
        "No hypothesis was declared: the 1 comparison is exploratory and decides nothing",
        "**What the protocol is worth**",
    ):
        assert sentence in markdown
    assert "### Conclusion" not in markdown


def test_a_study_in_which_nothing_finished_still_has_a_report(tmp_path):
    artifact = fixture.write_analysis(tmp_path / "analysis", SHAPES["failed"])
    analysis = json.loads((artifact / "analysis.json").read_text())
    analysis |= {"scores": [], "comparisons": [], "hypotheses": [], "conclusion": None, "anova": None}
    (artifact / "analysis.json").write_text(json.dumps(analysis))
    facts = json.loads((artifact / "facts.json").read_text())
    facts |= {"runs": [], "missing_runs": 12, "baselines": []}
    (artifact / "facts.json").write_text(json.dumps(facts))
    import pandas as pd

    pd.DataFrame().to_parquet(artifact / "curves.parquet")
    page = render_report(artifact, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert "No arm has a test score: no run finished." in text
    assert "GateFailure" in text
    assert "12 runs of 12 planned are missing" in text


def test_markup_in_user_text_is_escaped(tmp_path):
    artifact = fixture.write_analysis(tmp_path / "analysis", SHAPES["one_seed"])
    facts = json.loads((artifact / "facts.json").read_text())
    facts["study"]["question"] = "Is <script>alert(1)</script> & more fine?"
    (artifact / "facts.json").write_text(json.dumps(facts))
    page = render_report(artifact, tmp_path / "report").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_rendering_imports_neither_torch_nor_pyplot(tmp_path):
    artifact = fixture.write_analysis(tmp_path / "analysis", SHAPES["one_seed"])
    code = (
        "import sys; from pathlib import Path; import lorascope.report.render as r; "
        "assert not {'matplotlib', 'pandas', 'jinja2', 'scipy'} & set(sys.modules); "
        f"r.render_report(Path({str(artifact)!r}), Path({str(tmp_path / 'report')!r})); "
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    source = Path(__file__).parents[3] / "src"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"})
