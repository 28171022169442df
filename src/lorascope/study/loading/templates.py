"""The studies that ship, as templates for `lorascope init`: the files of studies/, packed into the wheel."""

from __future__ import annotations

from pathlib import Path

from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.registry import nearest
from lorascope.study.loading.document import read_document


def templates() -> dict[str, str]:
    """name -> the question it asks."""
    return {path.stem: read_document(path).data["question"] for path in sorted(_folder().glob("*.yaml"))}


def template_text(name: str) -> str:
    """The YAML of a template, comments included. Raises StudyError for an unknown one."""
    path = _folder() / f"{name}.yaml"
    known = [other.stem for other in sorted(_folder().glob("*.yaml"))]
    if name not in known:
        match = nearest(name, known)
        meant = f": did you mean `{match}`?" if match else ""
        raise StudyError(f"there is no template `{name}`{meant}", hint=f"templates: {', '.join(known)}")
    return path.read_text(encoding="utf-8")


def _folder() -> Path:
    """Inside the package in a wheel; at the top of the repository in a source checkout, which has no copy."""
    package = Path(__file__).parents[2]
    for folder in (package / "studies", package.parents[1] / "studies"):
        if folder.is_dir():
            return folder
    raise EnvironmentProblem("the studies that ship with lorascope are missing", hint="reinstall lorascope")
