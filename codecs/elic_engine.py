"""ELIC's networks on a device, with the entropy coders between them.

    encode    pixels --pad to 64--> g_a --> y --> h_a --> hyperprior coder --> payload
    decode    payload --> hyperprior coder --> y_hat, and `pixels`: y_hat --> g_s --> pixels

g_a and g_s run in float32 or bfloat16, on any device. The networks that the entropy coder depends on run in `entropy`, exactly and
on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from icmbench.codecs.entropy.hyperprior import HyperpriorCoder

if TYPE_CHECKING:
    from torch import Tensor

    from icmbench.codecs.base import Image
    from icmbench.codecs.elic_model import ElicNetwork
    from icmbench.codecs.entropy.hyperprior import CodedLatents, Latents

STRIDE = 64  # Images are padded to multiples of it, pixels.


class ElicEngine:
    """The transforms of one network, and an entropy coder for each mode.

    Args:
        network: The network, whose transforms are moved to the device.
        mode: The mode whose entropy coder is prepared at once.
        device: Where the transforms run.
        dtype: Number type of g_a and g_s.

    Raises:
        CodecError: there is no such mode.
    """

    def __init__(self, network: ElicNetwork, mode: str, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype, self._network = device, dtype, network
        self._coders: dict[str, HyperpriorCoder] = {}
        self.coder(mode)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self._analysis = network.g_a.to(device, dtype, **layout)
        self._synthesis = network.g_s.to(device, dtype, **layout)
        self._hyper_analysis = network.h_a.to(device, **layout)

    def encode(self, image: Image, mode: str) -> CodedLatents:
        """The coded latents of an image, uint8 RGB (height, width, 3)."""
        height, width = image.shape[:2]
        padded = np.zeros((-(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE, 3), np.uint8)
        padded[:height, :width] = image
        with torch.inference_mode():
            x = torch.from_numpy(padded).to(self._device).permute(2, 0, 1)[None]  # This view is channels-last already.
            y = self._analysis((x.float() / 255).to(self._dtype)).float()
            return self.coder(mode).compress(y, self._hyper_analysis(y))

    def decode(self, payload: bytes, height: int, width: int, mode: str) -> Latents:
        """The latents of an image of this size in pixels."""
        return self.coder(mode).decompress(payload, -(-height // STRIDE), -(-width // STRIDE))

    def pixels(self, y_hat: Tensor) -> Image:
        """The padded image (H, W, 3) of y_hat (1, M, H / 16, W / 16)."""
        with torch.inference_mode():
            y = y_hat.to(self._device, self._dtype, memory_format=torch.channels_last)
            x = self._synthesis(y)[0].permute(1, 2, 0).float()
            return np.ascontiguousarray((torch.nan_to_num(x).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())

    def coder(self, mode: str) -> HyperpriorCoder:
        """The entropy coder of a mode, prepared at its first use."""
        if mode not in self._coders:
            network = self._network
            self._coders[mode] = HyperpriorCoder(
                network.entropy_bottleneck, network.gaussian_conditional, network.h_s, network.context, mode
            )
        return self._coders[mode]
