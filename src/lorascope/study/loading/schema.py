"""The JSON schema of a study, for editors: what `load_study` accepts, shorthands included, each field described."""

from __future__ import annotations

from typing import Any

from lorascope.registry import MODELS, TASKS, TRACKERS
from lorascope.study.fields import FIELDS
from lorascope.study.methods import method_specs
from lorascope.study.search import MOST_SEEDS
from lorascope.study.seeds import PRINTED
from lorascope.study.spec import Study

_PERCENTAGE = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$"}
_FRACTIONS = ("validation_fraction", "warmup", "margin", "by", "at_most")


def study_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a study file."""
    schema = Study.model_json_schema()
    definitions = schema["$defs"]
    for model, fields in FIELDS.items():
        target = schema if model is Study else definitions[model.__name__]
        for name, description in fields.items():
            target["properties"][name]["description"] = description
        for name in _FRACTIONS:
            if name in target["properties"]:
                target["properties"][name] = _or(target["properties"][name], _PERCENTAGE)
    for method in method_specs().values():
        definitions[method.__name__]["required"].remove("name")  # the loader fills it in from `kind`
    _allow_shorthands(schema["properties"])
    trial_seeds = definitions["SearchSpec"]["properties"]["seeds"]
    definitions["SearchSpec"]["properties"]["seeds"] = _or(
        trial_seeds, {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS}
    )
    text = definitions["FileTask"]["properties"]["text"]
    definitions["FileTask"]["properties"]["text"] = _or(text, {"type": "string"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _allow_shorthands(properties: dict[str, Any]) -> None:
    """Lists whose items may be a bare name or number."""
    registered = {
        "models": list(MODELS),
        "tasks": [t for t in TASKS if t != "classification"],
        "methods": list(method_specs()),
        "track": list(TRACKERS),
    }
    for key, names in registered.items():
        properties[key]["items"] = {"anyOf": [{"enum": names}, properties[key]["items"]]}
    properties["seeds"]["items"] = {"anyOf": [{"type": "integer"}, properties["seeds"]["items"]]}
    properties["seeds"] = _or(properties["seeds"], {"type": "integer", "minimum": 1, "maximum": len(PRINTED)})


def _or(schema: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A property that may also be written in another way; what describes the property stays outside the choice."""
    outside = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    inside = {key: value for key, value in schema.items() if key not in outside}
    return {**outside, "anyOf": [*inside.get("anyOf", [inside]), other]}
