"""A plain text cut into windows of tokens, once, so that every model reads and is scored on the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from lorascope.errors import StudyError

Objective = Literal["causal", "masked"]
WINDOW_TOKENS = 512
MASKED_FRACTION = 0.15


@dataclass(frozen=True, eq=False)
class TextWindows:
    """tokens: what a model reads; targets: the token that each position is to predict; is_scored: whether it counts, as
    often in each window. objective: what the positions predict. sha256: of the file's bytes.
    """

    objective: Objective
    tokens: Int[np.ndarray, "windows tokens"]
    targets: Int[np.ndarray, "windows tokens"]
    is_scored: Bool[np.ndarray, "windows tokens"]
    sha256: str


def causal_windows(path: Path, tokenizer: Any, *, length: int = WINDOW_TOKENS) -> TextWindows:
    """The file's text in windows of `length` tokens without overlap, each token to be predicted from those before it.

    A window begins with what the tokenizer begins a text with, if anything; its first token is not scored. What does not
    fill a window at the end is left out. Raises StudyError for a text that is not UTF-8 or is shorter than two windows.
    """
    prefix, _ = _special_tokens(tokenizer)
    tokens, digest = _read_windows(path, tokenizer, prefix, [], length)
    targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
    is_scored = np.zeros(tokens.shape, dtype=bool)
    is_scored[:, max(len(prefix), 1) - 1 : -1] = True
    return TextWindows("causal", tokens, targets, is_scored, digest)


def masked_windows(
    path: Path,
    tokenizer: Any,
    *,
    generator: np.random.Generator,
    length: int = WINDOW_TOKENS,
    fraction: float = MASKED_FRACTION,
) -> TextWindows:
    """The file's text in windows of `length` tokens, special ones included, with masks drawn once for all models.

    In each window the same number of tokens (the fraction, rounded, at least 1) is chosen and replaced by the mask token:
    all of them, where BERT's training leaves a tenth and makes a tenth random (Devlin et al. 2019, section 3.1). Raises
    StudyError for a tokenizer without a mask token, and as `causal_windows` does.
    """
    if tokenizer.mask_token_id is None:
        raise StudyError(
            "the model's tokenizer has no mask token, so its masked-token loss cannot be measured",
            hint="give the checkpoint's tokenizer the mask token that its model was trained with",
        )
    prefix, suffix = _special_tokens(tokenizer)
    targets, digest = _read_windows(path, tokenizer, prefix, suffix, length)
    content = np.arange(len(prefix), length - len(suffix))
    count = max(1, round(fraction * len(content)))
    is_scored = np.zeros(targets.shape, dtype=bool)
    for row in is_scored:
        row[generator.choice(content, size=count, replace=False)] = True
    return TextWindows("masked", np.where(is_scored, tokenizer.mask_token_id, targets), targets, is_scored, digest)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    with_special = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert plain, "the tokenizer has no token for a letter"
    start = next(i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain)
    return with_special[:start], with_special[start + len(plain) :]


def _read_windows(
    path: Path, tokenizer: Any, prefix: list[int], suffix: list[int], length: int
) -> tuple[Int[np.ndarray, "windows tokens"], str]:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise StudyError(f"the text {path} cannot be read: {error.strerror}", hint="name a plain text file") from error
    except UnicodeDecodeError as error:
        raise StudyError(
            f"the text {path} is not UTF-8: byte {error.start} is {content[error.start]:#04x}",
            hint=f"convert it: iconv -f ENCODING -t UTF-8 {path.name}",
        ) from error
    width = length - len(prefix) - len(suffix)
    assert width > 1, f"windows of {length} tokens have no room for text"
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    count = len(ids) // width
    if count < 2:
        raise StudyError(
            f"the text {path} has {len(ids)} tokens, fewer than two windows of {width}",
            hint=f"give a text of at least {2 * width} tokens (some {10 * width} characters), or shorter windows",
        )
    windows = ids[: count * width].reshape(count, width)
    parts = [np.tile(np.asarray(part, dtype=np.int64), (count, 1)) for part in (prefix, suffix)]
    return np.concatenate([parts[0], windows, parts[1]], axis=1), hashlib.sha256(content).hexdigest()
