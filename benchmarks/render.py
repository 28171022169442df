"""Render the report of a committed result again: pages, figures and LaTeX tables, from its parquet and json files.

    python benchmarks/render.py benchmarks/results/classification-h200 --into OUT [--compare OLD]

A result is one directory with analysis.json, facts.json, curves.parquet, measurements.parquet, and serving.parquet where
the study served. `--compare` names every file that differs from an earlier rendering, and ends with status 1 if one does.
"""

from __future__ import annotations

import argparse
import filecmp
from collections.abc import Callable
from pathlib import Path

NEEDED = ("analysis.json", "facts.json", "curves.parquet", "measurements.parquet")
RENDERED = ("ANALYSIS_REPORT.md", "report.html", "figures", "tables")


def entry_point() -> Callable[[Path, Path], Path]:
    """(directory of the result, directory of the rendering) -> the page. Imported late: it is not needed to complain."""
    from lorascope.report.render import render_report

    return render_report


def differences(new: Path, old: Path) -> list[str]:
    """Rendered files of the old directory that the new one lacks or has otherwise. Files that only the new one has are
    left out: an older lorascope may have drawn no PDF, or had fewer figures."""
    paths = [path for name in RENDERED for path in [old / name, *sorted((old / name).glob("*"))] if path.is_file()]
    return [
        str(path.relative_to(old))
        for path in paths
        if not (twin := new / path.relative_to(old)).exists() or not filecmp.cmp(path, twin, shallow=False)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the report of a committed result again.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="made if absent")
    parser.add_argument("--compare", type=Path, help="an earlier rendering")
    given = parser.parse_args()
    if missing := [name for name in NEEDED if not (given.result / name).exists()]:
        parser.error(f"{given.result} lacks {', '.join(missing)}: its report cannot be rendered, see report.html there")
    print(entry_point()(given.result, given.into))
    if given.compare is None:
        return 0
    found = differences(given.into, given.compare)
    print("\n".join(f"differs: {path}" for path in found) or f"equal to {given.compare}, byte for byte")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
