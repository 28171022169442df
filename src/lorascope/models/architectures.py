"""What lorascope knows of each family of models, in one table: which layers there are, and where its parts lie.

A role is what a linear layer is for ("query", "mlp-up"); some families fuse several into one layer, which is a role of its
own ("query-key-value"). A part is what drift reads or training compiles: blocks, embeddings, norms, what attention and MLP
add to the residual stream. The names are those of transformers, which renames modules between versions: an entry lists
every spelling, and the one that a model has is taken. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorascope.registry import ARCHITECTURES as PLUGGED
from lorascope.registry import resolve

MEANINGS: Mapping[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "query-key-value", "attention-output"),
    "mlp": ("mlp-gate", "mlp-up", "mlp-gate-up", "mlp-down"),
}
"""What a study may call several roles at once."""
ALL_LINEAR = "all-linear"
FUSED: Mapping[str, str] = {
    "query": "query-key-value",
    "key": "query-key-value",
    "value": "query-key-value",
    "mlp-gate": "mlp-gate-up",
    "mlp-up": "mlp-gate-up",
}
"""Role -> the role of the layer that computes it together with others, in families that fuse them."""


@dataclass(frozen=True)
class Spelling:
    """Names of modules. blocks: the list of blocks, and embeddings, final_norm, others: within the model without its head.
    Everything else: within a block.

    roles: role -> its linear layer. attention, mlp: whose output is what is added to the residual stream. attending: what
    computes attention, and says whether it is causal. others: linear layers that have no role (they need not all be
    there).
    """

    blocks: str
    roles: Mapping[str, str]
    attention: str
    mlp: str
    attending: str
    norms: tuple[str, ...]
    embeddings: tuple[str, ...]
    final_norm: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """What an architecture's config.json calls its sizes. head_width: of one attention head, hidden / heads where absent.
    positions: how many places there are for tokens, None where places are not learned; reserved: those of them that no token
    takes ("pad": as many as the pad token's id, and one).
    """

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    key_value_heads: str = "num_key_value_heads"
    head_width: str = "head_dim"
    inner: str = "intermediate_size"
    positions: str | None = None
    reserved: str | None = None


@dataclass(frozen=True)
class Architecture:
    """One family. is_causal: every token sees only what came before it. has_first_token: an encoder's first token stands for
    the whole example ([CLS], a class token). trains_alone: why runs cannot be trained together,
    if they cannot. hidden_scores: why attention's distributions cannot be read, if they cannot; capped_by: the setting that,
    where it is given, makes them unreadable. unused: parameters that no task of ours reads, within the model without its
    head, if they are there. reads: the unit of the tasks it is for.
    """

    spellings: tuple[Spelling, ...]
    is_causal: bool = False
    keys: Keys = Keys()
    trains_alone: str | None = None
    hidden_scores: str | None = None
    capped_by: str | None = None
    unused: tuple[str, ...] = ()
    reads: Literal["token", "image"] = "token"
    has_first_token: bool = True

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its layers, in every spelling."""
        return tuple(dict.fromkeys(role for spelling in self.spellings for role in spelling.roles))


_BERT_ENDS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention-output": "attention.output.dense",
    "mlp-up": "intermediate.dense",
    "mlp-down": "output.dense",
}
_BERT = Spelling(
    blocks="encoder.layer",
    roles=_BERT_ENDS,
    attention="attention.output.dense",
    mlp="output.dense",
    attending="attention.self",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    embeddings=("embeddings",),
    others=("pooler.dense",),
)
_DEBERTA = replace(
    _BERT,
    roles={**_BERT_ENDS, **{role: f"attention.self.{role}_proj" for role in ("query", "key", "value")}},
    others=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
)
_DISTILBERT = Spelling(
    blocks="transformer.layer",
    roles={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention-output": "attention.out_lin",
        "mlp-up": "ffn.lin1",
        "mlp-down": "ffn.lin2",
    },
    attention="attention.out_lin",
    mlp="ffn.lin2",
    attending="attention",
    norms=("sa_layer_norm", "output_layer_norm"),
    embeddings=("embeddings",),
)
_MODERNBERT = Spelling(
    blocks="layers",
    roles={
        "query-key-value": "attn.Wqkv",
        "attention-output": "attn.Wo",
        "mlp-gate-up": "mlp.Wi",
        "mlp-down": "mlp.Wo",
    },
    attention="attn.Wo",
    mlp="mlp.Wo",
    attending="attn",
    norms=("attn_norm", "mlp_norm"),
    embeddings=("embeddings",),
    final_norm="final_norm",
)
_GPT2 = Spelling(
    blocks="h",
    roles={
        "query-key-value": "attn.c_attn",
        "attention-output": "attn.c_proj",
        "mlp-up": "mlp.c_fc",
        "mlp-down": "mlp.c_proj",
    },
    attention="attn.c_proj",
    mlp="mlp",
    attending="attn",
    norms=("ln_1", "ln_2"),
    embeddings=("wte", "wpe"),
    final_norm="ln_f",
)
_GPT_NEOX = Spelling(
    blocks="layers",
    roles={
        "query-key-value": "attention.query_key_value",
        "attention-output": "attention.dense",
        "mlp-up": "mlp.dense_h_to_4h",
        "mlp-down": "mlp.dense_4h_to_h",
    },
    attention="attention.dense",
    mlp="mlp",
    attending="attention",
    norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_in",),
    final_norm="final_layer_norm",
)
_OPT = Spelling(
    blocks="decoder.layers",
    roles={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention-output": "self_attn.out_proj",
        "mlp-up": "fc1",
        "mlp-down": "fc2",
    },
    attention="self_attn.out_proj",
    mlp="fc2",
    attending="self_attn",
    norms=("self_attn_layer_norm", "final_layer_norm"),
    embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
    final_norm="decoder.final_layer_norm",
    others=("decoder.project_in", "decoder.project_out"),
)
_LLAMA_ENDS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention-output": "self_attn.o_proj",
    "mlp-gate": "mlp.gate_proj",
    "mlp-up": "mlp.up_proj",
    "mlp-down": "mlp.down_proj",
}
_LLAMA = Spelling(
    blocks="layers",
    roles=_LLAMA_ENDS,
    attention="self_attn.o_proj",
    mlp="mlp",
    attending="self_attn",
    norms=("input_layernorm", "post_attention_layernorm"),
    embeddings=("embed_tokens",),
    final_norm="norm",
)
_GEMMA2 = replace(  # what is added is normalised first
    _LLAMA,
    attention="post_attention_layernorm",
    mlp="post_feedforward_layernorm",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
)
_PHI = replace(
    _LLAMA,
    roles={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention-output": "self_attn.dense",
        "mlp-up": "mlp.fc1",
        "mlp-down": "mlp.fc2",
    },
    attention="self_attn.dense",
    norms=("input_layernorm",),
    final_norm="final_layernorm",
)
_PHI3 = replace(
    _LLAMA,
    roles={
        "query-key-value": "self_attn.qkv_proj",
        "attention-output": "self_attn.o_proj",
        "mlp-gate-up": "mlp.gate_up_proj",
        "mlp-down": "mlp.down_proj",
    },
)
_VIT = Spelling(
    blocks="layers",
    roles={
        "query": "attention.q_proj",
        "key": "attention.k_proj",
        "value": "attention.v_proj",
        "attention-output": "attention.o_proj",
        "mlp-up": "mlp.fc1",
        "mlp-down": "mlp.fc2",
    },
    attention="attention.o_proj",
    mlp="mlp.fc2",
    attending="attention",
    norms=("layernorm_before", "layernorm_after"),
    embeddings=("embeddings",),
    final_norm="layernorm",
    others=("pooler.dense",),
)
_OLDER_VIT_ENDS = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "attention-output": "attention.output.dense",
}
_OLDER_VIT = replace(
    _VIT,
    blocks="encoder.layer",
    roles={**_OLDER_VIT_ENDS, "mlp-up": "intermediate.dense", "mlp-down": "output.dense"},
    attention="attention.output.dense",
    mlp="output.dense",
    attending="attention.attention",
)
_GATED_ENDS = {"mlp-gate": "mlp.gate_proj", "mlp-up": "mlp.up_proj", "mlp-down": "mlp.down_proj"}
_FUSED_GATED_ENDS = {"mlp-gate-up": "mlp.weights_in", "mlp-down": "mlp.weights_out"}
_DINOV2 = replace(  # what is added is scaled first
    _VIT, blocks="encoder.layer", attention="layer_scale1", mlp="layer_scale2", norms=("norm1", "norm2"), others=()
)
_OLDER_DINOV2 = replace(
    _DINOV2,
    roles={**_OLDER_VIT_ENDS, "mlp-up": "mlp.fc1", "mlp-down": "mlp.fc2"},
    attending="attention.attention",
)


