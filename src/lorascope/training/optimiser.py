"""AdamW for a gang: each run under its own rate, decay, clipping norm and step count.

The update is PyTorch's own (torch.optim.AdamW), one optimiser a run, over the run's row of the flat parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorascope.training.flat import FlatParameters

if TYPE_CHECKING:
    from lorascope.study.spec import TrainSpec

_MOMENTS = ("exp_avg", "exp_avg_sq")


class GangOptimiser:
    """trains: one setting a run. `step` can be captured in a CUDA graph after it has been called once."""

    def __init__(self, flat: FlatParameters, trains: Sequence[TrainSpec]) -> None:
        self.flat = flat
        device = flat.values.device
        self.rates = torch.zeros(flat.runs, device=device)
        limits = [train.gradient_clip for train in trains]
        self._limits = torch.tensor([float("inf") if limit is None else limit for limit in limits], device=device)
        self._clips = any(limit is not None for limit in limits)
        self.optimisers = [self._adamw(run, train) for run, train in enumerate(trains)]

    def _adamw(self, run: int, train: TrainSpec) -> torch.optim.AdamW:
        """AdamW (Loshchilov & Hutter 2019), fused, on the two parts of the run's row: decaying and constant."""
        groups = []
        for part, decay in (
            (slice(0, self.flat.num_decaying), train.weight_decay),
            (slice(self.flat.num_decaying, None), 0.0),
        ):
            weights = nn.Parameter(self.flat.values[run, part])
            weights.grad = self.flat.gradients[run, part]
            if weights.numel():
                groups.append({"params": [weights], "weight_decay": decay})
        on_cuda = self.flat.values.is_cuda
        optimiser = torch.optim.AdamW(
            groups, lr=self.rates[run], betas=train.adam_betas, eps=train.adam_epsilon, fused=True, capturable=on_cuda
        )
        for group in optimiser.param_groups:  # as its first step would, but before any capture
            (weights,) = group["params"]
            step = torch.zeros((), device=weights.device)
            optimiser.state[weights] = {"step": step, **{name: torch.zeros_like(weights) for name in _MOMENTS}}
        return optimiser

    def set_rates(self, rates: Sequence[float]) -> None:
        """The learning rates of the next step, one a run."""
        host = torch.tensor(rates, dtype=torch.float32)
        self.rates.copy_(host.pin_memory() if self.rates.is_cuda else host, non_blocking=True)

    def step(self) -> None:
        """Clips each run's gradient to its norm (as `clip_grad_norm_` does), updates it, and clears the gradients."""
        if self._clips:
            norms = torch.linalg.vector_norm(self.flat.gradients, dim=1)
            factors = (self._limits / (norms + 1e-6)).clamp(max=1.0)
            self.flat.gradients.mul_(factors[:, None])
        for optimiser in self.optimisers:
            optimiser.step()
        self.flat.gradients.zero_()

    # ---------------------------------------------------------------------------------------------------- kill, resume

    def state(self, run: int) -> dict[str, Any]:
        """The run's step count and its moments by parameter: copies on the device."""
        moments = {name: self.flat.row(self._moment(run, name)) for name in _MOMENTS}
        return {"step": float(self._parts(run)[0]["step"]), **moments}

    def restore(self, run: int, state: Mapping[str, Any]) -> None:
        for part in self._parts(run):
            part["step"].fill_(state["step"])
        for name in _MOMENTS:
            row = torch.zeros_like(self.flat.values[run])
            self.flat.load_row(row, state[name])
            start = 0
            for part in self._parts(run):
                part[name].copy_(row[start : start + part[name].numel()])
                start += part[name].numel()

    def _parts(self, run: int) -> list[dict[str, Tensor]]:
        return [self.optimisers[run].state[group["params"][0]] for group in self.optimisers[run].param_groups]

    def _moment(self, run: int, name: str) -> Tensor:
        return torch.cat([part[name] for part in self._parts(run)])
