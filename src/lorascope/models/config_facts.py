"""What a row of the table of architectures and a checkpoint's config.json say together, before any model is loaded: which
layers a site means, how large they are, how long an example may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorascope.models.architectures import ALL_LINEAR, MEANINGS, Architecture, Keys


def names_something(site: str, architecture: Architecture) -> bool:
    """Whether a model of this architecture may have a linear layer that `site` means: by meaning, role or name."""
    roles = architecture.roles
    if site == ALL_LINEAR or any(role in roles for role in MEANINGS.get(site, (site,))):
        return True
    ends = [end for s in architecture.spellings for end in (*s.roles.values(), *s.others)]
    return any(_is_end(site, end) or _is_end(end, site) for end in ends)


def roles_meant(site: str, architecture: Architecture) -> tuple[str, ...]:
    """The roles that a site of an architecture means."""
    roles = architecture.roles
    if site == ALL_LINEAR:
        return roles
    meant = [role for role in MEANINGS.get(site, (site,)) if role in roles]
    ends = [(role, end) for s in architecture.spellings for role, end in s.roles.items()]
    return tuple(meant or dict.fromkeys(role for role, end in ends if _is_end(site, end) or _is_end(end, site)))


def last_names(architecture: Architecture) -> list[str]:
    """The last parts of the names of its linear layers, as the first spelling has them."""
    first = architecture.spellings[0]
    return sorted({end.rpartition(".")[2] for end in (*first.roles.values(), *first.others)})


def _is_end(end: str, name: str) -> bool:
    return name == end or name.endswith(f".{end}")


def layer_size(architecture: Architecture, role: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(inputs, outputs) of the layers of a role, from the model's config.json alone; None where it does not say."""
    keys = architecture.keys
    hidden, heads, inner = (config.get(key) for key in (keys.hidden, keys.heads, keys.inner))
    if keys.inner == "n_inner" and inner is None and hidden is not None:
        inner = 4 * hidden
    if inner is None and hidden is not None and config.get("mlp_ratio") and not config.get("use_swiglu_ffn"):
        inner = int(hidden * config["mlp_ratio"])
    if not (isinstance(hidden, int) and isinstance(heads, int) and isinstance(inner, int)):
        return None
    width = config.get(keys.head_width) or hidden // heads
    queries, keys_or_values = heads * width, (config.get(keys.key_value_heads) or heads) * width
    return {
        "query": (hidden, queries),
        "key": (hidden, keys_or_values),
        "value": (hidden, keys_or_values),
        "query-key-value": (hidden, queries + 2 * keys_or_values),
        "attention-output": (queries, hidden),
        "mlp-gate": (hidden, inner),
        "mlp-up": (hidden, inner),
        "mlp-gate-up": (hidden, 2 * inner),
        "mlp-down": (inner, hidden),
    }[role]


def most_tokens(architecture: Architecture | None, config: Mapping[str, Any]) -> int | None:
    """How long an example may be, where the architecture has learned a place for each token; None for any length.

    architecture: None for one outside the table, whose `max_position_embeddings` is taken for such places.
    """
    keys = Keys(positions="max_position_embeddings") if architecture is None else architecture.keys
    places = config.get(keys.positions) if keys.positions else None
    if not isinstance(places, int) or places <= 0:
        return None
    is_like_roberta = architecture is None and any(name in str(config.get("model_type")) for name in _AFTER_PAD)
    taken = (config.get("pad_token_id") or 0) + 1 if keys.reserved == "pad" or is_like_roberta else 0
    return places - taken


_AFTER_PAD = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text", "xmod", "esm", "luke", "ibert")
"""Parts of the names of model types that count places from the one after the pad token's id, as RoBERTa does."""


def vocabulary_rows(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model has an embedding for; None where config.json does not say."""
    rows = config.get("vocab_size")
    return rows if isinstance(rows, int) and rows > 0 else None


def depth_of(config: Mapping[str, Any]) -> int | None:
    """How many blocks the model has; None where config.json does not say."""
    found = next((config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config), None)
    return found if isinstance(found, int) else None


def present_blocks(architecture: Architecture, tensors: Iterable[str]) -> set[int]:
    """The numbers of the blocks that have tensors among these names; none where the names are of another spelling."""
    stacks = "|".join(re.escape(spelling.blocks) for spelling in architecture.spellings)
    found = (re.search(rf"(?:^|\.)(?:{stacks})\.(\d+)\.", name) for name in tensors)
    return {int(match[1]) for match in found if match}