def _with_mlp(spelling: Spelling, ends: Mapping[str, str]) -> Spelling:
    """The same with another MLP: the largest Dinov2 has a gated one."""
    kept = {role: end for role, end in spelling.roles.items() if not role.startswith("mlp")}
    return replace(spelling, roles={**kept, **ends})


_MASK_TOKEN = ("embeddings.mask_token",)  # of masked image modelling
_LEARNED = Keys(positions="max_position_embeddings")
_DECODER = Architecture((_LLAMA,), is_causal=True)

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture((_BERT,), keys=_LEARNED),
    "roberta": Architecture((_BERT,), keys=replace(_LEARNED, reserved="pad")),
    "electra": Architecture((replace(_BERT, others=("embeddings_project",)),), keys=_LEARNED),
    "distilbert": Architecture(
        (_DISTILBERT,),
        keys=Keys(hidden="dim", heads="n_heads", inner="hidden_dim", positions="max_position_embeddings"),
    ),
    "deberta-v2": Architecture(
        (_DEBERTA,),
        trains_alone="the examples of a batch share its relative positions",
        hidden_scores="it adds relative positions to its scores",
    ),
    "modernbert": Architecture((_MODERNBERT,)),
    "gpt2": Architecture(
        (_GPT2,),
        is_causal=True,
        keys=Keys(hidden="n_embd", heads="n_head", inner="n_inner", positions="n_positions"),
    ),
    "gpt_neox": Architecture((_GPT_NEOX,), is_causal=True),
    "opt": Architecture(
        (_OPT,),
        is_causal=True,
        keys=Keys(inner="ffn_dim", positions="max_position_embeddings"),
    ),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma": _DECODER,
    "gemma2": Architecture((_GEMMA2,), is_causal=True, capped_by="attn_logit_softcapping"),
    "gemma3_text": Architecture((_GEMMA2,), is_causal=True, capped_by="attn_logit_softcapping"),
    "phi": Architecture((_PHI,), is_causal=True),
    "phi3": Architecture((_PHI3,), is_causal=True),
    "vit": Architecture((_VIT, _OLDER_VIT), unused=_MASK_TOKEN, reads="image"),
    "deit": Architecture((_VIT, _OLDER_VIT), unused=_MASK_TOKEN, reads="image"),
    "dinov2": Architecture(
        (
            _DINOV2,
            _OLDER_DINOV2,
            _with_mlp(_DINOV2, _GATED_ENDS),
            _with_mlp(_OLDER_DINOV2, _FUSED_GATED_ENDS),
        ),
        unused=_MASK_TOKEN,
        reads="image",
    ),
}


