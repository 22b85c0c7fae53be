"""What all codecs of the family share: from pixels to a coded latent, and from streams to pixels, in batches.

    compress      pixels --pad--> z0 = backbone.encode --latent--> payload, draft
    decompress    Container --latent--> hint --control, sampler--> z --backbone.decode--> pixels --crop-->

Images are coded one by one. Streams of one padded size and one way of decoding are sampled together, while the symbols of the next
streams are decoded on the CPU. The words of a stream, and the container around it, are the concern of codec.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from icmbench.codecs.diffusion.sampling import colour, samplers
from icmbench.codecs.entropy.hyperprior import CodedLatents


@dataclass(frozen=True)
class Decoding:
    """How a stream becomes pixels.

    Args:
        sampler: Leads from noise to a latent.
        guidance: Scale of classifier-free guidance; 1 for none.
        negative: The prompt that guidance leads away from.
        wavelet: Whether to replace the low frequencies of the pixels by those of the preview.
        tile: Side of a tile in latent positions, see `tiles.Tiles`; 0 for one tile of any size.
        overlap: Latent positions that neighbouring tiles share.
        batch: Images that are sampled together.
        compiled: Whether torch compiles the networks.
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
    """One rate point: a latent compressor and a control module of its own, and a backbone that other points share.

    The compressor runs in float32 and the other networks in the backbone's dtype, all on the backbone's device. A codec whose
    decoder differs overrides `predictor` and `preview`.

    Args:
        backbone: Stable Diffusion.
        latent: The latent compressor. It is moved to the backbone's device.
        control: The control module, or None for a codec that decodes without one.
    """

    def __init__(self, backbone: DiffusionBackbone, latent: LatentCompressor, control: ControlModule | None = None) -> None:
        if backbone.device.type != "meta":
            latent.entropy_bottleneck.ensure_tables()
            latent.gaussian_conditional.ensure_tables()
        self.backbone = backbone
        self.latent = latent.to(backbone.device).float().eval().requires_grad_(False)
        self.control = None if control is None else self._ready_to_decode(control)

    def _ready_to_decode(self, module: nn.Module) -> Any:
        module = module.to(self.backbone.device, self.backbone.dtype).eval().requires_grad_(False)
        return nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks of this rate point by their names in its weight file."""
        return {"latent": self.latent} | ({} if self.control is None else {"control": self.control})

    def state(self) -> dict[str, Tensor]:
        """The tensors of this rate point's weight file."""
        return nn.ModuleDict(self.parts).state_dict()

    @functools.cached_property
    def digest(self) -> int:
        """32-bit checksum of the weights and tables that decide symbols."""
        return self.latent.digest()

    @torch.no_grad()
    def compress(self, image: Image, decoding: Decoding, mode: str = "default") -> tuple[CodedLatents, LatentDraft]:
        """Code the latent of an image.

        Args:
            image: uint8 RGB, (H, W, 3).
            decoding: How the stream will be decoded; its tiles also apply to the VAE's encoder.
            mode: Arithmetic of the entropy coder, "default" or "portable".

        Returns:
            The coded latent, and the draft from which a text guide chooses the words.
        """
        height, width = image.shape[:2]
        pixels = self.pixels(image)
        ref = self.backbone.encode(pixels, decoding.tile, decoding.overlap) if self.latent.needs_latent else None
        coded = self.latent.compress(pixels, ref, mode)
        return coded, LatentDraft(self, decoding, mode, coded.payload, (height, width))

    def pixels(self, image: Image) -> Tensor:
        """uint8 (H, W, 3) -> (1, 3, H', W') float32 in [0, 1] on the backbone's device, padded as the compressor needs it."""
        margins = [(0, _round_up(side, self.latent.pad) - side) for side in image.shape[:2]]
        padded = np.pad(image, [*margins, (0, 0)], self.latent.padding)
        return torch.from_numpy(padded).to(self.backbone.device).permute(2, 0, 1)[None].float() / 255

    def latents(self, container: Container, data: bytes, check: int = 0) -> tuple[Tensor, Tensor]:
        """Decode the latents of a stream.

        Args:
            container: The parsed stream.
            data: The bytes from which it was parsed.
            check: Checksum of what else encoder and decoder must agree on, such as a vocabulary; 0 for nothing.

        Returns:
            y_hat and z_hat, each (1, C, H, W) on the CPU.

        Raises:
            BitstreamError: they are not the latents that the encoder saw.
        """
        height, width = (_round_up(side, self.latent.pad) for side in (container.height, container.width))
        mode = "portable" if container.portable else "default"
        y_hat, z_hat, checksum = self.latent.decompress(container.payload, height, width, mode)
        container.verify(data, checksum ^ self.digest ^ check)
        return y_hat, z_hat

    @torch.no_grad()
    def hint(self, y_hat: Tensor, z_hat: Tensor) -> Tensor:
        """Decoded latents of N images of one size, (N, C, H, W) each -> their hints (N, C', H', W') float32."""
        return self.latent.hint(y_hat.to(self.backbone.device), z_hat.to(self.backbone.device))

    @torch.no_grad()
    def preview(self, hint: Tensor, decoding: Decoding) -> Tensor:
        """Hints (N, 4, H, W) decoded without any sampling: pixels (N, 3, 8H, 8W) float32 in [0, 1]."""
        return self.backbone.decode(hint, decoding.tile, decoding.overlap)

    def predictor(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt]) -> samplers.NoisePredictor:
        """The noise predictor of N images.

        Args:
            hint: (N, C, H, W) float32.
            decoding: Its guidance and negative prompt apply only if some prompt differs from the negative one.
            prompts: One per image.
        """
        guided = decoding.guidance != 1 and any(prompt != decoding.negative for prompt in prompts)
        contexts = self.backbone.embed([*prompts, decoding.negative] if guided else prompts)
        return samplers.GuidedPredictor(
            self.backbone,
            self.control,
            hint,
            contexts[: len(prompts)],
            contexts[len(prompts) :] if guided else None,
            decoding.guidance,
            tile=decoding.tile,
            overlap=decoding.overlap,
            run=graphs.speed_up(samplers.evaluate_unet, hint.is_cuda, decoding.compiled),
        )

    def sample(self, y_hat: Tensor, z_hat: Tensor, decoding: Decoding, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Decode latents of N images of one size to pixels: `hint`, then `render`."""
        return self.render(self.hint(y_hat, z_hat), decoding, prompts, seeds)

    @torch.no_grad()
    @torch.backends.cudnn.flags(enabled=True, deterministic=True)  # One seed gives the same pixels each time.
    def render(self, hint: Tensor, decoding: Decoding, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        """Sample N images under their hints.

        Args:
            hint: (N, C, H, W) float32.
            decoding: How to sample.
            prompts: One per image.
            seeds: Seeds of the noise, one per image.

        Returns:
            Pixels (N, 3, 8H, 8W) float32 in [0, 1], padding included.
        """
        predict = self.predictor(hint, decoding, prompts)
        noise = samplers.draw_noise(seeds, decoding.sampler.draws, *hint.shape[-2:]).to(hint.device)
        z = decoding.sampler(predict, self.backbone.abar, hint, noise)
        pixels = self.backbone.decode(z, decoding.tile, decoding.overlap)
        return colour.wavelet_colour_fix(pixels, self.preview(hint, decoding)) if decoding.wavelet else pixels


@dataclass(frozen=True)
class LatentDraft:
    """The draft of a coded latent: `prompts.guides.Draft`, which documents its members.

    Args:
        model: The rate point that coded the latent.
        decoding: How the stream will be decoded.
        mode: Arithmetic of the entropy coder, "default" or "portable".
        payload: The coded latent.
        size: Height and width of the image in pixels.
    """

    model: CodecModel
    decoding: Decoding
    mode: str
    payload: bytes
    size: tuple[int, int]

    @property
    def backbone(self) -> DiffusionBackbone:
        return self.model.backbone

    @property
    def sampler(self) -> samplers.Sampler:
        return self.decoding.sampler

    @functools.cached_property
    def hint(self) -> Tensor:
        height, width = (_round_up(side, self.model.latent.pad) for side in self.size)
        y_hat, z_hat, _ = self.model.latent.decompress(self.payload, height, width, self.mode)
        return self.model.hint(y_hat, z_hat)

    @functools.cached_property
    def preview(self) -> Image:
        height, width = self.size
        return np.ascontiguousarray(to_uint8(self.model.preview(self.hint, self.decoding))[0, :height, :width])

    def pixels(self, image: Image) -> Tensor:
        return self.model.pixels(image)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.backbone.encode(pixels, self.decoding.tile, self.decoding.overlap)

    def predictor(self, context: Tensor) -> samplers.NoisePredictor:
        tile, overlap = self.decoding.tile, self.decoding.overlap
        return samplers.GuidedPredictor(self.backbone, self.model.control, self.hint, context, tile=tile, overlap=overlap)

    def render(self, prompt: Prompt, seed: int) -> Tensor:
        return self.model.render(self.hint, self.decoding, [prompt], [seed])


@dataclass(frozen=True)
class Request:
    """A parsed stream to decode.

    Args:
        model: The rate point that the stream names.
        container: The parsed stream.
        data: The bytes from which it was parsed.
        decoding: How to decode it.
        prompt: What the text encoder reads.
        seed: Seed of the noise.
        check: See `CodecModel.latents`.
    """

    model: CodecModel
    container: Container
    data: bytes
    decoding: Decoding
    prompt: Prompt = ""
    seed: int = 0
    check: int = 0


def decompress(requests: Sequence[Request]) -> list[Image]:
    """Decode streams; those of one model, padded size and decoding are sampled in batches.

    Streams without words are sampled apart from those with words, because guidance by words costs a second evaluation of the UNet
    for the whole batch, and whether an image is guided must not depend on its company.

    Returns:
        uint8 RGB arrays, (H, W, 3) each, in the order of the requests.

    Raises:
        BitstreamError: one of the streams is damaged.
    """
    groups: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        container, pad = request.container, request.model.latent.pad
        size = (_round_up(container.height, pad), _round_up(container.width, pad))
        guided = request.decoding.guidance != 1 and request.prompt != request.decoding.negative
        key = (id(request.model), size, request.decoding, guided)
        groups.setdefault(key, []).append(index)
    images: dict[int, Image] = {}
    pool = ThreadPoolExecutor(1)
    try:
        latents: dict[int, Future[tuple[Tensor, Tensor]]] = {}
        for index in (index for group in groups.values() for index in group):
            request = requests[index]
            latents[index] = pool.submit(request.model.latents, request.container, request.data, request.check)
        for group in groups.values():
            model, decoding = requests[group[0]].model, requests[group[0]].decoding
            for start in range(0, len(group), decoding.batch):
                batch = group[start : start + decoding.batch]
                y_hat, z_hat = (torch.cat(tensors) for tensors in zip(*(latents.pop(index).result() for index in batch)))
                prompts, seeds = [requests[index].prompt for index in batch], [requests[index].seed for index in batch]
                images |= zip(batch, to_uint8(model.sample(y_hat, z_hat, decoding, prompts, seeds)))
    finally:
        pool.shutdown(cancel_futures=True)
    sizes = ((request.container.height, request.container.width) for request in requests)
    return [np.ascontiguousarray(images[index][:height, :width]) for index, (height, width) in enumerate(sizes)]


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels (N, 3, H, W) in [0, 1] -> (N, H, W, 3) uint8; NaN becomes black."""
    return (pixels.nan_to_num(0) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
