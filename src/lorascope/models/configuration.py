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
    path = _config_file(spec)
    if path is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return None
    return found if isinstance(found, dict) else None


def _config_file(spec: ModelSpec) -> Path | None:
    try:
        source = source_of(spec)
        if isinstance(source, HubSource):
            return _cached(source)
        if isinstance(source, PathSource):
            return Path(source.path).expanduser() / _FILE
        return Path(describe_model(spec)[1][MODEL_LOCATION]) / _FILE
    except LorascopeError:
        return None


def _cached(source: HubSource) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.hub, _FILE, revision=source.revision)
    return Path(found) if isinstance(found, str) else None
