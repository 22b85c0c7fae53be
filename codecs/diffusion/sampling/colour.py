"""Colour correction of a decoded image: its low frequencies are replaced by those of a reference that the decoder has too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5  # Levels of the wavelet: the blur that separates the low frequencies reaches 31 pixels.


def wavelet_colour_fix(pixels: Tensor, reference: Tensor, levels: int = LEVELS) -> Tensor:
    """Combine the high frequencies of one image with the low frequencies of another.

    The frequencies are separated by an undecimated ("à trous") wavelet with the kernel [1 2 1] / 4 along each axis, as in StableSR
    (Wang et al. 2024).

    Args:
        pixels: Images (N, 3, H, W) in [0, 1] whose detail is kept.
        reference: Images (N, 3, H, W) in [0, 1] whose low frequencies are taken.
        levels: Levels of the wavelet.

    Returns:
        Images (N, 3, H, W), clamped to [0, 1].
    """
    return (pixels - _low_pass(pixels, levels) + _low_pass(reference, levels)).clamp(0, 1)


def _low_pass(x: Tensor, levels: int) -> Tensor:
    """x (N, C, H, W) blurred with the kernel [1 2 1] / 4, dilated by 1, 2, 4, ... pixels."""
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