FUNCTIONAL_DROPOUT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("opt", "xlm", "flaubert"), ("dropout",)),
    **dict.fromkeys(("bart", "mbart", "mvp", "plbart", "bigbird_pegasus"), ("dropout", "activation_dropout")),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("dropout_rate",)),
    "biogpt": ("hidden_dropout_prob", "activation_dropout"),
    "longformer": ("attention_probs_dropout_prob",),
    "seed_oss": ("residual_dropout",),
}
"""Settings of the config of some models that are probabilities of a dropout that is called as a function."""


def known_architecture(model_type: str | None) -> Architecture | None:
    """What is known of models of this type (`model_type` of their config.json), from the table or a plug-in."""
    if model_type in PLUGGED:
        return resolve(PLUGGED, str(model_type))
    return ARCHITECTURES.get(model_type or "")


def functional_dropout(model_type: str, settings: Sequence[str]) -> tuple[str, str]:
    """What is said of an architecture that calls dropout as a function, and the hint. settings: its probabilities."""
    named = ", ".join(f'"{name}": 0.0' for name in settings)
    return (
        f"{model_type} calls dropout as a function, which no run can draw from a stream of its own, so no run would repeat",
        f"set {named} in the checkpoint's config.json, or use an architecture whose dropouts are modules",
    )
