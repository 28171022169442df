"""What a tokenizer's files say of its ids, read without transformers.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorascope.models.checkpoint_files import json_object


def largest_id(directory: Path) -> tuple[int, str] | None:
    """The largest id of a tokenizer, and its token; None where its files (such as a sentencepiece model) do not show."""
    ids = list(_ids(directory))
    return max(ids, default=None)


def has_vocabulary(directory: Path) -> bool:
    """Whether there is a file that a tokenizer's words may lie in, or a tokenizer of characters or bytes."""
    kind = str(json_object(directory / "tokenizer_config.json").get("tokenizer_class"))
    return kind.removesuffix("Fast") in _WITHOUT_FILES or any(
        True for pattern in _VOCABULARIES for _ in directory.glob(pattern)
    )


_VOCABULARIES = (
    "tokenizer.json", "tokenizer.*.json", "*vocab*", "*.model", "*.spm", "*.tiktoken", "bpe.codes", "*.bpe",
)  # fmt: skip
_WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer", "MyT5Tokenizer")


def no_vocabulary(directory: Path) -> tuple[str, str]:
    """What is said of a checkpoint whose tokenizer has no words, and the hint."""
    return (
        f"the checkpoint in {directory} has no tokenizer: there is no vocabulary in its files",
        "save the tokenizer next to the model, `tokenizer.save_pretrained(DIR)`, or download its files too",
    )


def too_many_ids(largest: int, token: str, rows: int) -> tuple[str, str]:
    """What is said of a tokenizer whose ids the model has no rows for, and the hint."""
    return (
        f"the tokenizer's ids go up to {largest} (`{token}`), and the model's vocabulary ends at {rows - 1}",
        "give the model a row for each token and save it again, `model.resize_token_embeddings(len(tokenizer))`, or take the "
        "tokenizer that belongs to the checkpoint",
    )


def _ids(directory: Path) -> Iterator[tuple[int, str]]:
    whole = json_object(directory / "tokenizer.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # of a unigram model: [token, score], by id
        yield from (
            (index, str(entry[0])) for index, entry in enumerate(vocabulary) if isinstance(entry, list) and entry
        )
    yield from _by_token(vocabulary)
    added = whole.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            yield entry["id"], str(entry.get("content"))
    for name in ("vocab.json", "added_tokens.json"):
        yield from _by_token(json_object(directory / name))
    decoder = json_object(directory / "tokenizer_config.json").get("added_tokens_decoder")
    for index, entry in decoder.items() if isinstance(decoder, dict) else ():
        if str(index).isdecimal() and isinstance(entry, dict):
            yield int(index), str(entry.get("content"))


def _by_token(vocabulary: Any) -> Iterator[tuple[int, str]]:
    if isinstance(vocabulary, dict):
        yield from ((index, str(token)) for token, index in vocabulary.items() if isinstance(index, int))
