"""Forgetting: how much worse a tuned model predicts general text than the base it came from.

A run's backbone is put under the language-model head of its base, and the tokens of one fixed text are scored before and
after. The head is the base's, except that a head tied to the input embedding is tied to the run's own: that is what the
architecture means by tying, and what anyone gets who reads the tuned weights as a language model. (An adapter leaves
the embedding alone; full fine-tuning moves it.)

Decoders are scored on every token given those before it, encoders on masked tokens given all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from lorascope.drift.text import Objective, TextWindows
from lorascope.errors import StudyError
from lorascope.models.reading import read_model, reading_checkpoint
from lorascope.training.reading import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 32768, "mps": 8192}
_LOGITS_AT_ONCE = 2**26  # 256 MiB in float32, of which cross-entropy makes two or three


# ---------------------------------------------------------------------------------------------------------------- head


class _GivenHiddenStates(nn.Module):
    """Stands where a language model has its backbone, and returns the hidden states that it is given as embeddings. So
    the code from hidden states to logits is transformers' own, whatever an architecture does there."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class LanguageHead:
    """The language-model head of a base checkpoint. tied: the name of its weight that is the model's input embedding, or
    None where it has one of its own."""

    model: PreTrainedModel
    backbone: type[nn.Module]
    objective: Objective
    tied: str | None
    vocabulary: int

    def logits(self, hidden: Float[Tensor, "tokens hidden"], embedding: Tensor) -> Float[Tensor, "tokens vocabulary"]:
        weights = {} if self.tied is None else {self.tied: embedding}
        return functional_call(self.model, weights, kwargs={"inputs_embeds": hidden[None]}).logits[0]


def load_language_head(directory: Path, *, device: str, allows_pickle: bool = False) -> LanguageHead:
    """The head of the base checkpoint in `directory` (`models.checkpoint.checkpoint_directory`), float32.

    An architecture that transformers knows a masked language model of is an encoder, one it knows only a causal model of
    a decoder. Raises StudyError for a checkpoint without a head, EnvironmentProblem for one that does not load.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    with reading_checkpoint(directory):
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if not is_encoder and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise _no_head(directory, f"{config.model_type} is not a language model")
    auto = "AutoModelForMaskedLM" if is_encoder else "AutoModelForCausalLM"
    loaded = read_model(auto, directory, allows_pickle=allows_pickle)
    model: Any = loaded.model
    prefix = model.base_model_prefix
    missing = sorted(key for key in (*loaded.missing, *loaded.mismatched) if not key.startswith(f"{prefix}."))
    if missing:
        raise _no_head(directory, f"it lacks {missing[0]}")
    weight, embedding = (module.weight for module in (model.get_output_embeddings(), model.get_input_embeddings()))
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p is weight}
    tied = next(name for name in names if not name.startswith(f"{prefix}.")) if weight is embedding else None
    backbone = type(model.base_model)
    setattr(model, prefix, _GivenHiddenStates())
    model.requires_grad_(False)
    return LanguageHead(model.to(device).eval(), backbone, "masked" if is_encoder else "causal", tied, weight.shape[0])


def _no_head(directory: Path, why: str) -> StudyError:
    return StudyError(
        f"the checkpoint in {directory} has no language-model head ({why}), so forgetting cannot be measured on it",
        hint="leave forgetting out for this model, or study a checkpoint that was saved with its head (sentence-embedding "
        "checkpoints are saved without)",
    )


# ---------------------------------------------------------------------------------------------------------------- loss


@dataclass(frozen=True, eq=False)
class TextLoss:
    """per_window: mean cross-entropy of each window's scored tokens, nats a token, float64. Windows count alike."""

    per_window: Float[np.ndarray, " windows"]
    tokens_per_window: int

    @property
    def nats_per_token(self) -> float:
        return float(self.per_window.mean())

    @property
    def num_tokens(self) -> int:
        return len(self.per_window) * self.tokens_per_window


@dataclass(frozen=True)
class Forgetting:
    """Cross-entropy on general text in nats a token. after - before is what was forgotten."""

    before: TextLoss
    after: TextLoss

    def __post_init__(self) -> None:
        assert self.before.per_window.shape == self.after.per_window.shape, "losses on different windows"

    @property
    def per_window(self) -> Float[np.ndarray, " windows"]:
        return self.after.per_window - self.before.per_window

    @property
    def nats_per_token(self) -> float:
        return float(self.per_window.mean())


@torch.no_grad()
def text_loss(
    model: nn.Module,
    head: LanguageHead,
    windows: TextWindows,
    *,
    precision: str,
    tokens_a_batch: int | None = None,
    logits_at_once: int = _LOGITS_AT_ONCE,
) -> TextLoss:
    """The windows' cross-entropy under the model's backbone and the head, on the head's device, where the model must be.

    model: the base's (`BaseModel.model`), or a run's (`Method.reload`): a classifier, an adapter around one included.
    precision: "fp32", or "bf16" for autocast; the losses are taken in float32 either way. tokens_a_batch: how many tokens
    go through the backbone together (default by device); logits_at_once: the most logits in memory at a time. Leaves the
    model's mode as it was. Raises StudyError for windows that the model cannot read.
    """
    device = str(head.model.device)
    classifier = _classifier_of(model)
    backbone, embedding = classifier.base_model, classifier.get_input_embeddings().weight
    assert windows.objective == head.objective, f"{windows.objective} windows for a {head.objective} head"
    assert type(backbone) is head.backbone, f"{type(backbone).__name__} under a head of {head.backbone.__name__}"
    _refuse_long_windows(classifier, windows)
    was_training = model.training
    model.eval()
    length = windows.tokens.shape[1]
    size = max(1, (tokens_a_batch or _TOKENS_A_BATCH[torch.device(device).type]) // length)
    rows = max(1, logits_at_once // head.vocabulary)
    losses: list[Tensor] = []
    for start in range(0, len(windows.tokens), size):
        tokens, targets, is_scored = (
            torch.from_numpy(array[start : start + size]).to(device)
            for array in (windows.tokens, windows.targets, windows.is_scored)
        )
        with autocast(device, precision):
            hidden = backbone(input_ids=tokens).last_hidden_state[is_scored]
            parts = zip(hidden.split(rows), targets[is_scored].split(rows), strict=True)
            batch = [
                nn.functional.cross_entropy(head.logits(h, embedding).float(), t, reduction="none") for h, t in parts
            ]
        losses.append(torch.cat(batch).cpu().double().view(len(tokens), -1).mean(1))
    model.train(was_training)
    return TextLoss(torch.cat(losses).numpy(), int(windows.is_scored[0].sum()))


def _classifier_of(model: nn.Module) -> Any:
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _refuse_long_windows(classifier: Any, windows: TextWindows) -> None:
    """Learned positions end somewhere, and in RoBERTa's line they begin after the padding index."""
    config, length = classifier.config, windows.tokens.shape[1]
    longest = getattr(config, "max_position_embeddings", None)
    positions = next((m for n, m in classifier.named_modules() if n.endswith("position_embeddings")), None)
    if longest is not None and positions is not None and positions.padding_idx is not None:
        longest -= positions.padding_idx + 1
    if longest is not None and length > longest:
        raise StudyError(
            f"windows of {length} tokens are longer than the {longest} that {config.model_type} has positions for",
            hint=f"use windows of at most {longest} tokens",
        )
