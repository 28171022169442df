"""The tokenizer of a model, with a pad token that cannot be mistaken for text, and ids that the model has rows for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorascope.errors import EnvironmentProblem, StudyError
from lorascope.models.checkpoint import checkpoint_directory
from lorascope.models.config_facts import vocabulary_rows
from lorascope.models.configuration import read_config
from lorascope.models.reading import first_sentence
from lorascope.models.tokenizer_files import no_vocabulary, too_many_ids


def load_tokenizer(model: Mapping[str, Any], *, locations: Mapping[str, str], cache_dir: Path) -> Any:
    """A right-padding tokenizer with a pad token.

    A tokenizer without one takes its unknown token, which ordinary text does not end in, or else its end-of-text token.
    Raises StudyError if it has none of the three, or ids beyond the model's vocabulary; EnvironmentProblem if its files
    cannot be read.
    """
    from transformers import AutoTokenizer

    directory = checkpoint_directory(model, locations=locations, cache_dir=cache_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # its readers raise what they like
        raise EnvironmentProblem(
            f"the tokenizer in {directory} cannot be loaded: {first_sentence(error)[:300] or type(error).__name__}",
            hint="the checkpoint needs whole tokenizer files (tokenizer.json, or vocab and merges) and a config.json "
            "of its own architecture: save or download it again",
        ) from None
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # transformers makes one out of nothing
        text, hint = no_vocabulary(directory)
        raise EnvironmentProblem(text, hint=hint)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        replacement = tokenizer.unk_token or tokenizer.eos_token
        if replacement is None:
            raise StudyError(
                "the model's tokenizer has no pad token, and neither an unknown nor an end-of-text token to stand in",
                hint="add one to the checkpoint: tokenizer.add_special_tokens({'pad_token': '<pad>'}), resize the "
                "model's embeddings, and save both",
            )
        tokenizer.pad_token = replacement
    rows = vocabulary_rows(read_config(directory) or {})
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and largest >= rows:
        text, hint = too_many_ids(largest, token, rows)
        raise StudyError(f"{directory}: {text}", hint=hint)
    return tokenizer
