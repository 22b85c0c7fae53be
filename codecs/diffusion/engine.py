"""What all codecs of the family share: pixels to stream and back, in batches.

    compress      pixels --pad--> z0 = backbone.encode --latent--> payload --> Container <-- words <--guide-- draft
    decompress    Container --latent--> hint --control, sampler--> z --backbone.decode--> pixels --crop-->

Coding is done image by image; of streams, those of one padded size and one way of decoding are sampled together, while the symbols
of the next ones are decoded on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.base import Image
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion.backbone import graphs
from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.stable_diffusion import DiffusionBackbone, Prompt
from icmbench.codecs.diffusion.latents.compressor import LatentCompressor
from icmbench.codecs.diffusion.prompts.guides import Guide
from icmbench.codecs.diffusion.sampling import colour, samplers


@dataclass(frozen=True)
class Decoding:
    """How a stream becomes pixels. guidance: scale of classifier-free guidance, 1 for none.

    negative: the prompt that guidance leads away from. wavelet: correct colours by the decoded hint. tile, overlap: of latents, see
    tiles.Tiles. batch: images sampled together. compiled: have torch compile the networks.
    """

    sampler: samplers.Sampler
    guidance: float = 1.0
    negative: Prompt = ""
    wavelet: bool = False
    tile: int = 96
    overlap: int = 32
    batch: int = 8
    compiled: bool = False


class CodecModel:
    """One rate point: a latent compressor and a control module of its own, a backbone that other points share.

    The compressor runs in float32, the rest in the backbone's type; all on its device. A codec whose decoder differs overrides
    `predictor` and `preview`.
    """

    def __init__(self, backbone: DiffusionBackbone, latent: LatentCompressor, control: ControlModule | None = None) -> None:
        if backbone.device.type != "meta":
            latent.entropy_bottleneck.complete()
            latent.gaussian_conditional.complete()
        self.backbone = backbone
        self.latent = latent.to(backbone.device).float().eval().requires_grad_(False)
        self.control = None if control is None else self.frozen(control)

    def frozen(self, module: nn.Module) -> Any:
        """A module as it decodes: in the backbone's type, on its device, without gradients."""
        module = module.to(self.backbone.device, self.backbone.dtype).eval().requires_grad_(False)
        return nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks of this rate point, as they are named in its weight file."""
        return {"latent": self.latent} | ({} if self.control is None else {"control": self.control})

    def state(self) -> dict[str, Tensor]:
        """The content of its weight file."""
        return nn.ModuleDict(self.parts).state_dict()

    @functools.cached_property
    def digest(self) -> int:
        """32 bits over all that decides symbols."""
        return self.latent.digest()

    @torch.no_grad()
    def compress(
        self, image: Image, frame: Container, decoding: Decoding, guide: Guide, image_id: str | None = None, mode: str = "default"
    ) -> bytes:
        """The stream of an image, uint8 (H, W, 3). frame: a container that lacks sizes, payload, text and checksum. CodecError."""
        height, width = image.shape[:2]
        pixels = self.pixels(image)
        ref = self.backbone.encode(pixels, decoding.tile, decoding.overlap) if self.latent.needs_latent else None
        coded = self.latent.compress(pixels, ref, mode)
        draft = Draft(self, decoding, mode, coded.payload, (height, width))
        text = guide.encode(image, image_id, draft)
        return replace(
            frame,
            width=width,
            height=height,
            payload=coded.payload,
            z_bytes=min(round(coded.z_bits / 8), len(coded.payload)),
            checksum=coded.checksum ^ self.digest ^ (guide.checksum if text else 0),
            portable=mode == "portable",
            text=text,
        ).to_bytes()

    def pixels(self, image: Image) -> Tensor:
        """uint8 (H, W, 3) -> (1, 3, H', W') float32 in [0, 1] on the device, padded as the compressor says."""
        margins = [(0, _up(side, self.latent.pad) - side) for side in image.shape[:2]]
        padded = np.pad(image, [*margins, (0, 0)], self.latent.padding)
        return torch.from_numpy(padded).to(self.backbone.device).permute(2, 0, 1)[None].float() / 255

    def latents(self, container: Container, data: bytes, check: int = 0) -> tuple[Tensor, Tensor]:
        """y_hat and z_hat of a stream, (1, C, H, W) on the CPU. check: what else decoder and encoder must agree on.

        BitstreamError unless they are what the encoder saw.
        """
        height, width = (_up(side, self.latent.pad) for side in (container.height, container.width))
        mode = "portable" if container.portable else "default"
        y_hat, z_hat, checksum = self.latent.decompress(container.payload, height, width, mode)
        container.verify(data, checksum ^ self.digest ^ check)
        return y_hat, z_hat

    @torch.no_grad()
    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """The hints (N, C, H, W) float32 of N decoded latents of one size."""
        return self.latent.hint(y_hat.to(self.backbone.device), z_hat.to(self.backbone.device))

    @torch.no_grad()
    def preview(self, hint: Tensor, decoding: Decoding) -> Tensor:
        """Pixels (N, 3, 8H, 8W) float32 in [0, 1] of the hints alone, before any sampling."""
        return self.backbone.decode(hint, decoding.tile, decoding.overlap)

    def predictor(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt]) -> samplers.Predict:
        """The noise prediction under the hints (N, C, H, W) and their prompts."""
        guided = decoding.guidance != 1 and any(prompt != decoding.negative for prompt in prompts)
        contexts = self.backbone.embed([*prompts, decoding.negative] if guided else prompts)
        return samplers.Guided(
            self.backbone,
            self.control,
            hint,
            contexts[: len(prompts)],
            contexts[len(prompts) :] if guided else None,
            decoding.guidance,
            tile=decoding.tile,
            overlap=decoding.overlap,
            run=graphs.fast(samplers.evaluate, hint.is_cuda, decoding.compiled),
        )

    def sample(self, y_hat: Tensor, z_hat: Tensor, decoding: Decoding, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Pixels (N, 3, H, W) float32 in [0, 1] of N latents of one size, each with its prompt and the seed of its noise."""
        return self.render(self.hint(y_hat, z_hat), decoding, prompts, seeds)

    @torch.no_grad()
    @torch.backends.cudnn.flags(enabled=True, deterministic=True)  # the same seed, the same pixels
    def render(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """As `sample`, from hints (N, C, H, W)."""
        predict = self.predictor(hint, decoding, prompts)
        noise = samplers.draw_noise(seeds, decoding.sampler.draws, *hint.shape[-2:]).to(hint.device)
        z = decoding.sampler(predict, self.backbone.abar, hint, noise)
        pixels = self.backbone.decode(z, decoding.tile, decoding.overlap)
        return colour.wavelet(pixels, self.preview(hint, decoding)) if decoding.wavelet else pixels


@dataclass(frozen=True)
class Draft:
    """What an encoder's text guide may look at: all that the decoder will have but the words. size: height and width in pixels."""

    model: CodecModel
    decoding: Decoding
    mode: str
    payload: bytes
    size: tuple[int, int]

    @functools.cached_property
    def hint(self) -> Tensor:
        """(1, C, H, W) float32."""
        height, width = (_up(side, self.model.latent.pad) for side in self.size)
        y_hat, z_hat, _ = self.model.latent.decompress(self.payload, height, width, self.mode)
        return self.model.hint(y_hat, z_hat)

    @functools.cached_property
    def pixels(self) -> Image:
        """The decoded preview, uint8 (H, W, 3)."""
        height, width = self.size
        return np.ascontiguousarray(to_uint8(self.model.preview(self.hint, self.decoding))[0, :height, :width])


@dataclass(frozen=True)
class Request:
    """A parsed stream to decode. check: as for CodecModel.latents."""

    model: CodecModel
    container: Container
    data: bytes
    decoding: Decoding
    prompt: Prompt = ""
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
                images |= zip(part, to_uint8(model.sample(y_hat, z_hat, decoding, prompts, seeds)))
    finally:
        pool.shutdown(cancel_futures=True)
    sizes = ((request.container.height, request.container.width) for request in requests)
    return [np.ascontiguousarray(images[index][:height, :width]) for index, (height, width) in enumerate(sizes)]


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] -> (N, H, W, 3); what is not a number becomes black."""
    return (pixels.nan_to_num(0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
