"""A tiny random model of every family that lorascope knows, with a head for two classes, and a batch for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from lorascope.models.heads import head_modules
from lorascope.models.loading import BaseModel

LAYERS = 2
_COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_labels": 2, "initializer_range": 0.2,
}  # fmt: skip
_TEXT = {**_COMMON, "intermediate_size": 48, "vocab_size": 16, "max_position_embeddings": 64, "pad_token_id": 0}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
_HEADED = {**_DECODER, "head_dim": 8}
_IMAGE = {**_COMMON, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
_DEBERTA = {
    "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 32, "type_vocab_size": 0,
}  # fmt: skip
_OWN: Mapping[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": 16, "dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64,
        "num_labels": 2, "initializer_range": 0.2,
    },
    "gpt2": {
        "vocab_size": 16, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "num_labels": 2, "initializer_range": 0.2,
    },
    "opt": {
        "vocab_size": 16, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3, "num_labels": 2, "init_std": 0.2, "dropout": 0.0,
    },
}  # fmt: skip
SETTINGS: Mapping[str, dict[str, Any]] = {
    "bert": _TEXT,
    "roberta": {**_TEXT, "type_vocab_size": 1},
    "electra": {**_TEXT, "embedding_size": 16},
    "distilbert": _OWN["distilbert"],
    "deberta-v2": {**_TEXT, **_DEBERTA},
    "modernbert": {**_TEXT, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "gpt2": _OWN["gpt2"],
    "gpt_neox": {name: value for name, value in _DECODER.items() if name != "num_key_value_heads"},
    "opt": _OWN["opt"],
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi", "phi3"), _DECODER),
    **dict.fromkeys(("qwen3", "gemma", "gemma2", "gemma3_text"), _HEADED),
    "vit": _IMAGE,
    "deit": _IMAGE,
    "dinov2": {**{name: value for name, value in _IMAGE.items() if name != "intermediate_size"}, "mlp_ratio": 2},
}
IMAGES = ("vit", "deit", "dinov2")


def tiny_config(family: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(family, **{**SETTINGS[family], **changes})


def tiny_family(family: str, **changes: Any) -> BaseModel:
    """A base of the family, its head new. changes: of its config."""
    torch.manual_seed(0)
    config = tiny_config(family, **changes)
    model: PreTrainedModel
    if family == "deit":  # the automatic class of its kind asks which of two heads
        model = transformers.DeiTForImageClassification(config)
    elif family in IMAGES:
        model = transformers.AutoModelForImageClassification.from_config(config)
    else:
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.config.use_cache = False
    model.requires_grad_(False).eval()
    return BaseModel(model, head_modules(model, set()), 0, "tiny", None)


def tiny_batch(family: str) -> dict[str, Tensor]:
    """Four examples, the first padded on the right."""
    generator = torch.Generator().manual_seed(1)
    if family in IMAGES:
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)}
    tokens = torch.randint(4, 16, (4, 7), generator=generator)
    mask = torch.ones(4, 7, dtype=torch.long)
    tokens[0, 5:], mask[0, 5:] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}
