"""A step by how its id begins, as people write it; what is nearest if there is none."""

from __future__ import annotations

from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.errors import StudyError
from lorascope.registry import nearest


def find_artifact(beginning: str, store: Store, *, kind: str | None = None) -> Artifact:
    """The one finished step of the store whose id is, or begins with, `beginning`. kind: only steps of it.

    Raises StudyError naming what else there is.
    """
    ids = store.ids(kind)
    found = [step_id for step_id in ids if step_id == beginning] or [i for i in ids if i.startswith(beginning)]
    if len(found) == 1:
        return store.artifact(found[0])
    if found:
        listed = ", ".join(found[:6]) + (" ..." if len(found) > 6 else "")
        raise StudyError(f"{len(found)} steps begin with `{beginning}`", hint=f"write more of it: {listed}")
    match = nearest(beginning, ids)
    raise StudyError(
        f"{store.place} holds no {f'{kind} ' if kind else ''}step `{beginning}`"
        + (f": did you mean `{match}`?" if match else ""),
        hint=f"lorascope ls steps --store {store.place}",
    )
