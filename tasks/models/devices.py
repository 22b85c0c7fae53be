"""The devices and number types that the options of task models name."""

from __future__ import annotations

from typing import Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
