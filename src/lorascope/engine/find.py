"""A step by how its id begins, as people write it; what is nearest if there is none."""

from __future__ import annotations

from pathlib import Path

from lorascope.engine.artifact import Artifact
from lorascope.engine.store import Store
from lorascope.errors import StudyError
from lorascope.registry import nearest


def find_artifact(beginning: str, root: Path, *, kind: str | None = None) -> Artifact:
    """The one finished step of the store `root` whose id is, or begins with, `beginning`. kind: only steps of it.

    Raises StudyError naming what else there is.
    """
    store = Store(root)
    ids = [artifact.id for artifact in store.artifacts(kind)]
    found = [step_id for step_id in ids if step_id == beginning] or [i for i in ids if i.startswith(beginning)]
    if len(found) == 1:
        return store.artifact(found[0])
    if found:
        listed = ", ".join(found[:6]) + (" ..." if len(found) > 6 else "")
        raise StudyError(f"{len(found)} steps begin with `{beginning}`", hint=f"write more of it: {listed}")
    match = nearest(beginning, ids)
    raise StudyError(
        f"{root} holds no {f'{kind} ' if kind else ''}step `{beginning}`"
        + (f": did you mean `{match}`?" if match else ""),
        hint=f"lorascope ls steps --store {root}",
    )
