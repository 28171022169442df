"""What a model's config.json says, read without torch and without a network: from a directory, a package or the hub's cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorascope.errors import LorascopeError
from lorascope.models.catalog import MODEL_LOCATION, describe_model, source_of
from lorascope.study.spec import HubSource, ModelSpec, PathSource

_FILE = "config.json"


def model_config(spec: ModelSpec) -> Mapping[str, Any] | None:
    """The settings of a model's architecture; None where they are not on this machine as config.json (a hub model that was
    never fetched, a package that is not installed, a GGUF file)."""
    directory = model_directory(spec)
    return None if directory is None else read_config(directory)


def read_config(directory: Path) -> Mapping[str, Any] | None:
    """What a directory's config.json holds; None where it is absent or unreadable."""
    if not (directory / _FILE).is_file():  # a pipe would be waited for
        return None
    try:
        found = json.loads((directory / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whoever loads the model says what is wrong with it
        return None
    return found if isinstance(found, dict) else None


def model_directory(spec: ModelSpec) -> Path | None:
    """Where a model's config.json would be; None for a hub model that was never fetched, and a package that is absent."""
    try:
        source = source_of(spec)
        if isinstance(source, HubSource):
            found = _cached(source)
            return None if found is None else found.parent
        if isinstance(source, PathSource):
            return Path(source.path).expanduser()
        return Path(describe_model(spec)[1][MODEL_LOCATION])
    except LorascopeError:
        return None


def _cached(source: HubSource) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.hub, _FILE, revision=source.revision)
    return Path(found) if isinstance(found, str) else None
