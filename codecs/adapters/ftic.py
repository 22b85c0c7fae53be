"""FTIC (Li et al., ICLR 2024, "Frequency-Aware Transformer for Learned Image Compression").

Repository: qingshi9974/ICLR2024-FTIC, read at e0d488626d47. The calls are those of `eval.py --real`.

Environment that was tried (Python 3.8, as the authors ask; their torch 1.12.1 and torchvision 0.16.1 do not fit together):
    uv venv -p 3.8 envs/ftic && uv pip install -p envs/ftic/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.24.4 \\
        compressai==1.2.4 range-coder==1.1 einops==0.6.1 timm==0.9.12 pytorch-msssim==1.0.0

Weights: ckpt_mse_0018.pth to ckpt_mse_0483.pth and ckpt_msssim_0240.pth to ckpt_msssim_6050.pth, linked from the authors' README.
They were not reachable here.
Licence: the repository states none, neither for the code nor for the weights.

Verified with random weights of the authors' full network, on the CPU: the stream holds z and y as `eval.py --real` counts them, and
decoding the bytes in a fresh process, also through icmbench, gives the pixels of a direct call. Not verified: the authors' weights,
a GPU.

The authors' default, without `--real`, estimates the rate and writes nothing. Their encoder computes all slices of y in one pass,
their decoder one after the other; where sums differ by a bit between the two, as they may on a GPU, a stream cannot be decoded.
Their coder is a Python loop over every symbol: about a minute and a half for 256x256 pixels on one core.
"""

from __future__ import annotations

import functools
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = struct.Struct("<HHHII")  # height, width, largest symbol, bytes of z and of y; eval.py keeps these 14 bytes in memory
_STRIDE = 256  # pixels; eval.py pads to multiples of it
_Z_STRIDE = 64  # pixels of the padded image for each position of z


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class Ftic:
    """FTIC: a learned codec with frequency-aware transformers.

    Args:
        point: The digits in the name of the authors' checkpoint, as text, because YAML reads 0250 as an octal number: "0018" to
            "0483" for lambda 0.0018 to 0.0483 (MSE), "0240" to "6050" for 2.40 to 60.50 (MS-SSIM).
        weights: The authors' checkpoint, such as ckpt_mse_{point}.pth.
        device: Where the network runs, as PyTorch names it.
    """

    name = "ftic"
    default_points = ("0018", "0035", "0067", "0130", "0250", "0483")

    def __init__(self, point: str, weights: Path, device: str = "cpu") -> None:
        self.point = {"label": f"checkpoint={point}", "order": float(point), "parameters": {"checkpoint": point}}
        self.fingerprint = {"stream": 1}
        self.device, self._weights = device, Path(weights)

    def compress(self, image: np.ndarray) -> bytes:
        import torch
        from eval import pad

        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].contiguous().float().div(255).to(self.device)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            coded = _load(self._weights, self.device).compress(pad(x, _STRIDE)[0], str(Path(folder, "y.bin")))
            z, y = coded["z_strings"][0], Path(folder, "y.bin").read_bytes()
        return _HEADER.pack(*image.shape[:2], coded["minmax"], len(z), len(y)) + z + y

    def decompress(self, data: bytes) -> np.ndarray:
        import torch
        from eval import crop, pad

        try:
            height, width, largest, z_bytes, y_bytes = _HEADER.unpack_from(data)
            if len(data) != _HEADER.size + z_bytes + y_bytes or min(height, width, largest, z_bytes, y_bytes) == 0:
                raise ValueError("its parts do not have the lengths that it states")
            z, y = data[_HEADER.size :][:z_bytes], data[_HEADER.size + z_bytes :]
            padded, padding = pad(torch.empty(1, 1, height, width, device="meta"), _STRIDE)
            shape = [side // _Z_STRIDE for side in padded.shape[2:]]
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                Path(folder, "y.bin").write_bytes(y)
                decoded = _load(self._weights, self.device).decompress([z], largest, shape, str(Path(folder, "y.bin")))
        except (ValueError, IndexError, struct.error) as error:
            raise BitstreamError(f"ftic: {len(data)} bytes are not a whole stream: {error}") from error
        return crop(decoded["x_hat"], padding)[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        *_, z_bytes, y_bytes = _HEADER.unpack_from(data)
        return {"header": 8 * _HEADER.size, "z": 8 * z_bytes, "y": 8 * y_bytes}


@functools.lru_cache(maxsize=None)
def _load(path: Path, device: str) -> Any:
    """The authors' network with its tables. Sums must not depend on how many threads the caller has, or streams break."""
    import torch
    from models import FrequencyAwareTransFormer

    torch.set_num_threads(1)
    net = FrequencyAwareTransFormer().to(device).eval()
    state = torch.load(str(path), map_location=device)
    net.load_state_dict({key.replace("module.", ""): value for key, value in state.items()}, strict=True)
    net.update()
    return net
