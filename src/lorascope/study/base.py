"""What every part of a study is made of: immutable models that refuse unknown keys, names, and unions told by a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lorascope.registry import nearest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Spec(BaseModel):
    """Base of every part of a study: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def branch_by_key(**branches: type[Spec]) -> Callable[[Any], str | None]:
    """Which branch of a union a mapping means: the one whose key it has, or nearly has; errors speak of it alone."""

    def branch(value: Any) -> str | None:
        if isinstance(value, Spec):
            return f"<{type(value).__name__}>"
        if not isinstance(value, Mapping):
            return None
        present = [key for key in branches if key in value]
        present += [match for key in value if (match := nearest(key, branches))]
        return f"<{branches[present[0]].__name__}>" if present else None

    return branch
