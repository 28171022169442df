"""A study's folder among the results: whose it is, and what lies in it next to the report.

The one idea: a folder belongs to one study file. The file that was edited writes its report there again and the last one is
kept; a variation (`--set`, or a copy that a program changed) and another file of the same name get a folder of their own,
so that no report is lost because two studies are called alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem
from lorascope.report.page.files import write_whole
from lorascope.study.loading.resolved import resolved_yaml
from lorascope.study.spec import Study
from lorascope.version import __version__

OWNER = ".study.json"
STUDY, COMMAND, PREVIOUS, PAGE = "study.yaml", "command.txt", "previous", "report.html"
REPORT = (
    PAGE, "ANALYSIS_REPORT.md", "figures", "tables", "analysis.json", "facts.json", "measurements.parquet",
    "curves.parquet", "predictions.parquet", "draws.npz", "serving.parquet", STUDY, COMMAND,
)  # fmt: skip
"""What belongs to one report; logs, optima and trackers' files are the folder's."""


@dataclass(frozen=True)
class Folder:
    """path: where. why: why it is not results/NAME, in words; empty where it is. owner: what it is claimed with."""

    path: Path
    why: str
    owner: dict[str, Any]

    def take(self) -> None:
        """Makes the folder the study's own, before hours of work rather than after. Raises EnvironmentProblem."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if _read_owner(self.path) != self.owner:
                _write(self.path / OWNER, json.dumps(self.owner) + "\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"the results cannot be written to {self.path}: {error.strerror}",
                hint="name another directory with --results",
            ) from error


def folder_of(study: Study, results: Path) -> Folder:
    """Where a study's results are, or will be. Nothing is written."""
    owner, plain = _owner(study, results), results / study.name
    has_own_name = any(text.strip().startswith("name=") for text in owner["set"])
    is_variation = bool(owner["content"]) or bool(owner["set"]) and not has_own_name
    found = _read_owner(plain)
    if is_variation:
        what = "a copy changed by a program" if owner["content"] else f"`--set {owner['set'][0]}` is a variation"
        why = f"{what}, so {plain} stays as it is"
    elif found is None or found == owner or _is_gone(found, results):
        return Folder(plain, "", owner)
    else:
        file = found.get("file")
        other = os.path.normpath(results / file) if file else "a study that a program made"
        why = f"{plain} belongs to {other}, another study of the name {study.name}"
    digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()[:8]
    return Folder(results / f"{study.name}@{digest}", why, owner)


def _owner(study: Study, results: Path) -> dict[str, Any]:
    """file: from the results' directory, so that a project can be moved as a whole."""
    origin = study.origin
    file = None if origin.file is None else os.path.relpath(origin.file, results.resolve())
    changed = origin.content is not None and origin.content != study.content
    return {"file": file, "set": list(origin.overrides), "content": study.content if changed else None}


def _read_owner(folder: Path) -> dict[str, Any] | None:
    """None where nobody has claimed it: there is no folder, or one of an older version."""
    try:
        found = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _is_gone(owner: dict[str, Any], results: Path) -> bool:
    """Whether the file that a folder belongs to is no longer there: it was renamed, or taken away."""
    file = owner.get("file")
    return isinstance(file, str) and not (results.resolve() / file).exists()


# ------------------------------------------------------------------------------------------- what lies next to a report


def study_text(study: Study, folder: Path) -> str:
    """study.yaml next to a report: the study resolved, and by which version."""
    head = f"# The study of this report, with every setting written out, by lorascope {__version__}.\n"
    return head + resolved_yaml(study, folder=folder)


def command_line() -> str:
    """How this process was started: the command, or the program that called lorascope."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    is_ours = name in ("lorascope", "__main__.py")
    return shlex.join(["lorascope" if is_ours else name, *sys.argv[1:]])


def make_room(folder: Path, text: str) -> Path | None:
    """Puts the text in place of study.yaml. Where the report there is of another text, it is kept first; returns where."""
    kept = None
    if (folder / PAGE).exists() and _text(folder / STUDY) != text:
        kept = keep_report(folder)
    _write(folder / STUDY, text)
    _write(folder / COMMAND, command_line() + "\n")
    return kept


def keep_report(folder: Path) -> Path:
    """Keeps the report of a folder as its `previous`, in place of the one kept before."""
    new, kept = folder / f".{PREVIOUS}", folder / PREVIOUS
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name in REPORT:
        part = folder / name
        if part.is_dir():
            shutil.copytree(part, new / name)
        elif part.exists():
            shutil.copy2(part, new / name)
    shutil.rmtree(kept, ignore_errors=True)
    new.rename(kept)
    for name in ("figures", "tables"):  # the next report may have fewer of them
        shutil.rmtree(folder / name, ignore_errors=True)
    return kept


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())
