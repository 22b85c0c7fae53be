"""StableCodec (Zhang et al., ICCV 2025, "Taming One-Step Diffusion for Extreme Image Compression").

Repository: LuizScarlet/StableCodec, read at e7994cf5e180. The calls are those of `src/compress.py`. The environment's `path:` names
two folders, CHECKOUT/src and CHECKOUT.

Environment that was tried (Python 3.10 and, where the authors pin them, their versions; xformers is not needed):
    uv venv -p 3.10 envs/stablecodec && uv pip install -p envs/stablecodec/bin/python torch==2.1.2 torchvision==0.16.2 \\
        numpy==1.26.4 compressai==1.2.6 diffusers==0.25.1 transformers==4.46.3 peft==0.13.2 accelerate==1.9.0 \\
        huggingface-hub==0.25.0 einops==0.8.1 tqdm==4.67.1

Weights: stablecodec_ft2.pkl to stablecodec_ft32.pkl and elic_official.pth, linked from the authors' README; stabilityai/sd-turbo
from Hugging Face. They were not reachable here.
Licence: MIT for the code; none is stated for its weights. SD-Turbo has the Stability AI Community licence.

The stream is the file of `src/compress.py` after 4 bytes for the image's height and width, which that script keeps in memory.
Its padding by reflection fails where an image is smaller than the padding; the reflection is repeated here.
Its option `--color_fix` is not offered: the decoder would need statistics of the original that its files do not hold. Its decoder
draws noise with a deviation of 1e-10, without a seed unless told one; one of 40 tries changed 11 bytes of a picture. Here each
picture's decoding starts from seed 0.
Verified on the CPU, with random weights of the authors' full latent codec and of ELIC and with small networks of the Stable
Diffusion classes: file bytes and pixels of the authors' script, decoded in a fresh process and through icmbench. Not verified: the
authors' weights, a GPU, pictures so large that the authors' code cuts them into tiles.
"""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

_SIZE = struct.Struct("<HH")  # height, width
_STRIDE = 256  # pixels; the authors' script pads to multiples of it, and it is the distance of the hyperlatents


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class StableCodec:
    """StableCodec: a learned codec at 0.005 to 0.035 bpp whose decoder is SD-Turbo in one step.

    Args:
        point: The number in the authors' file name, 2 for most bits to 32 for fewest.
        weights: The authors' checkpoint, such as stablecodec_ft{point}.pkl.
        sd_turbo: The folder of SD-Turbo in the layout of diffusers.
        elic: The authors' elic_official.pth.
        device: Where the networks run, as PyTorch names it.
    """

    name = "stablecodec"
    default_points = (2, 3, 4, 6, 8, 12, 16, 24, 32)

    def __init__(self, point: int, weights: Path, sd_turbo: Path, elic: Path, device: str = "cpu") -> None:
        self.point = {"label": f"lambda={point}", "order": -float(point), "parameters": {"lambda": point}}
        self.fingerprint = {"stream": 1}
        self.device, self._files = device, (Path(weights), Path(sd_turbo), Path(elic))

    def compress(self, image: np.ndarray) -> bytes:
        import torch

        net, mode = _load(*self._files, self.device), _redirection(self.device)
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % _STRIDE), (0, -width % _STRIDE), (0, 0)), "reflect")
        x = (torch.from_numpy(padded).permute(2, 0, 1)[None].contiguous().float().div(255) - 0.5) / 0.5
        from compress import compress_one_image

        with tempfile.TemporaryDirectory() as folder, mode:
            compress_one_image(net, folder, height, width, "image", x.to(self.device))
            return _SIZE.pack(height, width) + Path(folder, "image").read_bytes()

    def decompress(self, data: bytes) -> np.ndarray:
        import torch

        net, mode = _load(*self._files, self.device), _redirection(self.device)
        from compress import decompress_one_image, read_body

        try:
            height, width = _SIZE.unpack_from(data)
            body = io.BytesIO(data[_SIZE.size :])
            strings, shape = read_body(body)
            whole = len(strings) == 2 and not body.read(1)
            if not whole or min(height, width) == 0 or shape != (-(-height // _STRIDE), -(-width // _STRIDE)):
                raise ValueError("its length or its sizes do not fit together")
        except (ValueError, struct.error, MemoryError, OverflowError) as error:
            raise BitstreamError(f"stablecodec: {len(data)} bytes are not a whole stream: {error}") from error
        torch.manual_seed(0)  # for the scheduler's noise of 1e-10, which rounding does not always swallow
        with tempfile.TemporaryDirectory() as folder, mode:
            Path(folder, "image").write_bytes(data[_SIZE.size :])
            x_hat = decompress_one_image(net, folder, height, width, "image", [1])[0].clamp(0, 1)
        return x_hat.mul(255).byte().permute(1, 2, 0).numpy()  # ToPILImage, which the authors call, drops the fraction, too


def _redirection(device: str) -> Any:
    """A context in which what the authors' code puts on "cuda", which is written into it, goes to the device."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Redirection(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.cuda:
                function, args, kwargs = torch.Tensor.to, (args[0], device), {}
            args = [device if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value for value in args]
            kwargs = {key: device if key == "device" and str(value) == "cuda" else value for key, value in (kwargs or {}).items()}
            return function(*args, **kwargs)

    return Redirection()


@functools.lru_cache(maxsize=2)
def _load(weights: Path, sd_turbo: Path, elic: Path, device: str) -> Any:
    """The authors' network with its tables. Sums must not depend on how many threads the caller has, or streams break."""
    import torch
    from my_utils.testing_utils import parse_args_testing
    from StableCodec import StableCodec as Network

    torch.set_num_threads(1)
    files = {"sd_path": sd_turbo, "elic_path": elic, "codec_path": weights, "img_path": "", "rec_path": "", "bin_path": ""}
    args = parse_args_testing([f"--{key}={value}" for key, value in files.items()])
    with _redirection(device), mock.patch("torch.load", functools.partial(torch.load, map_location=device)):
        net = Network(sd_path=str(sd_turbo), args=args)
        net.cuda().eval()
        net.codec.update(force=True)
    return net
