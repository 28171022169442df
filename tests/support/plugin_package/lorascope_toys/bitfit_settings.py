"""What a study sets of BitFit. Neither torch nor transformers is imported here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lorascope.study.methods.base import MethodBase


class BitFitSpec(MethodBase):
    """BitFit: biases and head. Its best rates lie well above those of full fine-tuning."""

    version: ClassVar[int] = 2

    kind: Literal["bitfit"]
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
