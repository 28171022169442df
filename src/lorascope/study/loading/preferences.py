"""What a user settled for all studies, in a file of their own: which programs a study may have run.

It lies outside every study, in $XDG_CONFIG_HOME/lorascope/config.yaml (~/.config/lorascope/config.yaml), because a study comes
from somebody else as often as not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lorascope.study.loading.document import Mistake, describe, dotted, read_document


class Preferences(BaseModel):
    """allow_programs: interpreters that studies may name as `measure.serving.python`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_programs: tuple[str, ...] = ()


def preferences_file() -> Path:
    """Where the user's configuration lies, whether it is there or not."""
    above = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(above, "lorascope", "config.yaml")


def read_preferences() -> Preferences:
    """The user's configuration; nothing is settled where there is no file. Raises StudyError with file and line."""
    path = preferences_file()
    if not path.exists():
        return Preferences()
    document = read_document(path, what="the configuration", key="allow_programs: [PROGRAM]")
    try:
        return Preferences.model_validate(document.data)
    except ValidationError as error:
        raise document.error([_mistake(found) for found in error.errors(include_url=False)]) from None


def _mistake(error: Any) -> Mistake:
    path = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        return Mistake(path, f"unknown key `{dotted(path)}`", f"allowed here: {', '.join(Preferences.model_fields)}")
    hint = "a list of programs, such as `allow_programs: [/opt/vllm/bin/python]`"
    return Mistake(path, f"{dotted(path)}: {error['msg']}; found {describe(error.get('input'))}", hint)
