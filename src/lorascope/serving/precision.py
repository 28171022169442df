"""What merging does to a model's outputs, in fp32 and in bf16.

Folding an adapter into its base is exact in real numbers. In floats, W + BA is rounded once to the weights' precision
where the adapter adds BAx to Wx after two products of their own: in fp32 the difference is noise, in bf16 (8 bits) it can
change decisions. Rounding alone changes some too, so the bf16 adapter is compared with the fp32 adapter too: merging
costs something only where the first difference exceeds the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.serving.export import Dtype, Workload, cast
from lorascope.serving.trained import TrainedRun
from lorascope.training.reading import Reading

if TYPE_CHECKING:
    from torch import nn

    from lorascope.data.columns import Examples

MERGED, ROUNDED = "merged v adapter", "adapter v float32 adapter"
_LOGITS_AT_ONCE = 2**26  # 256 MiB in float32, of each of four models


@dataclass(frozen=True)
class PrecisionRow:
    """One comparison in one dtype. flip_rate: the fraction of decisions (the class, the likeliest next token) that
    differ. n: decisions compared."""

    what: str
    dtype: Dtype
    max_abs_logit_difference: float
    max_probability_difference: float
    flip_rate: float
    n: int


@dataclass(frozen=True)
class MergePrecision:
    """rows: merged v adapter in float32 and bfloat16, then the bfloat16 adapter v the float32 one."""

    workload: Workload
    rows: tuple[PrecisionRow, ...]

    def row(self, what: str, dtype: Dtype) -> PrecisionRow:
        return next(row for row in self.rows if (row.what, row.dtype) == (what, dtype))


def merge_precision(
    run: TrainedRun, examples: Examples, *, workload: Workload, device: str = "cpu", num_examples: int = 64
) -> MergePrecision:
    """Merged v adapter on the first `num_examples` of `examples` (tokenised as the run's): class logits, or, for
    generation, the next-token logits after each of their tokens.

    Raises StudyError for a run without an adapter, or an encoder that should generate.
    """
    import torch

    run.require_adapter("merged")
    rows = np.arange(min(num_examples, len(examples)))

    def outputs(classifier: Any) -> dict[Dtype, np.ndarray]:
        model: Any = run.language_model(classifier) if workload == "generation" else classifier
        model.to(torch.device(device))
        found: dict[Dtype, np.ndarray] = {}
        for dtype in ("float32", "bfloat16"):
            cast(model, dtype)
            if workload == "generation":
                found[dtype] = _next_token_logits(model, examples, rows, device=device)
            else:
                reading = Reading(run.task, run.base.pad_token_id, device, "fp32")
                found[dtype] = reading.signatures(model, examples, rows=rows)
        return found

    with torch.no_grad():
        adapter, merged = outputs(run.trained()), outputs(run.merged())
    return MergePrecision(
        workload,
        (
            _compare(MERGED, "float32", merged["float32"], adapter["float32"]),
            _compare(MERGED, "bfloat16", merged["bfloat16"], adapter["bfloat16"]),
            _compare(ROUNDED, "bfloat16", adapter["bfloat16"], adapter["float32"]),
        ),
    )


def _next_token_logits(model: nn.Module, examples: Examples, rows: np.ndarray, *, device: str) -> np.ndarray:
    """float32 [tokens, vocabulary]: of the examples in order, as many as fit."""
    import torch

    parts: list[np.ndarray] = []
    size = 0
    for ids in examples.gather(rows)["input_ids"]:
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(device)
        logits: Any = model(input_ids=tokens[None], use_cache=False).logits
        parts.append(logits[0].float().cpu().numpy())
        size += parts[-1].size
        if size >= _LOGITS_AT_ONCE:
            break
    return np.concatenate(parts)


def _compare(what: str, dtype: Dtype, found: np.ndarray, reference: np.ndarray) -> PrecisionRow:
    differences = np.abs(found - reference).max()
    probabilities = max(
        float(np.abs(_softmax(f) - _softmax(r)).max())
        for f, r in zip(np.array_split(found, 64), np.array_split(reference, 64), strict=True)
        if len(f)
    )
    flips = found.argmax(-1) != reference.argmax(-1)
    return PrecisionRow(what, dtype, float(differences), probabilities, float(flips.mean()), len(flips))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
