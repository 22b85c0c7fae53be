"""MS-ILLM (Muckley et al., ICML 2023) and the other image codecs of the authors' zoo, by the authors' code.

Repository: facebookresearch/NeuralCompression, read at commit 3f122808 of September 2024. Its zoo holds `msillm` (targets of
0.035, 0.07, 0.14, 0.3, 0.45 and 0.9 bits per pixel, and 0.00218 and 0.00438 from the paper of PerCo, ICLR 2024) and `noganms`
(the same networks before the GAN stage, 0.035 to 0.9). The zoo's VQ-VAE only makes labels for a discriminator and is no codec.

Environment, as tried (Python 3.10.13, the authors' pins):

    uv venv -p 3.10 envs/ms_illm && uv pip install --python envs/ms_illm/bin/python torch==2.0.1 torchvision==0.15.2 \
        compressai==1.2.4 numpy==1.25.2 scipy==1.11.1 fvcore==0.1.5.post20221221 lpips==0.1.4 torchmetrics==1.1.0 \
        torch-fidelity==0.3.0 DISTS-pytorch==0.1 "setuptools<70"

Weights: a point is a target rate, and `weights` its checkpoint, "weights/msillm_target_{point}bpp.ckpt" or "noganms_target_...";
the addresses stand in neuralcompression/zoo (0.7 GB each). Licence: code MIT, weights CC BY-NC 4.0.

The stream is the pickled output of the authors' `compress`, because that is what their script counts. The pickle spends 139 bytes
beside the two strings in it, as much as the payload at the lowest rate; `framing: compact` writes height, width and the length of
the hyperprior's string (6 bytes) and the two strings instead.

Verified by tests/adapters/verify.py: streams and pixels equal to the authors' `compress` and `decompress` with random weights of
their classes, encoder and decoder in two processes, and the same through `icmbench run`; by hand, both framings. Not verified:
the released weights, a GPU, and the paper's rates. Reflection padding needs images of more than 32 pixels; a shorter side is
first extended to 64 by its last row or column.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
from pathlib import Path

import numpy as np


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class MsIllm:
    """MS-ILLM and its relatives without GAN, by the authors' code."""

    name = "ms-illm"
    default_points = (0.035, 0.07, 0.14, 0.3, 0.45, 0.9)

    def __init__(self, point, weights: Path, framing: str = "pickle", device: str = "cpu"):
        if framing not in ("pickle", "compact"):
            raise ValueError(f"framing: pickle or compact, not {framing!r}")
        self.point = {"label": f"target={point}", "order": float(point), "parameters": {"target_bpp": float(point)}}
        self.device, self._weights, self._compact = device, weights, framing == "compact"

    def compress(self, image):
        import torch

        height, width = image.shape[:2]
        extended = np.pad(image, [(0, 64 - side if side <= 32 else 0) for side in (height, width)] + [(0, 0)], "edge")
        pixels = torch.from_numpy(extended).permute(2, 0, 1)[None].to(self.device) / 255
        with torch.no_grad():
            output = _load(self._weights, self.device).compress(pixels, force_cpu=False)._replace(image_size=(height, width))
        if not self._compact:
            return pickle.dumps(output)
        (latent,), (hyper,) = output.latent_strings, output.hyper_latent_strings
        return struct.pack("<HHH", height, width, len(hyper)) + hyper + latent

    def decompress(self, data):
        import torch

        with torch.no_grad():
            pixels = _load(self._weights, self.device).decompress(self._parts(data), force_cpu=False)[0].clamp(0, 1)
        return (pixels * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    def _parts(self, data):
        """The authors' named tuple. Nothing else is ever unpickled, since a pickle can name any code to run."""
        from neuralcompression import HyperpriorCompressedOutput

        try:
            if self._compact:
                height, width, length = struct.unpack_from("<HHH", data)
                output = HyperpriorCompressedOutput([data[6 + length :]], [data[6 : 6 + length]], (height, width), ())
            else:
                output = _Unpickler(io.BytesIO(data)).load()
                if pickle.dumps(output) != data:
                    raise ValueError("bytes follow its end")
            padded = tuple(-(-side // 64) * 64 for side in output.image_size)
            if min(map(len, (*output.latent_strings, *output.hyper_latent_strings))) < 4 or min(padded) < 1:
                raise ValueError("its parts do not fit together")
        except Exception as error:  # Bad bytes make a pickle raise almost anything.
            raise BitstreamError(f"not a stream of MS-ILLM: {error}") from error
        return output._replace(padded_size=padded)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module.split(".")[0], name) != ("neuralcompression", "HyperpriorCompressedOutput"):
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}")
        return super().find_class(module, name)


@functools.lru_cache(maxsize=16)
def _load(weights, device):
    """The network that all models of the zoo share, on the devices that the authors' script chooses for compression."""
    import torch
    from neuralcompression.models import HiFiCAutoencoder

    model = HiFiCAutoencoder()
    model.load_state_dict(torch.load(weights, map_location="cpu"))
    model = model.to(device).eval()
    model.update()
    model.update_tensor_devices("compress")
    return model
