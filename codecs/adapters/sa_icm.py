"""SA-ICM (Shindo et al., ICIP 2024, "Image Coding for Machines with Edge Information Learning Using Segment Anything").

Repository: final-0/SA-ICM, read at 95c598b04d3a. The classes are those that `coding_m.py --real` uses.

Environment that was tried (Python 3.10, the version of the authors' compiled files; they pin no library):
    uv venv -p 3.10 envs/sa_icm && uv pip install -p envs/sa_icm/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.26.4 \\
        compressai==1.2.6 timm==0.9.16 einops==0.8.0 opencv-python-headless==4.9.0.80 click==8.1.7

Weights: icm_78.pth.tar and icm_93.pth.tar (alpha 0.78 and 0.93, lambda 0.05), linked from the authors' README. They were not
reachable here.
Licence: the repository states none, neither for the code nor for the weights. Its model says that it is taken from
jmliu206/LIC_TCM (Apache-2.0).

Verified with random weights of the authors' full network, on the CPU: the stream holds the strings that `coding_m.py --real`
counts, and decoding the bytes in a fresh process gives the pixels that it saves. Not verified: the authors' weights, a GPU.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<HHII")  # height, width, bytes of y and of z: 12 bytes that the authors' script does not count
_Z_STRIDE = 64  # pixels of the padded image for each position of z


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class SaIcm:
    """SA-ICM: LIC-TCM trained on the parts of pictures that Segment Anything finds edges in.

    Args:
        point: 78 or 93, the number in the name of the authors' weight file.
        weights: The authors' checkpoint. "{point}" in the path stands for the point.
        device: Where the network runs, as PyTorch names it.
    """

    name = "sa-icm"
    default_points = (78, 93)

    def __init__(self, point: int, weights: Path, device: str = "cpu") -> None:
        path = Path(str(weights).replace("{point}", str(point)))
        self.point = {"label": f"alpha=0.{point}", "order": point / 100, "parameters": {"alpha": point / 100}}
        self._path, self._device = path, device

    def compress(self, image: np.ndarray) -> bytes:
        import torch
        from utils import pad

        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).to(self._device)
        with torch.no_grad():
            (y,), (z,) = _load(self._path, self._device).compress(pad(x, _stride(*image.shape[:2]))[0])["strings"]
        return _HEADER.pack(*image.shape[:2], len(y), len(z)) + y + z

    def decompress(self, data: bytes) -> np.ndarray:
        import torch
        from utils import crop, pad

        net = _load(self._path, self._device)
        try:
            height, width, y_bytes, z_bytes = _HEADER.unpack_from(data)
            if min(height, width, y_bytes, z_bytes) == 0 or len(data) != _HEADER.size + y_bytes + z_bytes:
                raise ValueError("sizes do not fit")
            padded, padding = pad(torch.empty(1, 1, height, width, device="meta"), _stride(height, width))
            y, z = data[_HEADER.size :][:y_bytes], data[_HEADER.size + y_bytes :]
            with torch.no_grad():
                shape = [side // _Z_STRIDE for side in padded.shape[2:]]
                x_hat = crop(net.decompress([[y], [z]], shape)["x_hat"], padding)[0]
        except Exception as error:  # Whatever the coder raises, the stream is at fault.
            raise BitstreamError(f"sa-icm: {len(data)} bytes are not a whole stream: {error}") from error
        return (x_hat.cpu().numpy() * 255).transpose(1, 2, 0).astype(np.uint8)  # coding_m.py drops the fraction, too

    def rate_breakdown(self, data: bytes) -> dict:
        _, _, y_bytes, z_bytes = _HEADER.unpack_from(data)
        return {"header": 8 * _HEADER.size, "y": 8 * y_bytes, "z": 8 * z_bytes}


def _stride(height: int, width: int) -> int:
    """Pixels. The authors' script pads to multiples of 128; their attention fails on the 8 latents of a side of 128."""
    return 128 if min(height, width) > 128 else 256


@functools.lru_cache(maxsize=8)
def _load(path: Path, device: str):
    """The authors' network with its tables. Sums must not depend on how many threads the caller has, or streams break."""
    import torch
    from models import ICM

    torch.set_num_threads(1)
    state = torch.load(path, map_location=device)["state_dict"]
    net = ICM().to(device).eval()
    net.load_state_dict({key.replace("module.", ""): value for key, value in state.items()})
    net.update()
    return net
