"""LaTeX tables compile in a plain document whatever their cells hold."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lorascope.report.page.document import Column, Table
from lorascope.report.page.latex import escape, latex_table

NASTY = r"""a_b & 100% #1 $x$ {y} \n ~ ^ < > | " ` ' [z] * − – × · ± ∞ ≥ → é ü ß ł 漢 🙂 α²"""


def _nasty_table(rows: int = 3) -> Table:
    return Table(
        name="nasty_table",
        title="A & B_c: 100%",
        columns=(Column("what_is"), Column("n #", numeric=True)),
        rows=tuple((NASTY if row == 0 else f"[row {row}]", str(row)) for row in range(rows)),
        note="50% of_it",
    )


def test_every_special_character_is_escaped():
    assert escape("a_b & 5% #1 $x$ {y}") == r"a\_b \& 5\% \#1 \$x\$ \{y\}"
    assert escape("\\ ~ ^") == r"\textbackslash{} \textasciitilde{} \textasciicircum{}"


def test_letter_without_a_glyph_is_named_by_its_code():
    assert escape("漢") == "[U+6F22]"


def test_long_table_is_split_over_several_floats():
    text = latex_table(_nasty_table(rows=100))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 3
    assert "(part 2 of 3)" in text
    assert text.count("[row ") == 99


def test_rows_and_columns_agree():
    text = latex_table(_nasty_table())
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 3
    assert all(line.replace(r"\&", "").count("&") == 1 and line.endswith(r"\\") for line in body)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_nasty_table_compiles_with_booktabs_alone(tmp_path: Path):
    (tmp_path / "table.tex").write_text(latex_table(_nasty_table(rows=60)), encoding="utf-8")
    main = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    (tmp_path / "main.tex").write_text(main)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:]
