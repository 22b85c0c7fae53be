"""CADC (Sheng et al., "Content Adaptive Diffusion-Based Generative Image Compression"): one step of diffusion, no bits for text.

image --g_a--> y --modulated by uncertainty--> payload
payload --g_s--> l_T --SD-Turbo's UNet, once, under a caption of l_T[:4]--> clean latent --VAE--> image
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.diffusion.backbone.files import WeightFiles, resolve_device
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.options import MODEL_DEFAULTS, RUNTIME_DEFAULTS, ModelOptions, RuntimeOptions, flat_options
from icmbench.codecs.diffusion.prompts.captioners import build_captioner
from icmbench.codecs.diffusion.prompts.fixed import FixedPrompt
from icmbench.codecs.diffusion.scheme import decoding_options

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

PROMPT = "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting"
TURBO = "stabilityai/sd-turbo"
BLIP = "Salesforce/blip-image-captioning-base"
PLAIN, CAPTIONED = "plain", "captioned"
CHANNELS = {"sd21": 320, "tiny": 32}  # Channels of y by profile.


class Cadc(DiffusionCodec):
    """CADC: a latent code at 1/64, decoded by one step of SD-Turbo under a caption that the decoder makes itself.

    Also takes the fields of ModelOptions and RuntimeOptions; with one step and no noise there are no sampling options. `backbone`
    is SD-Turbo by default, and may also be Stable Diffusion 2.1-base. The preview that `colour` uses is the auxiliary picture, made
    from the first four channels of l_T. Images are padded to multiples of 256 by reflection, which is repeated for smaller images.

    Args:
        point: Lambda of the second stage of training: 2, 3, 4, 6, 8, 12, 16, 24 or 32, the lowest rate. The paper names none; these
            are StableCodec's.
        captioner: Describes the auxiliary picture in the decoder: a transformers model by local path or hub name; arguments
            {url, model, ...} of captioners.Endpoint; or a function from image to text. "none" decodes under the fixed prompt alone.
            By default the paper's BLIP-base (247M parameters) for sd21 with weights, and otherwise none. A stream says whether it
            is decoded under a caption.
        prompt: The fixed prompt, which follows the caption. The default is the paper's.
        ugaq: Whether the encoder quantises by uncertainty, True by default. A decoder need not know. False is for weights that were
            trained without.
        uncertainty_channels: Channels of the uncertainty map: 1, or as many as y has, 320 for sd21 and 32 for tiny. None, the
            default, is what the weights record, or 1, a guess, as the paper indexes the map by row and column only. Other weights
            do not fit.
        delta: Rounding step of the latent (equation 5), above 0; larger is coarser. None, the default, is what the weights record
            they were trained with, or 1. A stream decodes only with the step that it was made with, and does not say it.

    Raises:
        CodecError: an option is out of its range, or weights or the device cannot be had.
    """

    name = "cadc"
    version = 1
    points = default_points = (2, 3, 4, 6, 8, 12, 16, 24, 32)
    samplers = (PLAIN, CAPTIONED)
    weights = (
        "none published: train it over SD-Turbo (Stability AI Community License) or Stable Diffusion 2.1-base; "
        "BLIP-base captions (BSD-3); profile tiny: none needed"
    )

    @flat_options
    def __init__(
        self,
        point: float = 2,
        *,
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        prompt: str = PROMPT,
        ugaq: bool = True,
        uncertainty_channels: int | None = None,
        delta: float | None = None,
        model: ModelOptions = MODEL_DEFAULTS,
        runtime: RuntimeOptions = RUNTIME_DEFAULTS,
    ) -> None:
        if model.profile == "sd21" and model.weights != "random":
            captioner = BLIP if captioner is None else captioner
            model = replace(model, backbone=model.backbone or TURBO)
        device = resolve_device(runtime.device, runtime.dtype)[0]
        self._captioner = build_captioner(None if captioner == "none" else captioner, device)
        files = WeightFiles(self.name, model.profile, model.weights, model.backbone, self.published)
        trained = {"uncertainty_channels": 1, "delta": 1.0} | files.trained_with(point)
        channels = trained["uncertainty_channels"] if uncertainty_channels is None else uncertainty_channels
        step = trained["delta"] if delta is None else delta
        self._latent_options = {"ugaq": ugaq, "uncertainty_channels": channels, "delta": step}
        super().__init__(
            point,
            sampler=CAPTIONED if self._captioner else PLAIN,
            guide=FixedPrompt(prompt, self._captioner and self._captioner.facts),
            sampling=Overrides(),
            model=model,
            runtime=runtime,
            # Facts of their own only where they differ from what all codecs before them had, so that stored results stay valid.
            facts={name: value for name, value in self._latent_options.items() if name == "ugaq" or value != 1},
        )
        _check_quantiser(channels, step, model.profile)
        if step != trained["delta"] and model.weights != "random":
            warnings.warn(
                f"{self.name}: lambda={point:g} is coded with delta: {step:g}, but its weights were trained with delta: "
                f"{trained['delta']:g}, so their entropy model does not fit it: leave `delta` out, or train others",
                stacklevel=2,
            )

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        return Overrides(steps=1, guidance=1.0)

    @classmethod
    def sampler_options(cls, name: str) -> dict[str, Any]:
        return {"captioner": "none"} if name == PLAIN else {}  # A stream does not say which captioner it was made with.

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.samplers import OneStepSampler

        return OneStepSampler()

    def build_decoding(self, sampler: Sampler, guidance: float, runtime: RuntimeOptions) -> Decoding:
        from icmbench.codecs.diffusion.cadc_model import CadcDecoding

        return CadcDecoding(sampler, guidance, **decoding_options(runtime))

    def decoding_of(self, container: Container, profile: str, runtime: RuntimeOptions) -> Decoding:
        decoding: Any = super().decoding_of(container, profile, runtime)  # A CadcDecoding, from `build_decoding`.
        return replace(decoding, captioner=self._captioner) if self.sampler_of(container) == CAPTIONED else decoding

    def parse(self, data: bytes, profile: str) -> Container:
        """Parse a stream.

        Raises:
            BitstreamError: the bytes are no stream of this codec and profile, or it needs a captioner that this codec lacks.
        """
        container = super().parse(data, profile)
        if self.sampler_of(container) == CAPTIONED and self._captioner is None:
            raise BitstreamError("the stream is decoded under a caption of its auxiliary picture: set `captioner`")
        return container

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.cadc_model import architecture

        return architecture(**self._latent_options)


def _check_quantiser(uncertainty_channels: int, delta: float, profile: str) -> None:
    if uncertainty_channels not in (1, CHANNELS[profile]):
        raise CodecError(f"cadc takes uncertainty_channels 1 or, for profile {profile}, {CHANNELS[profile]}")
    if not (delta > 0 and math.isfinite(delta)):
        raise CodecError("cadc takes delta, the rounding step, above 0")
