"""What an engine must output: the same checkpoints computed offline by transformers and peft, one plain forward at a time.

Nothing is padded: prompts of one length go through together, so that the only differences left between engine and
reference are kernels and rounding. Greedy decoding keeps the margin between the best and the second-best logit of every
step: where an engine chose another token, the margin tells a mistake from a tie that rounding decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from lorascope.errors import StudyError
from lorascope.models.loading import reading_checkpoint
from lorascope.serving.export import Dtype, Workload

if TYPE_CHECKING:
    import torch

_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 32768, "mps": 8192}


@dataclass(frozen=True, eq=False)
class Continuations:
    """Greedy continuations. margins: best minus second-best logit at each step; best: the best logit, which sets the
    scale of its rounding."""

    tokens: Int[np.ndarray, "prompts steps"]
    margins: Float[np.ndarray, "prompts steps"]
    best: Float[np.ndarray, "prompts steps"]


class OfflineModel:
    """One exported model, with any number of exported adapters over it, in `dtype` throughout.

    directory: what `write_base`, `write_merged` or `write_full` wrote. adapters: name -> what `write_adapter` wrote.
    Raises EnvironmentProblem for a checkpoint that does not load.
    """

    def __init__(
        self,
        directory: Path,
        *,
        workload: Workload,
        dtype: Dtype,
        device: str = "cpu",
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        import torch
        import transformers
        from peft import PeftModel

        auto = {
            "classification": transformers.AutoModelForSequenceClassification,
            "generation": transformers.AutoModelForCausalLM,
        }[workload]
        self.device = device
        self.adapters = tuple(adapters or {})
        with reading_checkpoint(directory):
            model: Any = auto.from_pretrained(directory, dtype=getattr(torch, dtype))
            self.pad_token_id: int | None = model.config.pad_token_id
            for name, path in (adapters or {}).items():
                options = {"adapter_name": name, "autocast_adapter_dtype": False}
                if isinstance(model, PeftModel):
                    model.load_adapter(str(path), **options)
                else:
                    model = PeftModel.from_pretrained(model, str(path), **options)
        self._model = model.to(device).eval()

    def class_probabilities(
        self, prompts: Sequence[Sequence[int]], *, adapter: str | None = None
    ) -> Float[np.ndarray, "prompts classes"]:
        """Softmax, in float64, of the logits of each prompt (token ids). adapter: None for the model alone.

        Raises StudyError for a prompt that ends in the padding token, which a decoder's classifier does not read.
        """
        import torch

        if ends := [index for index, prompt in enumerate(prompts) if prompt[-1] == self.pad_token_id]:
            raise StudyError(
                f"prompt {ends[0]} ends in the padding token ({self.pad_token_id})",
                hint="a decoder's classifier reads the last token that is no padding: draw prompts without it",
            )
        found: dict[int, np.ndarray] = {}
        with torch.no_grad(), self._using(adapter):
            for rows, tokens in self._batches(prompts, extra=0):
                logits = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
                found |= dict(zip(rows, logits.double().softmax(-1).cpu().numpy(), strict=True))
        return np.stack([found[row] for row in range(len(prompts))])

    def greedy(self, prompts: Sequence[Sequence[int]], *, num_tokens: int, adapter: str | None = None) -> Continuations:
        """The likeliest token, `num_tokens` times after each prompt (token ids); an end-of-text token does not end it.
        adapter: None for the model alone."""
        import torch

        found: dict[int, np.ndarray] = {}
        with torch.no_grad(), self._using(adapter):
            for rows, tokens in self._batches(prompts, extra=num_tokens):
                found |= dict(zip(rows, self._decode(tokens, num_tokens), strict=True))
        tokens, margins, best = np.moveaxis(np.stack([found[row] for row in range(len(prompts))]), -1, 0)
        return Continuations(tokens.astype(np.int64), margins, best)

    def _decode(self, tokens: torch.Tensor, num_tokens: int) -> np.ndarray:
        """[prompts, steps, (token, margin, best logit)] as float64, which holds a token exactly."""
        import torch

        cache, steps = None, []
        for _ in range(num_tokens):
            output = self._model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            top = output.logits[:, -1].double().topk(2)
            tokens = top.indices[:, :1]
            steps.append(torch.stack([tokens[:, 0], top.values[:, 0] - top.values[:, 1], top.values[:, 0]], dim=-1))
        return torch.stack(steps, dim=1).cpu().numpy()

    def _using(self, adapter: str | None) -> Any:
        if adapter is not None:
            assert adapter in self.adapters, f"{adapter} is none of {', '.join(self.adapters)}"
            self._model.set_adapter(adapter)
            return nullcontext()
        return self._model.disable_adapter() if self.adapters else nullcontext()

    def _batches(self, prompts: Sequence[Sequence[int]], *, extra: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(rows, tokens on the device) of prompts of one length. extra: tokens that each will grow by."""
        import torch

        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(len(prompt), []).append(row)
        for length, rows in sorted(by_length.items(), reverse=True):
            size = max(1, _TOKENS_A_BATCH[torch.device(self.device).type] // (length + extra))
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                tokens = np.asarray([prompts[row] for row in some], dtype=np.int64)
                yield some, torch.from_numpy(tokens).to(self.device)
