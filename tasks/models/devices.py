"""The devices and number types that the options of task models name."""

from __future__ import annotations

from typing import Literal, TypeAlias

Device: TypeAlias = str  # "cpu", "cuda", "cuda:N" or "mps"; the harness also takes "auto".
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
