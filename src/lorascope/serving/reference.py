"""What an engine must output: the same checkpoints computed offline by transformers and peft, one plain forward at a time.

Nothing is padded: prompts of one length go through together, so that the only differences left between engine and
reference are kernels and rounding. Class probabilities are computed before an engine is asked. Generated tokens are judged
after: each in the context of those that the engine generated before it, so that one token which rounding decided leaves
everything behind it to be judged all the same. Both in fp32, and where a coarser dtype is served in that too, which shows
what its rounding changes.
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
from lorascope.models.reading import reading_checkpoint
from lorascope.serving.export import cast
from lorascope.serving.forms import Dtype
from lorascope.study.measure import Workload

if TYPE_CHECKING:
    import torch

_RIVALS = 8
"""The best tokens of a step, between which rounding decides if it does."""
_LOGITS_IN_TOKENS = 4  # the memory of one step's logits, very roughly, in tokens of a forward pass
_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 32768, "mps": 8192}


@dataclass(frozen=True)
class Generated:
    """Tokens that an engine generated greedily. prompt, tokens: ids. adapter: whose answer it is; None: the model's alone."""

    prompt: Sequence[int]
    adapter: str | None
    tokens: Sequence[int]


@dataclass(frozen=True, eq=False)
class Classified:
    """Class probabilities of prompts, in float64. exact: of the model in fp32. rounded: of the model in its own dtype."""

    exact: Float[np.ndarray, "prompts classes"]
    rounded: Float[np.ndarray, "prompts classes"]

    def of(self, rows: Sequence[int]) -> Classified:
        return Classified(self.exact[rows], self.rounded[rows])


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the reference, in fp32, holds of generated tokens, each given the ones before it.

    behind: by how much the token's logit trails the best one, 0 where it is the best. best: that logit. rounding: the standard
    deviation of a logit's rounding error, relative to its rivals', where the model works in a coarser dtype than fp32; else 0.
    """

    behind: Float[np.ndarray, " tokens"]
    best: Float[np.ndarray, " tokens"]
    rounding: float


@dataclass(frozen=True, eq=False)
class _Contexts:
    """Rows of one adapter and one length: what stood before the last of their `num_steps` tokens."""

    rows: list[int]
    tokens: Int[torch.Tensor, "rows length"]
    num_steps: int
    adapter: str | None


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
                hint="a decoder's classifier reads the last token that is not padding: draw prompts without it",
            )
        found: dict[int, np.ndarray] = {}
        with torch.no_grad(), self._using(adapter):
            for rows, tokens in self._batches(prompts, extra=0):
                logits = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
                found |= dict(zip(rows, logits.double().softmax(-1).cpu().numpy(), strict=True))
        return np.stack([found[row] for row in range(len(prompts))])

    def classify(self, asked: Sequence[tuple[Sequence[int], str | None]]) -> Classified:
        """asked: prompts, each with its adapter. This model is in fp32 afterwards. Raises like `class_probabilities`."""
        rounded = self._classified(asked)
        if not self._is_coarse:
            return Classified(rounded, rounded)
        cast(self._model, "float32")
        return Classified(self._classified(asked), rounded)

    def _classified(self, asked: Sequence[tuple[Sequence[int], str | None]]) -> Float[np.ndarray, "prompts classes"]:
        rows_of: dict[str | None, list[int]] = {}
        for row, (_, adapter) in enumerate(asked):
            rows_of.setdefault(adapter, []).append(row)
        found: dict[int, np.ndarray] = {}
        for adapter, rows in rows_of.items():
            answers = self.class_probabilities([asked[row][0] for row in rows], adapter=adapter)
            found |= dict(zip(rows, answers, strict=True))
        return np.stack([found[row] for row in range(len(asked))])

    def judge(self, generated: Sequence[Generated]) -> Judgement:
        """Their tokens, one after another. This model is in fp32 afterwards.

        Raises IndexError for a token outside of the vocabulary.
        """
        import torch

        num_known = self._model.get_input_embeddings().num_embeddings
        if any(not 0 <= token < num_known for one in generated for token in one.tokens):
            raise IndexError(f"a token outside of the vocabulary of {num_known}")
        is_coarse = self._is_coarse
        groups = list(self._contexts(generated))
        with torch.no_grad():
            rounded = [self._next_logits(group).cpu() for group in groups] if is_coarse else []
            cast(self._model, "float32")
            behind: list[np.ndarray] = [np.empty(0)] * len(generated)
            best, errors = list(behind), []
            for place, group in enumerate(groups):
                logits = self._next_logits(group)
                served = torch.tensor([list(generated[row].tokens) for row in group.rows], device=self.device)
                rivals = logits.topk(_RIVALS)
                top = rivals.values[..., 0]
                trails = top - logits.gather(-1, served[..., None])[..., 0]
                for row, one, other in zip(group.rows, trails.cpu().numpy(), top.cpu().numpy(), strict=True):
                    behind[row], best[row] = one, other
                if is_coarse:
                    error = rounded[place].gather(-1, rivals.indices.cpu()).double() - rivals.values.cpu().double()
                    errors.append(error.flatten(0, 1).numpy())
        rounding = rounding_error(np.concatenate(errors)) if errors else 0.0
        return Judgement(np.concatenate([*behind, []]), np.concatenate([*best, []]), rounding)

    @property
    def _is_coarse(self) -> bool:
        import torch

        return self._model.dtype != torch.float32

    def _next_logits(self, group: _Contexts) -> torch.Tensor:
        """fp32 [rows, steps, vocabulary], what follows each of the last `num_steps` tokens."""
        with self._using(group.adapter):
            output = self._model(input_ids=group.tokens, logits_to_keep=group.num_steps, use_cache=False)
        return output.logits.float()

    def _contexts(self, generated: Sequence[Generated]) -> Iterator[_Contexts]:
        alike: dict[tuple[str | None, int, int], list[int]] = {}
        for row, one in enumerate(generated):
            if one.tokens:
                alike.setdefault((one.adapter, len(one.prompt), len(one.tokens)), []).append(row)
        for (adapter, _, num_steps), rows in alike.items():
            before = [[*generated[row].prompt, *generated[row].tokens[:-1]] for row in rows]
            for places, tokens in self._batches(before, extra=_LOGITS_IN_TOKENS * num_steps):
                yield _Contexts([rows[place] for place in places], tokens, num_steps, adapter)

    def _using(self, adapter: str | None) -> Any:
        if adapter is not None:
            assert adapter in self.adapters, f"{adapter} is none of {', '.join(self.adapters)}"
            self._model.set_adapter(adapter)
            return nullcontext()
        return self._model.disable_adapter() if self.adapters else nullcontext()

    def _batches(self, prompts: Sequence[Sequence[int]], *, extra: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(rows, tokens on the device) of prompts of one length. extra: tokens by which each counts as longer."""
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


def rounding_error(errors: Float[np.ndarray, "n rivals"]) -> float:
    """The standard deviation of a logit's error relative to its rivals': what moves them all alike decides nothing."""
    return float(np.sqrt(errors.var(axis=1, ddof=1).mean()))
