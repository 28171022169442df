"""A step: one unit of work as pure data, named by what it computes.

`step.id` is a hash of literals (kind, version, params, ids of the steps it depends on), so the same work has the same
name on every machine and in every session. Where things lie (`locations`) and what they need (`resources`) are no part
of it: a store can move, a run can be put on another device, and nothing is computed twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

JSON = dict[str, Any]


def canonical_json(value: Any, *, place: str = "params") -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, shortest exact floats.

    Raises TypeError for anything without canonical bytes (sets, paths, NaN, non-string keys), naming the place.
    """
    _refuse_non_canonical(value, place)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_non_canonical(value: Any, place: str) -> None:
    if value is None or type(value) in (bool, int, str):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise TypeError(f"{place}: {value!r} has no canonical bytes")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{place}: the key {key!r} is not a string")
            _refuse_non_canonical(item, f"{place}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _refuse_non_canonical(item, f"{place}[{index}]")
    else:
        raise TypeError(f"{place}: {type(value).__name__} {value!r} has no canonical bytes")


@dataclass(frozen=True)
class Resources:
    """What a step needs from the machine it runs on, and which others may run there with it.

    device: "any" or "accelerator". alone: nothing else may run meanwhile, because it measures time. gang_key: steps of one
    kind with the same key may be computed together (None: alone). gang_limit: the most of them together (None: as many as
    are ready and a worker's fair share).
    """

    device: str = "any"
    memory_bytes: int | None = None
    alone: bool = False
    gang_key: str | None = None
    gang_limit: int | None = None


@dataclass(frozen=True)
class Step:
    """One unit of work.

    kind: a key of `registry.STEP_KINDS`. version: raised when the code behind the kind changes its results.
    params: JSON literals. deps: role -> id of the step whose artifact plays it. slug: for people, part of the id.
    locations: role -> path or address of an input outside the store (not identity; its checksum is in params).
    """

    kind: str
    version: int
    params: Mapping[str, Any]
    deps: Mapping[str, str] = field(default_factory=dict)
    slug: str = ""
    locations: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    @cached_property
    def id(self) -> str:
        """Kind, slug and a hash of the literals."""
        identity = canonical_json(
            {"kind": self.kind, "version": self.version, "params": dict(self.params), "deps": dict(self.deps)}
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        slug = re.sub(r"[^a-z0-9.]+", "-", self.slug.lower()).strip("-")
        return "-".join(part for part in (self.kind, slug, digest) if part)

    def to_json(self) -> JSON:
        """The step as JSON."""
        return {
            "kind": self.kind,
            "version": self.version,
            "params": dict(self.params),
            "deps": dict(self.deps),
            "slug": self.slug,
            "locations": dict(self.locations),
            "resources": asdict(self.resources),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        """The step that `to_json` wrote."""
        fields = dict(data)
        fields["resources"] = Resources(**fields.get("resources", {}))
        return cls(**fields)
