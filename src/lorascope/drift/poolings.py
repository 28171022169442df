"""By which tokens a model's drift in one number is measured, and by which it is measured besides.

The one idea: drift is taken where the model decides. A decoder decides at the last token, which has seen all others. An
encoder decides at its first token ([CLS], a class token) if its architecture has one (models/architectures.py), the task's
head reads that token alone, and the checkpoint was not made to be read over all tokens, as sentence encoders are. Otherwise
every token counts, but attention sinks (drift/sinks.py). The other poolings of a study show whether the answer depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import StudyError
from lorascope.models.architectures import known_architecture
from lorascope.models.blocks import decides_on_last_token, plain_model

if TYPE_CHECKING:
    from torch import nn

    from lorascope.models.heads import Head
    from lorascope.study.measure import PoolingName

_HEADS_OF_ONE_TOKEN = ("AutoModelForSequenceClassification", "AutoModelForImageClassification")
_SENTENCE_POOLING = Path("1_Pooling", "config.json")
"""How a checkpoint of sentence-transformers is read."""


def ordered_poolings(
    listed: Sequence[PoolingName], *, model: nn.Module, head: Head, directory: Path
) -> tuple[PoolingName, ...]:
    """The study's poolings, the one that hypotheses are about first: the decision token, or else the mean over tokens that
    are not sinks; if the study does not list it, the first that it lists. directory: of the checkpoint.

    The decision token is left out for a model that has none. Raises StudyError if nothing else was asked for.
    """
    possible: list[PoolingName] = [*listed]
    if "decision-token" in possible and not _has_decision_token(model):
        possible.remove("decision-token")
    if not possible:
        raise StudyError(
            f"a {plain_model(model).config.model_type} model has no token at which it decides",
            hint="measure.drift.pooling: [non-sink-mean, mean]",
        )
    rule: PoolingName = "decision-token" if _decides_at_one_token(model, head, directory) else "non-sink-mean"
    first = rule if rule in possible else possible[0]
    return (first, *(name for name in possible if name != first))


def _has_decision_token(model: nn.Module) -> bool:
    architecture = known_architecture(plain_model(model).config.model_type)
    if architecture is not None:
        return architecture.is_causal or architecture.has_first_token
    try:
        decides_on_last_token(model)
    except StudyError:  # nothing tells whether it is a decoder
        return False
    return True


def _decides_at_one_token(model: nn.Module, head: Head, directory: Path) -> bool:
    config: Any = plain_model(model).config
    architecture = known_architecture(config.model_type)
    if not _has_decision_token(model):
        return False
    if decides_on_last_token(model):
        return True
    if architecture is None or head.auto_class not in _HEADS_OF_ONE_TOKEN:
        return False
    return getattr(config, "classifier_pooling", "cls") == "cls" and not _is_read_over_tokens(directory)


def _is_read_over_tokens(directory: Path) -> bool:
    """Whether the checkpoint is a sentence encoder that takes a mean (or another summary) of all tokens."""
    file = directory / _SENTENCE_POOLING
    return file.is_file() and not json.loads(file.read_text(encoding="utf-8")).get("pooling_mode_cls_token", False)
