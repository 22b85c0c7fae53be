"""PerCo (Careil et al., ICLR 2024) by its public re-implementation on Stable Diffusion 2.1, PerCo (SD).

Repository: Nikolai10/PerCo (Koerber et al., NeurIPS 2024 workshop), read at commit da3be394 of January 2025.

Environment, as tried (Python 3.10.13; the authors name torch 2.3.0 too; torchac is compiled at its first import and needs g++):

    uv venv -p 3.10 envs/perco && uv pip install --python envs/perco/bin/python torch==2.1.2 torchvision==0.16.2 \
        diffusers==0.27.0 transformers==4.37.2 accelerate==0.32.1 huggingface_hub==0.23.4 vector-quantize-pytorch==1.15.3 \
        torchac==0.9.3 ninja==1.11.1.1 compressai==1.2.6 torchmetrics==1.4.0.post0 lpips==0.1.4 clean-fid==0.1.35 \
        absl-py==1.4.0 numpy==1.25.2 Pillow==9.4.0 "setuptools<70"

The environment's `path` is the folder `src` of the checkout. Weights: a point is a target rate of the authors' config.py, and
`weights` the folder of its pipeline, "weights/perco_{point}" (released are 0.0019, 0.0313 and 0.125). `captioner` is the folder
or hub name of BLIP-2. Licence of the code: Apache-2.0; of the weights: none is named; they derive from Stable Diffusion 2.1
(CreativeML Open RAIL++-M). BLIP-2: MIT.

The stream is what the authors' evaluation counts, the compressed caption and the compressed codes, after height, width and the
length of the caption (6 bytes). Their command-line tool pickles the two, which their rates leave out. It also resizes every image
to 512 by 512 pixels; here an image keeps its size and is extended to multiples of 64 by its last row and column, as their
functions allow. The encoder samples the VAE's latents; `seed` is set before, so that an image always gives the same bytes.
Decoding starts from the authors' random_seed, as their `decompress` does.

Verified by tests/adapters/verify.py: both streams and the pixels equal to the authors' functions with random weights of their
classes in a small configuration, BLIP-2 included, encoder and decoder in two processes, and the same through `icmbench run`. Not
verified: the released weights, a GPU, and the paper's rates.
"""

from __future__ import annotations

import functools
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class PerCo:
    """PerCo (SD): a caption and vector-quantised local features, decoded by Stable Diffusion 2.1."""

    name = "perco-sd"
    default_points = (0.0019, 0.0313, 0.125)

    def __init__(
        self,
        point,
        weights: Path,
        captioner: str = "Salesforce/blip2-opt-2.7b-coco",
        steps: int = 20,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.point = {"label": f"target={point}", "order": float(point), "parameters": {"target_bpp": float(point)}}
        self.device, self.deterministic = device, device == "cpu"
        self._script, self._seed, self._steps = _script(), seed, steps
        self._pipe = functools.partial(_pipe, weights, device)
        self._captioner = functools.partial(_captioner, captioner, device)

    def compress(self, image):
        import torch

        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % 64), (0, -width % 64), (0, 0)), "edge")
        pixels = torch.from_numpy(padded).permute(2, 0, 1).float() / 255
        pipe, (processor, captioner) = self._pipe(), self._captioner()  # Before the seed is set: loading draws random numbers.
        with torch.no_grad():
            inputs = processor(images=pixels * 255, return_tensors="pt").to(self.device)
            tokens = captioner.generate(**inputs, max_length=self._script.cfg_perco.max_number_tokens)
            text = self._script.compress_text(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
            torch.manual_seed(self._seed)
            latents = pipe.vae.encode((pixels * 2.0 - 1.0)[None].to(self.device)).latent_dist.sample()
            codes = pipe.hyper_enc(latents * pipe.vae.config.scaling_factor).indices
            self._script.cfg_perco.target_rate = self.point["order"]  # The authors' functions read it there.
            return struct.pack("<HHH", height, width, len(text)) + text + self._script.compress_hyper_latent(codes)

    def decompress(self, data):
        import torch

        (height, width), text, codes = self._parts(data)
        options = {"num_inference_steps": self._steps, "guidance_scale": self._script.cfg_perco.guidance_scale}
        generator = torch.Generator(device=self.device).manual_seed(self._script.cfg_perco.random_seed)
        with torch.no_grad():
            features = self._pipe().hyper_enc.quantizer.get_output_from_indices(codes.to(self.device).long()).permute(0, 3, 1, 2)
            picture = self._pipe()(text, features, *_padded(height, width), generator=generator, **options).images[0]
        return np.ascontiguousarray(np.asarray(picture)[:height, :width])

    def rate_breakdown(self, data):
        length = struct.unpack_from("<H", data, 4)[0]
        return {"header": 48, "caption": 8 * length, "codes": 8 * (len(data) - 6 - length)}

    def _parts(self, data):
        """Size, caption and codes of a stream. Any bytes can be decoded to codes; only coding these again shows damage."""
        try:
            height, width, length = struct.unpack_from("<HHH", data)
            text, payload = self._script.decompress_text(data[6 : 6 + length]), data[6 + length :]
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise BitstreamError(f"not a stream of PerCo: {error}") from error
        self._script.cfg_perco.target_rate = self.point["order"]
        if 0 < height * width <= 2 * 64 * 64 * len(payload):  # Twice what the lowest rate can code, a byte on 64 x 64 pixels.
            codes = self._script.decompress_hyper_latent(payload, _padded(height, width))
            if self._script.compress_hyper_latent(codes) == payload:
                return (height, width), text, codes
        raise BitstreamError("not a stream of PerCo: its parts do not fit together")


def _padded(height, width):
    """Height and width, extended to whole blocks of the coarsest codes."""
    return height + -height % 64, width + -width % 64


def _script():
    """The authors' module. torchac, which it imports, starts ninja by name, so the environment's programs must be found."""
    if shutil.which("ninja") is None:
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    import compression_utils

    return compression_utils


@functools.lru_cache(maxsize=3)
def _pipe(folder, device):
    from pipeline_sd_perco import StableDiffusionPipelinePerco

    pipe = StableDiffusionPipelinePerco.from_pretrained(folder, safety_checker=None, requires_safety_checker=False).to(device)
    pipe.hyper_enc.quantizer.eval()
    return pipe


@functools.lru_cache(maxsize=1)
def _captioner(source, device):
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    return Blip2Processor.from_pretrained(source), Blip2ForConditionalGeneration.from_pretrained(source).to(device)
