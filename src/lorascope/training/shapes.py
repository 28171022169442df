"""The shapes of what a task's loss and a method's penalty give to the loop: of another one, torch would broadcast it."""

from __future__ import annotations

from torch import Tensor

from lorascope.errors import StudyError


def require_shape(what: str, found: Tensor, like: Tensor, *, one: str) -> None:
    """Raises StudyError unless `found` has the shape of `like`. one: what each of its numbers belongs to."""
    if found.shape != like.shape:
        raise StudyError(
            f"{what} has the shape {[*found.shape]}, which should be {[*like.shape]}",
            hint=f"it gives one number for each {one}, and no mean over them",
        )
