"""Text + Sketch (Lei et al., ICML 2023 workshop on neural compression): a caption and a sketch, drawn by Stable Diffusion.

Repository: leieric/Text-Sketch, read at 0666f7b56e23. The steps are those of `eval_PICS.py`: prompt inversion, a compressed sketch
and the choice among candidates. `eval_PIC.py`, which sends no sketch, is left out.

Environment that was tried (the authors pin nothing):
    uv venv -p 3.10 envs/text_sketch && uv pip install -p envs/text_sketch/bin/python torch==2.1.2 torchvision==0.16.2 \\
        numpy==1.26.4 compressai==1.2.6 diffusers==0.21.4 transformers==4.33.3 huggingface_hub==0.17.3 accelerate==0.23.0 \\
        sentence-transformers==2.2.2 pytorch-lightning==2.1.4 opencv-python-headless==4.9.0.80 einops==0.8.0 ftfy==6.1.3 \\
        pyyaml==6.0.2 timm==0.9.16 setuptools==69.5.1

Weights, none reachable here: the authors' sketch codecs (linked from their README), network-bsds500.pth of ControlNet's annotators
(HED), stabilityai/stable-diffusion-2-1-base, thibaud/controlnet-sd21-hed-diffusers and OpenCLIP's ViT-H-14 laion2b_s32b_b79k.
Licence: the repository states none. Its folders annotator and prompt_inversion come from ControlNet (Apache-2.0) and
hard-prompts-made-easy (MIT); Stable Diffusion is under CreativeML Open RAIL++-M.

The authors code a picture that is resized to a short side of 512, and measure it at that size; here the drawing is resized back.
They estimate the rate: bits of the strings as numbers, 33 bytes too many for the caption (the size of a Python object), and log2(N)
bits for the choice. The stream holds the same strings and zlib's caption, behind 11 bytes for sizes and the choice.

The authors' functions name the device "cuda" themselves; for another device the adapter replaces it while they run.

Verified with small random networks in the authors' classes, on the CPU: strings, caption and pixels are those of the authors'
`encode_rcc` and `recon_rcc`, and the pixels come from the bytes alone in a fresh process. Not verified: the weights, a GPU and half
precision, which is what the authors use there.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import zlib
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np

_HEADER = struct.Struct("<HHBIH")  # height, width, number of the chosen candidate, bytes of y and of z


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class TextSketch:
    """Text + Sketch (PICS).

    Args:
        point: Lambda of the sketch codec: 0.5 or 1.0, the higher rate.
        sketch: The authors' weights of the sketch codec. "{point}" in the path stands for the point.
        edges: network-bsds500.pth of HED, by default in annotator/ckpts of the checkout.
        stable_diffusion: Folder or hub name of Stable Diffusion in diffusers' layout.
        controlnet: Folder or hub name of its ControlNet.
        clip: The authors' settings of prompt inversion, by default prompt_inversion/sample_config.json of the checkout.
        candidates: How many pictures are drawn, of which the stream names the best.
        resolution: Short side of the picture that is coded, pixels.
        seed: Seed of the prompt inversion.
        device: Where the networks run, as PyTorch names it. The sketch codec always runs on the CPU.
    """

    name = "text-sketch"
    default_points = (0.5, 1.0)

    def __init__(
        self,
        point: float,
        sketch: Path,
        edges: Path | None = None,
        stable_diffusion: str = "stabilityai/stable-diffusion-2-1-base",
        controlnet: str = "thibaud/controlnet-sd21-hed-diffusers",
        clip: Path | None = None,
        candidates: int = 4,
        resolution: int = 512,
        seed: int = 0,
        device: str = "cuda:0",
    ) -> None:
        import annotator.hed
        import eval_PICS

        self._script, self._device, self.deterministic = eval_PICS, device, device == "cpu"
        if edges:
            annotator.hed.annotator_ckpts_path = str(edges.parent)
        clip = clip or Path(eval_PICS.__file__).parent / "prompt_inversion" / "sample_config.json"
        self._sketch = functools.partial(_sketch_codec, Path(str(sketch).replace("{point}", str(point))))
        self._clip = functools.partial(_clip_network, clip, device)
        self._artist = functools.partial(_pipeline, stable_diffusion, controlnet, device)
        self._candidates, self._resolution, self._seed = candidates, resolution, seed

    def compress(self, image: np.ndarray) -> bytes:
        import torch

        script, (clip, preprocess, settings) = self._script, self._clip()
        script.args_clip = settings
        script.loss_func = lambda x, drawn: 1 - script.prompt_inv.clip_cosine(x, drawn, clip, preprocess, self._device)
        small = script.resize_image(np.ascontiguousarray(image), self._resolution)
        networks = (self._artist(), clip, preprocess, self._sketch())
        torch.manual_seed(self._seed)
        with _cuda_is(self._device, script.prompt_inv):
            caption, _, sketch, choice = script.encode_rcc(*networks, small, self._candidates)
        (y,), (z,) = sketch["strings"]
        return _HEADER.pack(*image.shape[:2], int(choice), len(y), len(z)) + y + z + zlib.compress(caption.encode())

    def decompress(self, data: bytes) -> np.ndarray:
        import cv2

        script, networks, caption = self._script, (self._artist(), self._sketch()), zlib.decompressobj()
        try:
            height, width, choice, y_bytes, z_bytes = _HEADER.unpack_from(data)
            y, z = data[_HEADER.size :][:y_bytes], data[_HEADER.size + y_bytes :][:z_bytes]
            text = caption.decompress(data[_HEADER.size + y_bytes + z_bytes :]).decode()
            if not caption.eof or caption.unused_data or choice >= self._candidates or min(height, width, y_bytes, z_bytes) == 0:
                raise ValueError("its parts do not fit")
            script.im = script.resize_image(np.zeros((height, width, 3), np.uint8), self._resolution)  # Only its size is read.
            sketch = {"strings": [[y], [z]], "shape": [side // 64 for side in script.im.shape[:2]]}
            with _cuda_is(self._device, script.prompt_inv):
                drawing = np.asarray(script.recon_rcc(*networks, text, sketch, choice, self._candidates)[0])
        except Exception as error:  # Whatever the coder raises, the stream is at fault.
            raise BitstreamError(f"text-sketch: {len(data)} bytes are not a whole stream: {error}") from error
        kind = cv2.INTER_AREA if height < len(drawing) else cv2.INTER_LANCZOS4
        return drawing if drawing.shape[:2] == (height, width) else cv2.resize(drawing, (width, height), interpolation=kind)

    def rate_breakdown(self, data: bytes) -> dict:
        *_, y_bytes, z_bytes = _HEADER.unpack_from(data)
        caption = len(data) - _HEADER.size - y_bytes - z_bytes
        return {"header": 8 * _HEADER.size, "sketch": 8 * (y_bytes + z_bytes), "caption": 8 * caption}


@contextlib.contextmanager
def _cuda_is(device: str, inversion):
    """Let the "cuda" in the authors' functions mean another device."""
    import torch

    generator, invert = torch.Generator, inversion.optimize_prompt
    with contextlib.ExitStack() as stack:
        if device not in ("cuda", "cuda:0"):
            for owner, name, function in (
                (torch, "Generator", lambda **_: generator(device)),
                (torch.nn.Module, "cuda", lambda self: self.to(device)),
                (torch.Tensor, "cuda", lambda self: self.to(device)),
                (
                    inversion,
                    "optimize_prompt",
                    lambda clip, process, args, _, **images: invert(clip, process, args, device, **images),
                ),
            ):
                stack.enter_context(mock.patch.object(owner, name, function))
        yield


@functools.lru_cache(maxsize=8)
def _sketch_codec(path: Path):
    import torch
    from models_compressai import get_models

    torch.set_num_threads(1)  # Sums must not depend on how many threads the caller has, or streams break.
    network = get_models(Namespace(model_name="Cheng2020AttentionFull", orig_channels=1))
    network.load_state_dict(torch.load(path, map_location="cpu"))
    network.eval().update()
    return network


@functools.lru_cache(maxsize=1)
def _clip_network(path: Path, device: str) -> tuple:
    from prompt_inversion import open_clip
    from prompt_inversion.optim_utils import read_json

    settings = Namespace(**read_json(path))
    network, _, preprocess = open_clip.create_model_and_transforms(settings.clip_model, settings.clip_pretrain, device=device)
    return network, preprocess, settings


@functools.lru_cache(maxsize=1)
def _pipeline(stable_diffusion: str, controlnet: str, device: str):
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UniPCMultistepScheduler

    number = {"torch_dtype": torch.float32 if device == "cpu" else torch.float16}
    control = ControlNetModel.from_pretrained(controlnet, **number)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(stable_diffusion, controlnet=control, **number)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline.to(device)
