"""pydantic's errors in the words of a study: what was found, what is allowed, the nearest match."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from lorascope.registry import METHOD_SETTINGS, TRACKERS, nearest
from lorascope.study import spec
from lorascope.study.base import Spec
from lorascope.study.loading.document import KeyPath, Mistake, describe, dotted
from lorascope.study.loading.foreign import FOREIGN, HOMES
from lorascope.study.methods import method_specs, why_unknown
from lorascope.study.methods.base import MethodBase
from lorascope.study.train import TrainSpec

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "tuple": "a list",
    "dict": "a mapping",
    "finite": "a finite number",
}
_SHORTHANDS = {
    "models": "a registered name or {name, source}",
    "tasks": "a registered name or {name, kind, train, text, label, ...}",
    "methods": f"one of {', '.join(METHOD_SETTINGS)}, or a mapping with `kind`",
    "seeds": "a whole number or {initialisation, order, dropout}",
    "track": f"one of {', '.join(TRACKERS)}, or a mapping with `kind`",
}
_KINDS = {"methods": "method", "track": "tracker"}
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def explain_errors(errors: Sequence[Any], data: Any) -> list[Mistake]:
    """One mistake for each thing that a person has to correct; errors that only follow from another are left out."""
    mistakes: list[Mistake] = []
    meant = {_misspelt(error) for error in errors if error["type"] == "extra_forbidden"}
    paths = [_path(error["loc"]) for error in errors]
    for error, path in zip(errors, paths, strict=True):
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
        if error["type"] == "missing" and path in meant:
            continue  # the key is there, misspelt, and named already
        if error["type"] == "too_short" and inside:
            continue  # the items are there, and their own errors are named
        mistakes.append(_explain(error, path))
    return mistakes


def _path(loc: Sequence[str | int]) -> KeyPath:
    """The place in the file: pydantic's location without the names of union branches."""
    parts = [part for index, part in enumerate(loc) if not (index == 2 and loc[0] in _KINDS)]
    return tuple(part for part in parts if not (isinstance(part, str) and part.startswith("<")) and part != "[key]")


def _misspelt(error: Any) -> KeyPath:
    """The path an unknown key probably stands for (itself if nothing is near)."""
    path, allowed = _path(error["loc"]), _allowed_keys(error["loc"][:-1])
    ours = FOREIGN.get(str(path[-1]))
    match = ours.key if ours and ours.key in allowed else nearest(str(path[-1]), allowed)
    return (*path[:-1], match or path[-1])


def _explain(error: Any, path: KeyPath) -> Mistake:
    kind, found, context = error["type"], error.get("input"), error.get("ctx", {})
    here = dotted(path)
    if kind == "extra_forbidden":
        return _unknown_key(error, path)
    if kind == "missing":
        needs = dotted(path[:-1]) or "the study"
        return Mistake(path, f"{needs}: the key `{path[-1]}` is missing", _purpose(str(path[-1])))
    if kind == "union_tag_invalid":
        return _unknown_kind(path, str(context["tag"]))
    if kind == "union_tag_not_found":
        return Mistake(path, f"{here}: the key `kind` is missing", f"allowed: {', '.join(_allowed_kinds(path))}")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        match = nearest(str(found), allowed)
        meant = f": did you mean `{match}`?" if match else ""
        return Mistake(path, f"{here}: {describe(found)} is not allowed{meant}", f"allowed: {', '.join(allowed)}")
    if kind in ("value_error", "no_branch"):
        return Mistake(path, f"{here or 'the study'}: {error['msg'].removeprefix('Value error, ')}")
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        fraction = limit == "le" and context["le"] == 1 and isinstance(found, int | float) and found > 1
        hint = f"a fraction: {found / 100:g} or {found:g}%" if fraction else None
        return Mistake(path, f"{here}: must be {words} {context[limit]:g}; found {found}", hint)
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return Mistake(path, f"{here}: needs {bound} of them; found {describe(found)}")
    if kind == "string_pattern_mismatch":
        return Mistake(
            path,
            f"{here}: {describe(found)} is not a name",
            "names are made of letters, digits, `_`, `.` and `-`, and begin with a letter or a digit",
        )
    return _wrong_type(error, path)


