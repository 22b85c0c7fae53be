"""Colour correction of a decoded image: its low frequencies replaced by those of a reference that the decoder has too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5


def wavelet(pixels: Tensor, reference: Tensor, levels: int = LEVELS) -> Tensor:
    """The detail of `pixels` on the low frequencies of `reference`, both (N, 3, H, W) in [0, 1] -> the same, clamped.

    An undecimated ("à trous") wavelet with the kernel [1 2 1] / 4 along each axis, as in StableSR (Wang et al. 2024).
    """
    return (pixels - _low(pixels, levels) + _low(reference, levels)).clamp(0, 1)


def _low(x: Tensor, levels: int) -> Tensor:
    taps = torch.tensor([1.0, 2.0, 1.0], device=x.device, dtype=x.dtype) / 4
    channels = x.shape[1]
    for level in range(levels):
        reach = 2**level
        for axis, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
            shape = [channels, 1, 1, 1]
            shape[axis] = 3
            dilation = [reach if axis == 2 else 1, reach if axis == 3 else 1]
            kernel = taps.view(1, 1, *(3 if d == axis else 1 for d in (2, 3))).expand(shape)
            x = F.conv2d(F.pad(x, pad, mode="replicate"), kernel, groups=channels, dilation=dilation)
    return x
