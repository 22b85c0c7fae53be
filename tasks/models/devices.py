"""Where a network runs and in which numbers, as options name them."""

from __future__ import annotations

from typing import Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
