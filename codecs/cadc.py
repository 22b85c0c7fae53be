"""CADC (Sheng et al., "Content Adaptive Diffusion-Based Generative Image Compression"): one step of diffusion, not a bit of text.

image --g_a--> y --modulated by uncertainty--> payload
payload --g_s--> l_T --SD-Turbo's UNet, once, told what l_T[:4] seems to show--> clean latent --VAE--> image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import BitstreamError, Image
from icmbench.codecs.bitstream import Container, Overrides, Text
from icmbench.codecs.diffusion.backbone.files import run_on
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.prompts.captioners import captioner_of

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

PROMPT = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting"
TURBO = "stabilityai/sd-turbo"
BLIP = "Salesforce/blip-image-captioning-base"
PLAIN, CAPTIONED = "plain", "captioned"


class FixedPrompt:
    """A guide that sends nothing: all images have the same words, to which the decoder may add its own."""

    checksum = 0

    def __init__(self, prompt: str, captioner: Any = None) -> None:
        self._prompt = prompt
        self.facts: Any = [prompt, captioner]

    def encode(self, image: Image, image_id: str | None = None, draft: object = None) -> Text | None:
        return None

    def prompt(self, text: Text | None) -> str:
        if text is not None:
            raise BitstreamError("a stream of CADC holds no text: it is damaged")
        return self._prompt


class Cadc(DiffusionCodec):
    """CADC: a latent code at 1/64, decoded by one step of SD-Turbo under a caption that the decoder makes itself.

    point: lambda of the second stage of training; the paper names none, these are StableCodec's, 32 being the lowest rate.
    profile: "sd21" has the sizes of the paper, "tiny" is a small one of the same shape.
    weights: a folder with the weights of the points, or the file of this point; by default the package's; or "random".
    backbone: SD-Turbo by default, or Stable Diffusion 2.1-base: a checkpoint, a folder in diffusers layout or a hub repository.
    captioner: what captions the decoder's auxiliary picture, as for slim; "none" for the fixed prompt alone. By default the paper's
        BLIP-base (247M parameters, by its hub name) for sd21 with weights, and none else. A stream says whether it wants captions.
    prompt: the fixed prompt, behind the caption.
    ugaq: uncertainty-guided quantisation, the encoder's alone: a decoder needs not know. False for weights trained without.
    colour: "wavelet" takes the low frequencies from the auxiliary picture. mode: "portable" streams decode on any processor.
    dtype, device, tile, overlap, batch, compile: as for diff-icmh. There is no noise, thus no seed.

    Images are padded to multiples of 256 by reflection, repeated where the image is smaller, as often as needed.
    """

    name = "cadc"
    version = 1
    points = default_points = (2, 3, 4, 6, 8, 12, 16, 24, 32)
    samplers = (PLAIN, CAPTIONED)
    weights = (
        "none published: train it over SD-Turbo (Stability AI Community License) or Stable Diffusion 2.1-base; "
        "BLIP-base captions (BSD-3); profile tiny: none needed"
    )

    def __init__(
        self,
        point: float = 2,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        weights: Literal["random"] | Path | None = None,
        backbone: str | None = None,
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        prompt: str = PROMPT,
        ugaq: bool = True,
        colour: Literal["none", "wavelet"] = "none",
        mode: Literal["default", "portable"] = "default",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        tile: int = 96,
        overlap: int = 32,
        batch: int = 8,
        compile: bool = False,
    ) -> None:
        if captioner is None and profile == "sd21" and weights != "random":
            captioner = BLIP
        self._captioner = captioner_of(None if captioner == "none" else captioner, run_on(device, dtype)[0])
        self._ugaq = ugaq
        super().__init__(
            point,
            profile=profile,
            sampler=CAPTIONED if self._captioner else PLAIN,
            sampling=Overrides(),
            guide=FixedPrompt(prompt, self._captioner and self._captioner.facts),
            weights=weights,
            backbone=backbone or (TURBO if profile == "sd21" and weights != "random" else None),
            seed=0,
            colour=colour,
            mode=mode,
            dtype=dtype,
            device=device,
            tile=tile,
            overlap=overlap,
            batch=batch,
            compile=compile,
            facts={"ugaq": ugaq},
        )

    def usual(self, profile: str, point: float) -> Overrides:
        return Overrides(steps=1, guidance=1.0)

    def sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.samplers import OneStep

        return OneStep()

    def decoding(self, sampler: Sampler, guidance: float) -> Decoding:
        from icmbench.codecs.diffusion.cadc_model import CadcDecoding

        return CadcDecoding(sampler, guidance, **self._limits)

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.cadc_model import architecture

        return architecture(self._ugaq)

    def _parse(self, data: bytes) -> Container:
        container = super()._parse(data)
        if _captioned(container) and self._captioner is None:
            raise BitstreamError("the stream is decoded under a caption of its auxiliary picture: set `captioner`")
        return container

    def _decoding(self, container: Container) -> Decoding:
        decoding: Any = super()._decoding(container)  # of `decoding` above
        return replace(decoding, captioner=self._captioner) if _captioned(container) else decoding


def _captioned(container: Container) -> bool:
    return Cadc.samplers[container.model >> 4 & 3] == CAPTIONED
