"""Documents do not lie: their links lead somewhere, their commands run, their tables agree with the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.study.field_tables import field_tables
from lorascope.study.fields import FIELDS
from lorascope.study.loading.load import load_study

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
CHEAP = ("validate", "schema", "ls", "init", "--help", "--version")
HEAVY_MARK = "Traceback"


def shell_commands(document: Path) -> list[str]:
    """The `lorascope ...` lines of a document's shell blocks, without their comments."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", document.read_text(), re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("lorascope ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files_that_exist(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


def test_the_readme_links_every_document() -> None:
    linked = {(REPOSITORY / target).resolve() for target in LINK.findall((REPOSITORY / "README.md").read_text())}
    assert [path for path in sorted(REPOSITORY.glob("docs/*.md")) if path not in linked] == []


def test_the_documents_hold_commands_to_check() -> None:
    commands = [command for document in DOCUMENTS for command in shell_commands(document)]
    assert any(command.split()[1] in CHEAP for command in commands)
    assert "lorascope run studies/quickstart.yaml" in commands


@pytest.mark.parametrize(
    "command", sorted({c for d in DOCUMENTS for c in shell_commands(d) if c.split()[1] in CHEAP}), ids=str
)
def test_commands_that_compute_nothing_run_as_written(command: str, tmp_path: Path) -> None:
    (tmp_path / "studies").symlink_to(REPOSITORY / "studies")
    arguments = shlex.split(command.split(" > ")[0])[1:]
    done = subprocess.run(
        [sys.executable, "-c", "from lorascope.cli.app import main; main()", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert HEAVY_MARK not in done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_whole_studies_in_documents_load(document: Path, tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(name:.*?)```", document.read_text(), re.S):
        path = tmp_path / "study.yaml"
        path.write_text(block)
        load_study(path)


def test_field_tables_of_the_guide_are_those_of_the_code() -> None:
    guide = (REPOSITORY / "docs" / "writing-a-study.md").read_text()
    tables = field_tables()
    assert set(tables) == set(FIELDS)
    stale = [model.__name__ for model, table in tables.items() if table not in guide]
    assert stale == [], "print fresh ones: python -m lorascope.study.field_tables"
