"""TransTIC (Chen et al., ICCV 2023): a transformer codec for human eyes, transferred to machine tasks by prompts.

Repository: NYCU-MAPL/TransTIC, read at 1132f62cbddc. It contains its own copy of CompressAI 1.2.0, which has to be built.

Environment that was tried (Python 3.8, the version of the authors' compiled files; needs a C++ compiler):
    uv venv -p 3.8 envs/transtic && uv pip install -p envs/transtic/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.24.4 \\
        timm==0.9.16 click==8.1.7 pyyaml==6.0.2 -e checkouts/TransTIC
The experiment's `path` holds two folders of the checkout: TransTIC and TransTIC/examples.

Weights: the releases of the repository: cls_1 to cls_4 (classification), det_1 to det_4 (detection), seg_1 to seg_4
(segmentation), all .pth.tar. They were not reachable here.
Licence: code Apache-2.0, its files of CompressAI BSD-3-Clause-Clear; none is stated for the weights.

The authors' scripts print the estimated rate of `forward`. This adapter writes the strings of their `compress`. Their
`decompress` fails in its last line, which clamps a tuple; the adapter takes the same steps without it.

Verified with random weights of the authors' full network, on the CPU: the strings are those of `compress`, and decoding the bytes
in a fresh process gives the pixels of `forward`, rounded. Not verified: the authors' weights, a GPU.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<HHII")  # height, width, bytes of y and of z: 12 bytes that the authors' code keeps in memory
_STRIDE = 256  # pixels; the authors' detection.py and segmentation.py stretch an image to multiples of it


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class TransTic:
    """TransTIC, with the prompts of one task.

    Args:
        point: 1 to 4, the number in the name of the authors' weight file.
        weights: The authors' checkpoint of the task, such as "cls_{point}.pth.tar". "{point}" stands for the point.
        config: The authors' configuration of the task, by default classification.yaml of the checkout.
        device: Where the network runs, as PyTorch names it.
    """

    name = "transtic"
    default_points = (1, 2, 3, 4)

    def __init__(self, point: int, weights: Path, config: Path | None = None, device: str = "cpu") -> None:
        import compressai

        path = Path(str(weights).replace("{point}", str(point)))
        config = config or Path(compressai.__file__).parents[1] / "config" / "classification.yaml"
        self._net = functools.partial(_load, path, config, point, device)
        self._device = device

    def compress(self, image: np.ndarray) -> bytes:
        import torch
        from utils.alignment import Alignment

        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().div(255).to(self._device)
        with torch.no_grad():
            (y,), (z,) = self._net().compress(Alignment(divisor=_STRIDE, mode="resize").align(x))["strings"]
        return _HEADER.pack(*image.shape[:2], len(y), len(z)) + y + z

    def decompress(self, data: bytes) -> np.ndarray:
        import torch
        from utils.alignment import Alignment

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
                x_hat = Alignment(divisor=_STRIDE, mode="resize").resume(x_hat, (1, 3, height, width)).clamp_(0, 1)
        except Exception as error:  # Whatever the coder raises, the stream is at fault.
            raise BitstreamError(f"transtic: {len(data)} bytes are not a whole stream: {error}") from error
        return x_hat[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()

    def rate_breakdown(self, data: bytes) -> dict:
        _, _, y_bytes, z_bytes = _HEADER.unpack_from(data)
        return {"header": 8 * _HEADER.size, "y": 8 * y_bytes, "z": 8 * z_bytes}


@functools.lru_cache(maxsize=8)
def _load(path: Path, config: Path, point: int, device: str):
    """The authors' network with its tables. Sums must not depend on how many threads the caller has, or streams break."""
    import argparse

    import torch
    import yaml
    from compressai.zoo import image_models

    torch.set_num_threads(1)
    options = argparse.Namespace(**yaml.safe_load(config.read_text(encoding="utf-8")))
    state = torch.load(path, map_location=device)["state_dict"]
    net = image_models[options.model](quality=point, prompt_config=options).to(device).eval()
    net.load_state_dict({key[7:] if key.startswith("module.") else key: value for key, value in state.items()})
    net.update(force=True)
    return net
