"""Sites: the linear layers a method may change, by meaning ("attention"), role ("query") or module name ("q_proj").

Roles and their names come from the table of architectures; the meanings are sets of roles. PEFT's `target_modules` are the
same name endings, so a site list travels into an exported adapter unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorascope.errors import StudyError
from lorascope.models.architectures import ALL_LINEAR, FUSED, MEANINGS, Architecture, Spelling, known_architecture
from lorascope.models.linear import is_linear
from lorascope.registry import nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def resolve_sites(model: PreTrainedModel, sites: Sequence[str], *, head: Sequence[str]) -> list[str]:
    """Full names of the linear modules that `sites` mean in `model`, in the model's order. The head is excluded, and so are
    the output embeddings of a language model: where they are tied, a change of them would be one of the embeddings too.

    Raises StudyError for a site that names nothing in this architecture.
    """
    linears = _linear_names(model, head)
    roles = roles_of(model, linears)
    chosen: set[str] = set()
    for site in sites:
        found = linears if site == ALL_LINEAR else _modules_of(site, linears, roles)
        if not found:
            names = sorted({name.rpartition(".")[2] for name in linears})
            text, hint = unknown_site(
                site, model_type=model.config.model_type, roles=_in_order(model, roles), names=names
            )
            raise StudyError(text, hint=hint)
        chosen.update(found)
    return [name for name in linears if name in chosen]


def roles_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Module name -> its role, for those of `names` that have one in this model's architecture."""
    spelling = spelling_of(model)
    if spelling is None:
        return {}
    by_end = {end: role for role, end in spelling.roles.items()}
    ends = {name: _end_in_block(name, spelling) for name in names}
    return {name: by_end[end] for name, end in ends.items() if end is not None and end in by_end}


def spelling_of(model: nn.Module) -> Spelling | None:
    """How this version of transformers names the parts of the model; None for an architecture outside the table."""
    architecture = known_architecture(model.config.model_type)  # type: ignore[union-attr, arg-type]
    if architecture is None:
        return None
    return next((s for s in architecture.spellings if _is_spelt(model, s)), None)


def present_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name of a module under another version of transformers -> its name in `model`, for those of `names` that the model
    has under another name only. Whatever follows the module's name stays."""
    present, architecture = spelling_of(model), known_architecture(model.config.model_type)  # type: ignore[union-attr, arg-type]
    if present is None or architecture is None:
        return {}
    here = {name for name, _ in model.named_modules()}
    prefix = next(name for name in here if _is_stack(name, present)).removesuffix(present.blocks)
    found: dict[str, str] = {}
    for name in names:
        if name not in here and (translated := _translated(name, architecture, present, prefix)) in here:
            found[name] = str(translated)
    return found


def unknown_site(site: str, *, model_type: str, roles: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """What is said of a site that names nothing, and the hint. roles, names: those of the architecture."""
    if FUSED.get(site) in roles:
        fused = ", ".join(role for role, whole in FUSED.items() if whole == FUSED[site])
        text = f"{model_type} has no layer of its own for `{site}`: one layer computes {fused} together"
        return text, f"use `{FUSED[site]}`, or one of {', '.join(_all_sites(roles, names))}"
    match = nearest(site, [*MEANINGS, *roles, ALL_LINEAR, *names])
    meant = f": did you mean `{match}`?" if match else ""
    return (
        f"no linear layer of {model_type} is called `{site}`{meant}",
        f"sites here: {', '.join(_all_sites(roles, names))}",
    )


def _all_sites(roles: Sequence[str], names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*(MEANINGS if roles else ()), *roles, ALL_LINEAR, *names]))


def _linear_names(model: PreTrainedModel, head: Sequence[str]) -> list[str]:
    outputs = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not outputs and not any(name == h or name.startswith(f"{h}.") for h in head)
    ]


def _modules_of(site: str, linears: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    wanted = [role for role in MEANINGS.get(site, (site,)) if role in roles.values()]
    if not wanted:
        return [name for name in linears if name == site or name.endswith(f".{site}")]
    return [name for name in linears if roles.get(name) in wanted]


def _in_order(model: nn.Module, roles: Mapping[str, str]) -> list[str]:
    spelling = spelling_of(model)
    return [role for role in spelling.roles if role in roles.values()] if spelling is not None else []


def _end_in_block(name: str, spelling: Spelling) -> str | None:
    """What follows the block's number in a module's name: "attention.self.query"."""
    found = re.search(rf"(?:^|\.){re.escape(spelling.blocks)}\.\d+\.(.+)$", name)
    return found[1] if found else None


def _is_stack(name: str, spelling: Spelling) -> bool:
    return name == spelling.blocks or name.endswith(f".{spelling.blocks}")


def _is_spelt(model: nn.Module, spelling: Spelling) -> bool:
    """Whether the first block has a module for every role (a method may have wrapped it)."""
    stack = next((m for name, m in model.named_modules() if _is_stack(name, spelling)), None)
    if stack is None:
        return False
    names = {name for name, _ in stack.named_modules()}
    return all(f"0.{end}" in names for end in spelling.roles.values())


def _translated(name: str, architecture: Architecture, present: Spelling, prefix: str) -> str | None:
    """A module's name in the present spelling, read in any of the others; None where none of them has it, or the present
    one has no such layer."""
    for spelling in architecture.spellings:
        parts = re.search(rf"(?:^|\.){re.escape(spelling.blocks)}\.(\d+)\.(.+)$", name)
        role = next((role for role, end in spelling.roles.items() if parts and end == parts[2]), "")
        if parts and role in present.roles:
            return f"{prefix}{present.blocks}.{parts[1]}.{present.roles[role]}"
    return None
