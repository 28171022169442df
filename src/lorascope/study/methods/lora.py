"""LoRA, as a study writes it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lorascope.study.methods.base import MethodBase, Ranges
from lorascope.study.ranges import Range, logarithmic

_PUBLISHED = {
    "learning_rate": logarithmic(5e-5, 5e-3),
    "warmup": Range(low=0.0, high=0.3),
    "weight_decay": Range(low=0.0, high=0.1),
    "alpha": Range(low=8, high=64),
    "dropout": Range(low=0.0, high=0.2),
}
PUBLISHED_RANK = 8
"""The rank at which alpha was searched in the comparisons that the ranges come from."""


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
    alpha: float = Field(
        default=16,
        gt=0,
        description="Numerator of the scale alpha/rank. Arms of different ranks that share an alpha differ in it.",
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        exclude=True,  # no part of a run: alpha says the same
        description="alpha/rank, in place of `alpha`: the same for every rank. A search then varies it in place of `alpha`.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="On the adapter's input.")
    sites: tuple[str, ...] = Field(
        default=("query", "value"),
        description="By meaning (`query`, `value`, `attention`, `mlp`, `all-linear`) or by module name. Default: query and "
        "value, the paper's choice.",
    )

    @model_validator(mode="before")
    @classmethod
    def _alpha_from_scale(cls, value: Any) -> Any:
        """What scale means for this rank; what is no number is left to the fields' own checks."""
        if not isinstance(value, dict) or value.get("scale") is None:
            return value
        scale, rank = value["scale"], value.get("rank", cls.model_fields["rank"].default)
        if "alpha" in value:
            raise ValueError("`alpha` and `scale` say the same (scale = alpha / rank): give one of them")
        are_numbers = all(type(number) in (int, float) and number > 0 for number in (scale, rank))
        return {**value, "alpha": scale * rank} if are_numbers else value

    def searched(self, ranges: Ranges) -> Ranges:
        """Written with a scale, alpha's range becomes that of the scale, at the rank that the range was published for."""
        alpha = ranges.get("alpha")
        if self.scale is None or not isinstance(alpha, Range):
            return ranges
        scale = Range(low=alpha.low / PUBLISHED_RANK, high=alpha.high / PUBLISHED_RANK, log=alpha.log)
        return {
            ("scale" if name == "alpha" else name): scale if name == "alpha" else found
            for name, found in ranges.items()
        }

    def settled(self) -> Self:
        """alpha as scale and rank say."""
        return self if self.scale is None else self.model_copy(update={"alpha": self.scale * self.rank})
