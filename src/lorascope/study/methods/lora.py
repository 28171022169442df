"""LoRA, as a study writes it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorascope.study.methods.base import MethodBase
from lorascope.study.ranges import Range, logarithmic

_PUBLISHED = {
    "learning_rate": logarithmic(5e-5, 5e-3),
    "warmup": Range(low=0.0, high=0.3),
    "weight_decay": Range(low=0.0, high=0.1),
    "alpha": Range(low=8, high=64),
    "dropout": Range(low=0.0, high=0.2),
}


class LoraSpec(MethodBase):
    """LoRA (Hu et al. 2021): W + alpha/rank * B A at the chosen sites, the base frozen, the head trained.

    sites: by meaning ("query", "value", "attention", "mlp", "all-linear") or by module name ("q_proj").
    """

    title: ClassVar = "LoRA"
    trains: ClassVar = "rank {rank}, alpha {alpha:g}, on {sites}"
    gangs: ClassVar = True
    alike: ClassVar = ("kind", "sites")
    has_adapter: ClassVar = True
    ranges: ClassVar = {
        "published": _PUBLISHED,
        "wide": {**_PUBLISHED, "learning_rate": logarithmic(1e-5, 3e-2), "alpha": logarithmic(4, 128)},
    }

    kind: Literal["lora"] = Field(
        description="`lora`: W + alpha/rank * B A at the chosen sites (Hu et al. 2021); base frozen, head trained."
    )
    learning_rate: float = Field(
        default=5e-4,
        gt=0,
        description="Peak rate. Ten times that of full fine-tuning, where LoRA's optimum lies; the two methods never share "
        "one.",
    )
    rank: int = Field(default=8, ge=1, description="Width of the two matrices.")
    alpha: float = Field(default=16, gt=0, description="Numerator of the scale alpha/rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="On the adapter's input.")
    sites: tuple[str, ...] = Field(
        default=("query", "value"),
        description="By meaning (`query`, `value`, `attention`, `mlp`, `all-linear`) or by module name. Default: query and "
        "value, the paper's choice.",
    )
