"""What all codecs of a latent compressor, a control module and a sampler share: pixels to stream and back, in batches.

    compress      pixels --pad--> z0 = backbone.encode --latent--> payload --> Container
    decompress    Container --latent--> hint --control, sampler--> z --backbone.decode--> pixels --crop-->

Coding is done image by image; of streams, those of one padded size and one way of decoding are sampled together, while the symbols
of the next ones are decoded on the CPU.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.base import Image
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion import colour, graphs, sampling
from icmbench.codecs.diffusion.backbone import DiffusionBackbone
from icmbench.codecs.diffusion.control import ControlModule
from icmbench.codecs.diffusion.latent import Lfgcm


@dataclass(frozen=True)
class Decoding:
    """How a stream becomes pixels. guidance: scale of classifier-free guidance, 1 for none.

    negative: the prompt that guidance leads away from. wavelet: correct colours by the decoded hint. tile, overlap: of latents, see
    tiles.Tiles. batch: images sampled together. compiled: have torch compile the networks.
    """

    sampler: sampling.Sampler
    guidance: float = 1.0
    negative: str = ""
    wavelet: bool = False
    tile: int = 96
    overlap: int = 32
    batch: int = 8
    compiled: bool = False


class Model:
    """One rate point: a latent compressor and a control module of its own, a backbone that other points share.

    The compressor runs in float32, the rest in the backbone's type; all on its device.
    """

    def __init__(self, backbone: DiffusionBackbone, latent: Lfgcm, control: ControlModule) -> None:
        if not latent.entropy_bottleneck.has_tables:
            latent.update()
        self.backbone = backbone
        self.latent = latent.to(backbone.device).float().eval().requires_grad_(False)
        control = control.to(backbone.device, backbone.dtype).eval().requires_grad_(False)
        self.control = nn.utils.convert_conv2d_weight_memory_format(control, torch.channels_last)

    @functools.cached_property
    def digest(self) -> int:
        """32 bits over all that decides symbols: the entropy networks' weights and tables."""
        check = 0
        for key, value in sorted(self.latent.state_dict().items()):
            if key.startswith(("entropy_bottleneck.", "gaussian_conditional.", "hyper_dec.", "context.")):
                check = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), zlib.crc32(key.encode(), check))
        return check

    @torch.no_grad()
    def compress(self, image: Image, frame: Container, decoding: Decoding, *, mode: str = "default", check: int = 0) -> bytes:
        """The stream of an image, uint8 (H, W, 3).

        frame: a container that lacks sizes, payload and checksum. check: what else decoder and encoder must agree on. CodecError.
        """
        height, width = image.shape[:2]
        padded = np.zeros((_up(height, self.latent.pad), _up(width, self.latent.pad), 3), np.uint8)
        padded[:height, :width] = image
        pixels = torch.from_numpy(padded).to(self.backbone.device).permute(2, 0, 1)[None].float() / 255
        coded = self.latent.compress(pixels, self.backbone.encode(pixels, decoding.tile, decoding.overlap), mode)
        return replace(
            frame,
            width=width,
            height=height,
            payload=coded.payload,
            z_bytes=min(round(coded.z_bits / 8), len(coded.payload)),
            checksum=coded.checksum ^ self.digest ^ check,
            portable=mode == "portable",
        ).to_bytes()

    def latents(self, container: Container, data: bytes, check: int = 0) -> tuple[Tensor, Tensor]:
        """y_hat and z_hat of a stream, (1, C, H, W) on the CPU. BitstreamError unless they are what the encoder saw."""
        height, width = (_up(side, self.latent.pad) for side in (container.height, container.width))
        mode = "portable" if container.portable else "default"
        y_hat, z_hat, checksum = self.latent.decompress(container.payload, height, width, mode)
        container.verify(data, checksum ^ self.digest ^ check)
        return y_hat, z_hat

    @torch.no_grad()
    @torch.backends.cudnn.flags(enabled=True, deterministic=True)  # the same seed, the same pixels
    def sample(self, y_hat: Tensor, z_hat: Tensor, decoding: Decoding, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Pixels (N, 3, H, W) float32 in [0, 1] of N latents of one size, each with its prompt and the seed of its noise."""
        backbone, size = self.backbone, (decoding.tile, decoding.overlap)
        hint = self.latent.hint(y_hat, z_hat)
        guided = decoding.guidance != 1 and any(prompt != decoding.negative for prompt in prompts)
        contexts = backbone.embed([*prompts, decoding.negative] if guided else prompts)
        predict = sampling.Guided(
            backbone,
            self.control,
            hint,
            contexts[: len(prompts)],
            contexts[len(prompts) :] if guided else None,
            decoding.guidance,
            tile=decoding.tile,
            overlap=decoding.overlap,
            run=graphs.fast(sampling.evaluate, hint.is_cuda, decoding.compiled),
        )
        noise = sampling.draw_noise(seeds, decoding.sampler.draws, *hint.shape[-2:]).to(hint.device)
        pixels = backbone.decode(decoding.sampler(predict, backbone.abar, hint, noise), *size)
        return colour.wavelet(pixels, backbone.decode(hint, *size)) if decoding.wavelet else pixels


@dataclass(frozen=True)
class Request:
    """A parsed stream to decode. check: as for Model.compress."""

    model: Model
    container: Container
    data: bytes
    decoding: Decoding
    prompt: str = ""
    seed: int = 0
    check: int = 0


def decompress(requests: Sequence[Request]) -> list[Image]:
    """The images, uint8 (H, W, 3). BitstreamError where one of the streams is damaged."""
    groups: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        container, pad = request.container, request.model.latent.pad
        key = (id(request.model), _up(container.height, pad), _up(container.width, pad), request.decoding)
        groups.setdefault(key, []).append(index)
    images: dict[int, Image] = {}
    pool = ThreadPoolExecutor(1)
    try:
        latents: dict[int, Future[tuple[Tensor, Tensor]]] = {}
        for index in (index for group in groups.values() for index in group):
            one = requests[index]
            latents[index] = pool.submit(one.model.latents, one.container, one.data, one.check)
        for group in groups.values():
            model, decoding = requests[group[0]].model, requests[group[0]].decoding
            for start in range(0, len(group), decoding.batch):
                part = group[start : start + decoding.batch]
                y_hat, z_hat = (torch.cat(tensors) for tensors in zip(*(latents.pop(index).result() for index in part)))
                prompts, seeds = [requests[index].prompt for index in part], [requests[index].seed for index in part]
                images |= zip(part, _to_uint8(model.sample(y_hat, z_hat, decoding, prompts, seeds)))
    finally:
        pool.shutdown(cancel_futures=True)
    sizes = ((request.container.height, request.container.width) for request in requests)
    return [np.ascontiguousarray(images[index][:height, :width]) for index, (height, width) in enumerate(sizes)]


def _to_uint8(pixels: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> (N, H, W, 3); what is not a number becomes black."""
    return (pixels.nan_to_num(0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
