"""A report written from an analysis that was done again, in the folder of the first or elsewhere."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from lorascope.report.folder import COMMAND, STUDY, command_line, keep_report, study_text
from lorascope.report.page.facts import CURVE_COLUMNS
from lorascope.report.page.files import write_whole
from lorascope.report.render import FURTHER, render_report
from lorascope.stats.analysis import Analysis
from lorascope.stats.facts.study import StudyFacts
from lorascope.study.spec import Study

_CURVES = "curves.parquet"


def write_again(
    analysis: Analysis, facts: StudyFacts, directory: Path, *, to: Path, study: Study | None = None
) -> Path:
    """The page, and next to it all that `directory` held. A report in `to` is kept as `previous` if its statistics differ.
    study: as which it was analysed, where that is not the one in `directory`."""
    import pandas as pd

    text = json.dumps(analysis.to_json(), indent=1, allow_nan=False)
    with tempfile.TemporaryDirectory() as made:
        source = Path(made)
        (source / "analysis.json").write_text(text, encoding="utf-8")
        (source / "facts.json").write_text(json.dumps(facts.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        for name in ("measurements.parquet", _CURVES, STUDY, *FURTHER):
            if (directory / name).exists():
                shutil.copy2(directory / name, source / name)
        has_curves = (source / _CURVES).exists()
        if not has_curves:
            pd.DataFrame(columns=CURVE_COLUMNS).to_parquet(source / _CURVES)
        there = to / "analysis.json"
        if there.exists() and there.read_text(encoding="utf-8") != text:
            keep_report(to)
        page = render_report(source, to)
        if not has_curves:
            (to / _CURVES).unlink()
        if study is not None:
            write_whole(to / STUDY, study_text(study, to).encode())
        elif (source / STUDY).exists():
            write_whole(to / STUDY, (source / STUDY).read_bytes())
    write_whole(to / COMMAND, _commands(directory).encode())
    return page


def _commands(directory: Path) -> str:
    """The command that ran the study, and this one."""
    there = directory / COMMAND
    told = there.read_text(encoding="utf-8").splitlines() if there.exists() else []
    return "\n".join(dict.fromkeys([*told, command_line()])) + "\n"
