"""Where a model's features are read: its blocks, and in each block the outputs of attention and of the MLP.

A transformer adds to a residual stream block by block. Three kinds of sites follow it (`FEATURE_SITES`):
"residual", what enters the first block and what leaves each block (L + 1 layers); "attention", the attention module's
output after its output projection and before it is added (L layers); "mlp", the MLP's output before it is added (L).
The final norm of a decoder comes after the last block and is none of them.

BERT and RoBERTa normalise after adding, inside `attention.output` and `output`: what is added there leaves the `dense`
layers (their dropout is off in evaluation), and the stream after an addition is normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorascope.errors import StudyError
from lorascope.models.architectures import ARCHITECTURES, Spelling, known_architecture
from lorascope.models.sites import spelling_of
from lorascope.registry import nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

FEATURE_SITES: Mapping[str, str] = {
    "residual": "the residual stream: the embedding output, then each block's output",
    "attention": "each attention module's output, before it is added",
    "mlp": "each MLP's output, before it is added",
}


_ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
_MLP_NAMES = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class Blocks:
    """The blocks of one model, in order, and the modules in them whose outputs are features (empty: not found).

    is_known: the architecture stands in the table (models/architectures.py). Otherwise the modules were found by their usual
    names, and whoever reads them has to check that each block adds their outputs to its input.
    """

    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    is_known: bool

    @property
    def sites(self) -> tuple[str, ...]:
        """Those of `FEATURE_SITES` that were found."""
        found = {"residual": self.blocks, "attention": self.attentions, "mlp": self.mlps}
        return tuple(site for site in FEATURE_SITES if found[site])


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`: itself, or what a PEFT model wraps, its adapters in place.

    Raises StudyError for an adapter that acts outside the layers (prompt and prefix tuning)."""
    from transformers import PreTrainedModel

    peft_config: Any = getattr(model, "active_peft_config", None)
    if peft_config is not None and peft_config.is_prompt_learning:
        raise StudyError(
            f"features of {peft_config.peft_type.value} adapters cannot be read: they add tokens to the input",
            hint="drift is defined for methods that change weights (lora, full)",
        )
    found = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    assert found is not None, f"{type(model).__name__} holds no transformers model"
    return found


def find_blocks(model: nn.Module) -> Blocks:
    """The model's blocks: by the table for its architecture, else the one list of `num_hidden_layers` like modules.

    Raises StudyError where there is no such list, or more than one.
    """
    plain = plain_model(model)
    spelling = spelling_of(plain)
    blocks = tuple(_stack(plain, spelling))
    if spelling is not None:
        attentions = tuple(block.get_submodule(spelling.attention) for block in blocks)
        return Blocks(blocks, attentions, tuple(block.get_submodule(spelling.mlp) for block in blocks), is_known=True)
    attention, mlp = _child(blocks[0], _ATTENTION_NAMES), _child(blocks[0], _MLP_NAMES)
    return Blocks(
        blocks,
        tuple(block.get_submodule(attention) for block in blocks) if attention else (),
        tuple(block.get_submodule(mlp) for block in blocks) if mlp else (),
        is_known=False,
    )


def usual_parts(tensors: Sequence[str], depth: int) -> list[str]:
    """Those of `FEATURE_SITES` that `find_blocks` would find in a model outside the table, by the names of its tensors."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in tensors:
        for match in re.finditer(r"\.(\d+)\.", name):
            child = name[match.end() :].split(".")[0]
            stacks.setdefault(name[: match.start()], {}).setdefault(int(match[1]), set()).add(child)
    whole = [prefix for prefix, blocks in stacks.items() if set(blocks) == set(range(depth))]
    outer = [prefix for prefix in whole if not any(prefix.startswith(f"{other}.") for other in whole)]
    if len(outer) != 1:
        return []
    children = stacks[outer[0]][0]
    named = {"attention": _ATTENTION_NAMES, "mlp": _MLP_NAMES}
    return ["residual", *(site for site, names in named.items() if len(children.intersection(names)) == 1)]


def attention_modules(blocks: Blocks) -> list[nn.Module]:
    """The module of each block that computes attention (it says whether it is causal).

    Raises StudyError where a block has none or several.
    """
    found = [[module for module in block.modules() if hasattr(module, "is_causal")] for block in blocks.blocks]
    if any(len(modules) != 1 for modules in found):
        raise StudyError(
            f"the attention of {type(blocks.blocks[0]).__name__} cannot be told: "
            f"{len(found[0])} of its modules say whether they are causal",
            hint="use mean pooling, and leave attention patterns out",
        )
    return [modules[0] for modules in found]


def decides_on_last_token(model: nn.Module) -> bool:
    """Whether a classification head reads the last real token (a causal decoder) or the first (an encoder's CLS)."""
    architecture = known_architecture(plain_model(model).config.model_type)
    if architecture is not None:
        return architecture.is_causal
    return bool(attention_modules(find_blocks(model))[0].is_causal)


def check_feature_sites(sites: Sequence[str], model: nn.Module) -> None:
    """Raises StudyError for a site that does not exist, here or at all."""
    here = find_blocks(model).sites
    for site in sites:
        if site not in FEATURE_SITES:
            match = nearest(site, FEATURE_SITES)
            meant = f": did you mean `{match}`?" if match else ""
            known = "; ".join(f"{name} ({text})" for name, text in FEATURE_SITES.items())
            raise StudyError(f"no features are called `{site}`{meant}", hint=f"sites of drift: {known}")
        if site not in here:
            raise StudyError(
                f"the {site} modules in the blocks of a {plain_model(model).config.model_type} model were not found",
                hint=f"sites of this model: {', '.join(here)}",
            )


def check_comparable(model: nn.Module, base: nn.Module, *, name: str) -> None:
    """Raises StudyError with the reason if the features of a model cannot be compared with its base's layer by layer. name:
    what messages call the model."""
    sizes = {
        what: [read(plain_model(m)) for m in (model, base)]
        for what, read in (
            ("blocks", lambda plain: len(find_blocks(plain).blocks)),
            ("features", lambda plain: plain.config.hidden_size),
            ("tokens in its vocabulary", lambda plain: getattr(plain.config, "vocab_size", None)),
        )
    }
    for what, (found, expected) in sizes.items():
        if found != expected:
            raise StudyError(
                f"{name} cannot be compared with the base: it has {found} {what}, the base {expected}",
                hint="drift compares a fine-tuned model with the base it came from, layer by layer",
            )


def _stack(model: PreTrainedModel, spelling: Spelling | None) -> nn.ModuleList:
    from torch import nn

    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if spelling is not None:
        matching = {n: m for n, m in lists.items() if n == spelling.blocks or n.endswith(f".{spelling.blocks}")}
    else:
        depth = getattr(model.config, "num_hidden_layers", None)
        alike = {n: m for n, m in lists.items() if len(m) == depth and len({type(block) for block in m}) == 1}
        matching = {n: m for n, m in alike.items() if not any(n.startswith(f"{other}.") for other in alike)}
    if len(matching) != 1:
        found = f"it has {len(matching)} lists of blocks ({', '.join(matching)})" if matching else "it has no such list"
        raise StudyError(
            f"the blocks of a {model.config.model_type} model cannot be told: {found}",
            hint=f"drift knows {', '.join(ARCHITECTURES)}, and other models with one list of `num_hidden_layers` like blocks",
        )
    return next(iter(matching.values()))


def _child(block: nn.Module, names: Sequence[str]) -> str | None:
    """The one child of the block that has one of the names."""
    found = [name for name, _ in block.named_children() if name in names]
    return found[0] if len(found) == 1 else None