def _wrong_type(error: Any, path: KeyPath) -> Mistake:
    expected = _EXPECTED.get(error["type"].split("_")[0])
    if len(path) == 2 and path[0] in _SHORTHANDS:
        expected = _SHORTHANDS[str(path[0])]
    elif error["type"].startswith("model_"):
        expected = f"a mapping with the keys {', '.join(_allowed_keys(error['loc']))}"
    if expected is None:
        return Mistake(path, f"{dotted(path)}: {error['msg']}; found {describe(error.get('input'))}")
    quote = "quote it: '...'" if expected == "text" and isinstance(error.get("input"), int | float) else None
    return Mistake(path, f"{dotted(path)}: expected {expected}; found {describe(error.get('input'))}", quote)


def _unknown_key(error: Any, path: KeyPath) -> Mistake:
    key, allowed = str(path[-1]), _allowed_keys(error["loc"][:-1])
    within = f"{dotted(path[:-1])}: " if len(path) > 1 else ""
    hint = f"allowed here: {', '.join(allowed)}"
    ours = FOREIGN.get(key)
    if ours and ours.key not in allowed:
        told = "" if ours.key == key else f": it is called `{ours.key}` here"
        return Mistake(path, f"{within}unknown key `{key}`{told}", f"a key of {HOMES[ours.home]}, {ours}; {hint}")
    match = ours.key if ours else nearest(key, allowed)
    hint = f"{ours}; {hint}" if ours else hint
    if match:
        return Mistake(path, f"{within}unknown key `{key}`: did you mean `{match}`?", hint)
    homes = [home for home, model in _homes().items() if key in model.model_fields]
    if homes:
        hint = f"`{key}` is a key of {' and '.join(f'`{home}`' for home in homes)}; {hint}"
    return Mistake(path, f"{within}unknown key `{key}`", hint)


def _allowed_kinds(path: KeyPath) -> list[str]:
    return list(method_specs() if path[0] == "methods" else TRACKERS)


def _unknown_kind(path: KeyPath, kind: str) -> Mistake:
    noun = _KINDS[str(path[0])]
    allowed = _allowed_kinds(path)
    if noun == "method" and (problem := why_unknown(kind)):
        return Mistake((*path, "kind"), f"{dotted(path)}: {problem}", f"allowed: {', '.join(allowed)}")
    match = nearest(kind, allowed)
    meant = f": did you mean `{match}`?" if match else ""
    return Mistake((*path, "kind"), f"{dotted(path)}: unknown {noun} `{kind}`{meant}", f"allowed: {', '.join(allowed)}")


def _purpose(key: str) -> str | None:
    examples = {
        "name": "a short name for the results' folder, such as `name: my-study`",
        "question": "the question in one sentence, such as `question: Is LoRA as accurate as full fine-tuning?`",
        "models": "such as `models: [minilm-l6]`",
        "tasks": "such as `tasks: [mrpc]`",
        "methods": "such as `methods: [full, lora]`",
        "revision": "the commit hash of the model on the hub: a branch name would change under the study",
        "margin": "the loss you would accept, such as `margin: 3%`, declared before the results are seen",
    }
    return examples.get(key)


def _allowed_keys(loc: Sequence[str | int]) -> list[str]:
    """The keys of the model that pydantic's location leads to."""
    candidates: set[type[Spec]] = {spec.Study}
    for part in loc:
        named = {model for model in candidates if part in (f"<{model.__name__}>", _kind_of(model))}
        if named:
            candidates = named
        elif isinstance(part, str):
            fields = [model.model_fields[part].annotation for model in candidates if part in model.model_fields]
            candidates = set(_models_in(fields)) or candidates
    return list(dict.fromkeys(key for model in candidates for key in model.model_fields))


def _kind_of(model: type[Spec]) -> str | None:
    kind = model.model_fields.get("kind")
    allowed = typing.get_args(kind.annotation) if kind else ()
    return allowed[0] if allowed else None


def _models_in(annotations: Iterable[Any]) -> Iterable[type[Spec]]:
    for annotation in annotations:
        if annotation is MethodBase:
            yield from method_specs().values()
        elif isinstance(annotation, type) and issubclass(annotation, Spec):
            yield annotation
        else:
            yield from _models_in(typing.get_args(annotation))


def _homes() -> dict[str, type[Spec]]:
    """Where a key may have been meant to stand."""
    methods = {f"methods[] of kind {kind}": method for kind, method in reversed(method_specs().items())}
    return {"the study": spec.Study, "data": spec.DataSpec, "train": TrainSpec, **methods}
