"""Sites: the linear layers a method may change, by meaning ("attention") or by module name ("q_proj").

One table an architecture gives each role the end of its modules' names; the meanings are sets of roles. PEFT's
`target_modules` are the same name endings, so a site list travels into an exported adapter unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorascope.errors import StudyError
from lorascope.registry import nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

MEANINGS: Mapping[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "attention-output"),
    "mlp": ("mlp-gate", "mlp-up", "mlp-down"),
}

_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention-output": "attention.output.dense",
    "mlp-up": "intermediate.dense",
    "mlp-down": "output.dense",
}
_LLAMA = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "attention-output": "o_proj",
    "mlp-gate": "gate_proj",
    "mlp-up": "up_proj",
    "mlp-down": "down_proj",
}
ROLES: Mapping[str, Mapping[str, str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def resolve_sites(model: PreTrainedModel, sites: Sequence[str], *, head: Sequence[str]) -> list[str]:
    """Full names of the linear modules that `sites` mean in `model`, in the model's order. The head is excluded, and so are
    the output embeddings of a language model: where they are tied, a change of them would be one of the embeddings too.

    Raises StudyError for a site that names nothing in this architecture.
    """
    from torch import nn

    outputs = model.get_output_embeddings()
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not outputs
        and not any(name == h or name.startswith(f"{h}.") for h in head)
    ]
    roles = ROLES.get(model.config.model_type, {})
    chosen: set[str] = set()
    for site in sites:
        found = linears if site == "all-linear" else _modules_of(site, linears, roles)
        if not found:
            raise StudyError(_unknown_site(site, model, linears, roles), hint=_known_sites(linears, roles, site))
        chosen.update(found)
    return [name for name in linears if name in chosen]


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer called `name`."""
    from torch import nn

    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), f"{name} is a {type(layer).__name__}, not a linear layer"
    return layer


def _modules_of(site: str, linears: Sequence[str], roles: Mapping[str, str]) -> list[str]:
    wanted = [role for role in MEANINGS.get(site, (site,)) if role in roles]
    if not wanted:
        return [name for name in linears if _ends_with(name, site)]
    return [name for name in linears if _role_of(name, roles) in wanted]


def _role_of(name: str, roles: Mapping[str, str]) -> str | None:
    """The role whose ending matches most of the name ("attention.output.dense" before "output.dense")."""
    matches = [role for role, ending in roles.items() if _ends_with(name, ending)]
    return max(matches, key=lambda role: len(roles[role]), default=None)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _unknown_site(site: str, model: PreTrainedModel, linears: Sequence[str], roles: Mapping[str, str]) -> str:
    match = nearest(site, [*MEANINGS, *roles, "all-linear", *{name.rpartition(".")[2] for name in linears}])
    meant = f": did you mean `{match}`?" if match else ""
    return f"no linear layer of {model.config.model_type} is called `{site}`{meant}"


def _known_sites(linears: Sequence[str], roles: Mapping[str, str], site: str) -> str:
    names = sorted({name.rpartition(".")[2] for name in linears})
    meanings = [*MEANINGS, *roles] if roles else []
    return f"sites here: {', '.join(dict.fromkeys([*meanings, 'all-linear', *names]))}"
