"""BitFit (Ben Zaken et al. 2022): the biases and the task's head are trained, every matrix stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorascope.methods.full import FullFineTuning


class BitFit(FullFineTuning):
    """Trains the base's own biases, so runs cannot share the base, and each is trained alone."""

    shares_base = False
    flops_per_parameter = 4
    stacks = False

    def prepare(self, model: Any, *, head: Sequence[str], generators: Any, specs: Any = None) -> None:
        trained = _trained(model, head)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    def expected_parameters(self, model: Any, *, head: Sequence[str]) -> int:
        biases = sum(
            module.bias.shape[0]
            for name, module in model.named_modules()
            if getattr(module, "bias", None) is not None and not _is_inside(name, head)
        )
        return biases + sum(p.numel() for root in head for p in model.get_submodule(root).parameters())


def _trained(model: Any, head: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    biases = {name for name in names if name.endswith(".bias") and not _is_inside(name, head)}
    return biases | {name for name in names if _is_inside(name, head)}


def _is_inside(name: str, head: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in head)
