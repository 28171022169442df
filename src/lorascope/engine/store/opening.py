"""A store by what a person calls it: a directory, or the address of a place in object storage."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from lorascope.engine.store.bucket import open_bucket
from lorascope.engine.store.directory import Store
from lorascope.engine.store.remote import RemoteStore
from lorascope.errors import StudyError

StorePlace = str | Path
"""A directory, or "s3://BUCKET/PREFIX"."""

LOCAL_STORE = "LORASCOPE_LOCAL_STORE"


def open_store(place: StorePlace) -> Store:
    """The store there. Asks nothing of it; `Store.check` does. Raises StudyError and EnvironmentProblem as `open_bucket`."""
    text = str(place)
    if "://" in text:
        bucket = open_bucket(text)
        return RemoteStore(bucket, local_directory(bucket.url))
    if re.match(r"[a-z][a-z0-9+.-]*:/", text):
        raise StudyError(f"the store {text} is an address that went through a Path", hint="give it as a string")
    return Store(Path(text))


def local_directory(url: str) -> Path:
    """Where this machine keeps what is its own of a store in object storage: below LORASCOPE_LOCAL_STORE, else in the user's
    cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    above = Path(os.environ.get(LOCAL_STORE) or Path(cache, "lorascope", "stores"))
    name = re.sub(r"[^a-z0-9.]+", "-", url.lower()).strip("-")
    return above.absolute() / f"{name[:60]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
