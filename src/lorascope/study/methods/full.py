"""Full fine-tuning, as a study writes it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorascope.study.methods.base import MethodBase
from lorascope.study.ranges import Range, logarithmic


class FullSpec(MethodBase):
    """Full fine-tuning: every weight of the model is trained."""

    title: ClassVar = "full fine-tuning"
    trains: ClassVar = "all weights"
    gangs: ClassVar = True
    trains_everything: ClassVar = True
    ranges: ClassVar = {
        "published": {
            "learning_rate": logarithmic(1e-6, 5e-5),
            "batch_size": Range(low=1, high=4),
            "warmup": Range(low=0.0, high=0.2),
            "weight_decay": Range(low=0.0, high=0.01),
            "epochs": Range(low=2, high=4),
        },
        "wide": {
            "learning_rate": logarithmic(1e-6, 1e-3),
            "warmup": Range(low=0.0, high=0.3),
            "weight_decay": Range(low=0.0, high=0.1),
        },
    }

    kind: Literal["full"] = Field(description="`full`: every weight is trained.")
    learning_rate: float = Field(
        default=5e-5,
        gt=0,
        description="Peak rate. 5e-5 is the upper end of what full fine-tuning of encoders is usually given.",
    )
