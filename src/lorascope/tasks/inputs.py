"""What an example becomes for a model: ragged columns of text tokens, or images.

Inputs know nothing of padding and batches (`data.batches` makes those). One example may give several rows, its windows;
`EXAMPLE` then says which example each row belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lorascope.data.batches import ColumnUse
from lorascope.data.columns import Columns
from lorascope.errors import DataError

EXAMPLE = "example"
"""The column that says which of the examples given to `encode` a row belongs to; absent where each gives one row."""
SIZE_BEFORE = "num_tokens_before_truncation"


class Inputs(ABC):
    """unit: what the size of a row counts ("token", "image"). multiple: sizes are padded up to a multiple of it.
    largest_batch: device type -> padded units in a batch of an evaluation. uses: columns that go to the model."""

    unit: ClassVar[str]
    multiple: ClassVar[int] = 1
    largest_batch: ClassVar[Mapping[str, int]]
    uses: tuple[ColumnUse, ...]

    @abstractmethod
    def load_processor(self, model: Mapping[str, Any], *, locations: Mapping[str, str], cache_dir: Path) -> Any:
        """What encodes examples for this model: its tokenizer, or the numbers of its image processor.

        It has `save_pretrained(directory)`, so that an exported run carries it. Raises EnvironmentProblem if the
        checkpoint has none.
        """

    @abstractmethod
    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        """Columns of one array a row: a 1-d array is ragged, scalars and arrays of more axes have one shape.

        Text has `SIZE_BEFORE` too, the size before truncation. A row depends on its own example alone.
        """

    def pad_token_id(self, processor: Any) -> int | None:
        """The token behind the end of a row; None for inputs that are never padded."""
        del processor
        return None

    def refuse(self, columns: Columns, ids: Sequence[str], processor: Any, *, split: str) -> None:
        """Raises DataError for rows that a model would misread. ids: of the example of each row, or its row in a file."""
        del columns, ids, processor, split


class TextInputs(Inputs):
    """Tokens of one text, or of a pair. text_columns: one or two."""

    unit: ClassVar[str] = "token"
    multiple: ClassVar[int] = 8
    largest_batch: ClassVar[Mapping[str, int]] = {"cpu": 4096, "cuda": 65536, "mps": 16384}
    uses = (ColumnUse("input_ids", "input_ids", fill=None), ColumnUse("token_type_ids", "token_type_ids"))

    def __init__(self, text_columns: Sequence[str]) -> None:
        self.text_columns = tuple(text_columns)

    def load_processor(self, model: Mapping[str, Any], *, locations: Mapping[str, str], cache_dir: Path) -> Any:
        from lorascope.models.tokenizer import load_tokenizer

        return load_tokenizer(model, locations=locations, cache_dir=cache_dir)

    def pad_token_id(self, processor: Any) -> int | None:
        return processor.pad_token_id

    def encode(self, examples: Sequence[Mapping[str, Any]], processor: Any, *, max_length: int) -> Columns:
        """ "input_ids" int32, "token_type_ids" where the tokenizer has them, `SIZE_BEFORE`. Special tokens included. Pairs
        are cut longest text first. Only examples that are too long are encoded twice."""
        texts = self._texts_for(examples, processor)
        whole = processor(*texts, truncation=False, padding=False, verbose=False)
        lengths = [len(ids) for ids in whole["input_ids"]]
        encoded = {name: list(whole[name]) for name in ("input_ids", "token_type_ids") if name in whole}
        if too_long := [row for row, length in enumerate(lengths) if length > max_length]:
            cut = processor(
                *([column[row] for row in too_long] for column in texts),
                truncation=True,
                max_length=max_length,
                padding=False,
            )
            for name, rows in encoded.items():
                for position, row in enumerate(too_long):
                    rows[row] = cut[name][position]
        return {
            **{name: [np.asarray(row, dtype=np.int32) for row in rows] for name, rows in encoded.items()},
            SIZE_BEFORE: [np.asarray(length, dtype=np.int64) for length in lengths],
        }

    def _texts_for(self, examples: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[list[str]]:
        texts = [[example[column] for example in examples] for column in self.text_columns]
        # A decoder's tokenizer may join a pair with nothing in between; then a line break keeps the texts apart.
        if len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) == tokenizer.num_special_tokens_to_add():
            texts[0] = [text + "\n" for text in texts[0]]
        return texts

    def refuse(self, columns: Columns, ids: Sequence[str], processor: Any, *, split: str) -> None:
        """A decoder's pooling would take a final padding token for padding."""
        pad = processor.pad_token_id
        ends = [row for row, tokens in enumerate(columns["input_ids"]) if len(tokens) == 0 or int(tokens[-1]) == pad]
        if ends:
            raise DataError(
                f"{len(ends)} {split} examples end in the tokenizer's padding token ({pad}): "
                f"{', '.join(ids[row] for row in ends[:5])}",
                hint="The last real token could not be told from padding. Remove that token's text from the examples, or "
                "give the model a padding token of its own.",
            )
