"""AdaptICMH (Li et al., ECCV 2024): a transformer codec, tuned for machine tasks by spatial-frequency adapters.

Repository: qingshi9974/ECCV2024-AdpatICMH, read at cf77f2eab798. It holds TIC-SFMA. The paper also has
mbt2018mean-SFMA and cheng2020anchor-SFMA, which are announced there and missing.

Environment that was tried (the authors pin nothing; this is also the one of sa_icm.py):
    uv venv -p 3.10 envs/adapticmh && uv pip install -p envs/adapticmh/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.26.4 \\
        compressai==1.2.6 timm==0.9.16 einops==0.8.0 opencv-python-headless==4.9.0.80 click==8.1.7
The experiment's `path` holds the folder `examples` of the checkout.

Weights: the releases of the repository: ckpt_cls_level1 to 4 (.tar), ckpt_det_level1 to 4 (.tar), ckpt_seg_level1 to 4 (.pth.tar).
They were not reachable here. Without adapters, the base codecs are those of TransTIC.
Licence: the repository states none, neither for the code nor for the weights; it is derived from TransTIC (Apache-2.0).

The authors' scripts print the estimated rate of `forward`. This adapter writes the strings of their `compress`. Their
`decompress` fails in its last line, which clamps a tuple; the adapter takes the same steps without it.

Verified with random weights of the authors' full network, on the CPU: the strings are those of `compress`, and decoding the bytes
in a fresh process gives the pixels of the authors' `decompress`, its last line repaired. Not verified: the authors' weights, a GPU.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<HHII")  # height, width, bytes of y and of z: 12 bytes that the authors' code keeps in memory
_STRIDE = 256  # pixels; the authors' detection.py and segmentation.py pad to multiples of it, with zeros at the right and below


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class AdaptIcmh:
    """AdaptICMH's TIC-SFMA, with the adapters of one task.

    Args:
        point: 1 to 4, the level in the name of the authors' weight file.
        weights: The authors' checkpoint of the task, such as "ckpt_cls_level{point}.tar". "{point}" stands for the point.
        device: Where the network runs, as PyTorch names it.
    """

    name = "adapt-icmh"
    default_points = (1, 2, 3, 4)

    def __init__(self, point: int, weights: Path, device: str = "cpu") -> None:
        path = Path(str(weights).replace("{point}", str(point)))
        self._net, self._device = functools.partial(_load, path, device), device

    def compress(self, image: np.ndarray) -> bytes:
        import torch
        from utils.alignment import Alignment

        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).to(self._device)
        padded = Alignment(divisor=_STRIDE, mode="pad", padding_mode="constant").align(x)
        with torch.no_grad():
            (y,), (z,) = self._net().compress(padded)["strings"]
        return _HEADER.pack(*image.shape[:2], len(y), len(z)) + y + z

    def decompress(self, data: bytes) -> np.ndarray:
        import torch

        net = self._net()
        try:
            height, width, y_bytes, z_bytes = _HEADER.unpack_from(data)
            if min(height, width, y_bytes, z_bytes) == 0 or len(data) != _HEADER.size + y_bytes + z_bytes:
                raise ValueError("sizes do not fit")
            y, z = data[_HEADER.size :][:y_bytes], data[_HEADER.size + y_bytes :]
            shape = [-(-side // _STRIDE) * _STRIDE // 64 for side in (height, width)]
            with torch.no_grad():
                scales, means = net.h_s(net.entropy_bottleneck.decompress([z], shape)).chunk(2, 1)
                indexes = net.gaussian_conditional.build_indexes(scales)
                x_hat, _ = net.g_s(net.gaussian_conditional.decompress([y], indexes, means=means))
        except Exception as error:  # Whatever the coder raises, the stream is at fault.
            raise BitstreamError(f"adapt-icmh: {len(data)} bytes are not a whole stream: {error}") from error
        return x_hat[0, :, :height, :width].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()

    def rate_breakdown(self, data: bytes) -> dict:
        _, _, y_bytes, z_bytes = _HEADER.unpack_from(data)
        return {"header": 8 * _HEADER.size, "y": 8 * y_bytes, "z": 8 * z_bytes}


@functools.lru_cache(maxsize=8)
def _load(path: Path, device: str):
    """The authors' network with its tables. Sums must not depend on how many threads the caller has, or streams break."""
    import torch
    from models.tic_sfma import TIC_SFMA

    torch.set_num_threads(1)
    state = torch.load(path, map_location=device)["state_dict"]
    net = TIC_SFMA(N=128, M=192).to(device).eval()
    net.load_state_dict({key[7:] if key.startswith("module.") else key: value for key, value in state.items()})
    net.update(force=True)
    return net
