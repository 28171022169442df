"""What can be written of a run, and in which number format. Both are chosen on the command line, so nothing heavy is
imported here."""

from __future__ import annotations

from typing import Literal

Form = Literal["adapter", "merged", "full", "base"]
Dtype = Literal["float32", "bfloat16"]
