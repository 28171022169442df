"""The methods a study may name, each in a file of its own; the table `registry.METHOD_SETTINGS` and plug-ins say where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union

from pydantic import Field, GetCoreSchemaHandler

from lorascope.registry import METHOD_SETTINGS
from lorascope.study.methods.base import MethodBase


def method_specs() -> dict[str, type[MethodBase]]:
    """Kind -> the settings of methods of that kind, in the order of the table, those of plug-ins last. A plug-in that is broken
    is named and left out."""
    return METHOD_SETTINGS.loaded()


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
