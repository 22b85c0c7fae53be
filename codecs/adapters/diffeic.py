"""DiffEIC (Li et al., IEEE TCSVT 2025): latent feature guidance and a Stable Diffusion prior, by the authors' code.

Repository: huai-chang/DiffEIC, read at commit 9c219157 of December 2025.

Environment, as tried (Python 3.8.18, the authors' pins; without xformers, which their code takes only where it is installed):

    uv venv -p 3.8 envs/diffeic && uv pip install --python envs/diffeic/bin/python torch==2.0.1 torchvision==0.15.2 \
        compressai==1.2.4 einops==0.8.0 kornia==0.7.0 numpy==1.23.1 omegaconf==2.3.0 open_clip_torch==2.22.0 \
        opencv_python_headless==4.8.1.78 Pillow==10.4.0 pyiqa==0.1.7 pytorch_lightning==1.5.0 torchmetrics==0.7.3 timm==0.9.7 \
        tqdm==4.66.1 transformers==4.41.0 lpips==0.1.4 thop==0.1.1.post2209072238 setuptools==59.5.0

Weights: `stable_diffusion` is v2-1_512-ema-pruned.ckpt of Stable Diffusion 2.1 base (CreativeML Open RAIL++-M), `guidance` the
LFGCM and control module, "weight/1_2_{point}/lc.ckpt", from the links in the README (no licence is named). A point is the last
number of that folder's name, the weight of the rate in training: the higher, the fewer bits. Licence of the code: Apache-2.0.

The stream is the authors' file, after height and width (4 bytes): their file tells the size in blocks of 64 pixels only. Decoding
calls their own `process` with its encoder switched off. The sampler draws noise. The authors seed once a run, so that their
pixels depend on the images before; here every stream is decoded from `seed`, 231 being theirs. The OpenCLIP weights, which the
checkpoint of Stable Diffusion overwrites, and pyiqa's metrics are not fetched.

Verified by tests/adapters/verify.py: streams and pixels equal to the authors' `process` with random weights of their classes in a
small configuration, encoder and decoder in two processes, and the same through `icmbench run`. Not verified: the released
weights, a GPU, and the paper's rates.
"""

from __future__ import annotations

import functools
import os
import struct
import tempfile
from pathlib import Path

import numpy as np


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class DiffEic:
    """DiffEIC by the authors' code, on Stable Diffusion 2.1 base."""

    name = "diffeic"
    default_points = (1, 2, 4, 8, 16)

    def __init__(
        self,
        point,
        stable_diffusion: Path,
        guidance: Path,
        config: Path | None = None,
        steps: int = 50,
        seed: int = 231,
        device="cpu",
    ):
        self.point = {"label": f"weight={point}", "order": -float(point), "parameters": {"rate_weight": point}}
        self.device, self.deterministic = device, device == "cpu"
        self._steps, self._seed = steps, seed
        self._load = functools.partial(_load, stable_diffusion, guidance, config, device)

    def compress(self, image):
        import torch

        script, model = self._load()
        padded = script.pad(image, scale=64)
        pixels = torch.tensor(padded / 255.0, dtype=torch.float32, device=self.device).permute(2, 0, 1)[None].contiguous()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "stream")
            model.apply_condition_compress(pixels, str(path), *padded.shape[:2])
            return struct.pack("<HH", *image.shape[:2]) + path.read_bytes()

    def decompress(self, data):
        height, width = _size(data)
        script, model = self._load()
        blank = np.zeros((-(-height // 64) * 64, -(-width // 64) * 64, 3), np.uint8)  # Only its shape counts.
        script.pl.seed_everything(self._seed)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "stream")
            path.write_bytes(data[4:])
            model.apply_condition_compress = lambda *_: 0.0
            try:
                images, _ = script.process(model, [blank], "ddpm", self._steps, str(path))
            finally:
                del model.apply_condition_compress
        return np.ascontiguousarray(images[0][:height, :width])


def _size(data):
    """Height and width of a stream whose parts fit together."""
    try:
        height, width, rows, columns, count, first = struct.unpack_from("<HH", data) + struct.unpack_from(">4I", data, 4)
        second = struct.unpack_from(">I", data, 20 + first)[0]
    except struct.error as error:
        raise BitstreamError(f"not a stream of DiffEIC: {error}") from error
    expected = (-(-height // 64), -(-width // 64), 2, 24 + first + second)
    if (rows, columns, count, len(data)) != expected or min(height, width) < 1 or min(first, second) < 4:
        raise BitstreamError("not a stream of DiffEIC: its parts do not fit together")
    return height, width


@functools.lru_cache(maxsize=2)
def _load(stable_diffusion, guidance, config, device):
    """The authors' script and their model, loaded as its `main` does."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    import inference_partition as script  # It chooses GPU 0 when it is imported; the choice is not its own here.

    os.environ.pop("CUDA_VISIBLE_DEVICES")
    os.environ.update({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    if device == "cpu":
        script.disable_xformers()
    settings = script.OmegaConf.load(config or Path(script.__file__).with_name("configs") / "model" / "diffeic.yaml")
    settings.params.update(sync_path=str(stable_diffusion), calculate_metrics={})
    settings.params.cond_stage_config.params.version = None
    model = script.instantiate_from_config(settings)
    weights = torch.load(stable_diffusion, map_location="cpu")["state_dict"]
    weights.update(torch.load(guidance, map_location="cpu")["state_dict"])
    unused = ("logit_scale", "text_projection")
    missing = [name for name, _ in model.named_parameters() if name not in weights and not name.endswith(unused)]
    if missing:
        raise ValueError(f"{guidance}: no weights for {missing[0]} and {len(missing) - 1} more")
    script.load_state_dict(model, weights, strict=False)
    model.preprocess_model.update(force=True)
    model.freeze()
    return script, model.to(device)
