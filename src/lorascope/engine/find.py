"""A step by how its id begins, as people write it; what is nearest if there is none."""

from __future__ import annotations

from collections.abc import Sequence

from lorascope.engine.store.artifact import Artifact
from lorascope.engine.store.directory import Store
from lorascope.errors import StudyError
from lorascope.registry import nearest

_COMPARED = 300
_SHORTEST = 4


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
    match = nearest(beginning, _begin_alike(beginning, ids))
    raise StudyError(
        f"{store.place} holds no {f'{kind} ' if kind else ''}step `{beginning}`"
        + (f": did you mean `{match}`?" if match else ""),
        hint=f"lorascope ls steps --store {store.place}",
    )


def _begin_alike(wanted: str, ids: Sequence[str]) -> list[str]:
    """Those that share most of their beginning, no more than can be compared letter by letter within a moment."""
    for length in range(len(wanted) - 1, _SHORTEST - 1, -1):
        if alike := [step_id for step_id in ids if step_id.startswith(wanted[:length])]:
            return alike[:_COMPARED]
    return list(ids[:_COMPARED])
