"""All trained weights of a gang in one array, [runs, parameters]: a row is a run.

Clipping, the optimiser, checkpoints and the best weights then work on rows and need not know the model. The model's
parameters become views of the array and their gradients views of a second one, so backward writes where they read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lorascope.methods.base import ParamGroup

_ALIGNMENT = 64  # floats: every parameter starts on a boundary that vector loads and matrix products like


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in a row. shape: of one run's part."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


class FlatParameters:
    """values, gradients: float32 [runs, parameters]; the first `num_decaying` columns are under weight decay.

    Takes the trained parameters of a prepared model. stacked: the names of those whose first dimension is the run, which
    for several runs is all of them. The padding between parameters is zero and stays zero.
    """

    def __init__(
        self, groups: Sequence[ParamGroup], names: Mapping[nn.Parameter, str], *, runs: int, stacked: Collection[str]
    ) -> None:
        self.runs = runs
        self.places: dict[str, _Place] = {}
        parameters: dict[str, nn.Parameter] = {}
        width = 0
        for decaying in (True, False):
            for group in groups:
                for parameter in group.parameters if group.decays == decaying else ():
                    name = names[parameter]
                    assert runs == 1 or name in stacked, f"{name} is not stacked over {runs} runs"
                    shape = tuple(parameter.shape[1:] if name in stacked else parameter.shape)
                    self.places[name], parameters[name] = _Place(width, shape), parameter
                    width += -(-parameter.numel() // runs // _ALIGNMENT) * _ALIGNMENT
            if decaying:
                self.num_decaying = width
        device = next(iter(parameters.values())).device
        self.values = torch.zeros(runs, width, device=device)
        self.gradients = torch.zeros(runs, width, device=device)
        with torch.no_grad():
            for name, parameter in parameters.items():
                view = self._view(self.values, name, parameter)
                view.copy_(parameter)
                parameter.data = view
                parameter.grad = self._view(self.gradients, name, parameter)
        self.parameters = parameters

    def _view(self, array: Tensor, name: str, parameter: nn.Parameter) -> Tensor:
        place = self.places[name]
        return array[:, place.start : place.stop].view(parameter.shape)

    @property
    def num_parameters(self) -> int:
        """Trained parameters of one run."""
        return sum(place.stop - place.start for place in self.places.values())

    def row(self, array: Tensor) -> dict[str, Tensor]:
        """A row of `values` (or of an array like it), [parameters], by parameter: views."""
        return {name: array[place.start : place.stop].view(place.shape) for name, place in self.places.items()}

    def load_row(self, array: Tensor, state: Mapping[str, Tensor]) -> None:
        """Copies what `row` gave, perhaps in a gang of other ranks: what both have is copied, the rest is zero."""
        for name, target in self.row(array).items():
            source = state[name]
            if source.numel() == target.numel():
                target.copy_(source.reshape(target.shape))
            else:
                overlap = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
                target.zero_()
                target[overlap].copy_(source[overlap])
