"""The methods a study may name, each in a file of its own; the table `registry.METHOD_SETTINGS` and plug-ins say where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args

from pydantic import Field, GetCoreSchemaHandler

from lorascope.registry import METHOD_SETTINGS, METHODS
from lorascope.study.methods.base import MethodBase


def method_specs() -> dict[str, type[MethodBase]]:
    """Kind -> the settings of methods of that kind, in the order of the table, those of plug-ins last. Settings that
    are broken, or that belong to no method, are named and left out."""
    found = METHOD_SETTINGS.loaded()
    for kind, problem in [(kind, problem) for kind, spec in found.items() if (problem := _misfit(kind, spec))]:
        origin = METHOD_SETTINGS[kind].origin
        METHOD_SETTINGS.leave_out(kind, f"the settings of a method `{kind}` ({origin}) are not used: {problem}")
        del found[kind]
    return found


def why_unknown(kind: str) -> str | None:
    """Why a study may not name a method that somebody brings; None for a name that nobody brings."""
    known = METHOD_SETTINGS.problems.get(kind) or METHODS.problems.get(kind)
    if known or kind not in METHODS:
        return known
    return f"the method `{kind}` ({METHODS[kind].origin}) has no settings: it needs a `lorascope.method_settings` too"


def _misfit(kind: str, spec: type[MethodBase]) -> str | None:
    """What is wrong with a plug-in's settings of a kind, as far as pydantic would fail on them."""
    lacking = [name for name in ("kind", "learning_rate") if name not in spec.model_fields]
    if lacking:
        return f"they have no field {' and '.join(f'`{name}`' for name in lacking)}"
    if get_args(spec.model_fields["kind"].annotation) != (kind,):
        return f'the type of their field `kind` is not `Literal["{kind}"]`'
    return None if kind in METHODS else f"there is no method `{kind}`, which the group `lorascope.methods` would name"


class _OfItsKind:
    """Has pydantic read a method as one of `method_specs`, told by its `kind`, when a study is first read."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        kinds = tuple(method_specs().values())
        return handler.generate_schema(Annotated[Union[kinds], Field(discriminator="kind")])  # noqa: UP007


MethodSpec = Annotated[MethodBase, _OfItsKind()]


def reference_arm(kinds: Iterable[tuple[str, str]]) -> str:
    """The arm that the others are compared with: the first that trains every weight, else the first. kinds: (arm, kind of its
    method), in the order of the study."""
    arms = list(kinds)
    everything = {kind for kind, spec in method_specs().items() if spec.trains_everything}
    return next((arm for arm, kind in arms if kind in everything), arms[0][0])


def shared_settings(method: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of a method have in common that can be trained together. method: its settings as literals."""
    spec = method_specs().get(method["kind"], MethodBase)  # a store may hold runs of a plug-in that is not here
    return {key: method.get(key) for key in spec.alike}
