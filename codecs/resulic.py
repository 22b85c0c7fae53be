"""ResULIC (Ke et al., ICML 2025): a latent code, and the words that its preview lacks, decoded by compression-aware diffusion.

image --VAE--> z0 --VaeCompressor--> y, z --> payload        what the image shows - what the preview shows --tokens--> text
payload --VaeCompressor--> z_c --control--> Stable Diffusion 2.1 from z_c in noise, 3 steps, guided by the words --VAE--> image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Overrides
from icmbench.codecs.diffusion.backbone.files import resolve_device
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.options import (
    MODEL_DEFAULTS,
    RUNTIME_DEFAULTS,
    ModelOptions,
    RuntimeOptions,
    SamplingOptions,
    flat_options,
)
from icmbench.codecs.diffusion.prompts.residual import ResidualGuide, build_captioner_and_reasoner

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

# N_r by lambda. The authors' configuration files have 705 and 795 for lambda 36, 495 and 600 for 16, 300 for 6, 200 and 300 for 3
# (3.5 in these files), and 50, 100 and 150 for 1.5; the paper does not say which of them it reports.
NOISE_LEVELS = {1.5: 100, 3: 200, 6: 300, 16: 495, 36: 795}
STEPS, PLAIN_STEPS, GUIDANCE = 3, 50, 2.5
SAMPLING_DEFAULTS = SamplingOptions(cfg=GUIDANCE)
NEGATIVE = "oil painting, cartoon, blurring, dirty, messy, low quality, frames, deformed, lowres, over-smooth."
SUFFIX = "best quality, extremely detailed"


class Resulic(DiffusionCodec):
    """ResULIC: a compressed VAE latent and a residual caption, decoded by compression-aware diffusion.

    Also takes the fields of ModelOptions, SamplingOptions and RuntimeOptions. `steps` is S: the paper's
    4 and 3 steps are S = 3, the default, and S = 2, because it counts two evaluations of the network that have no effect. `cfg` is
    2.5 by default. Profile tiny has control modules of full width, because a fifth of its narrow UNet would leave nothing.

    Args:
        point: lambda_R, the weight of the rate in the second stage of training: 1.5, 3, 6, 16 or 36, the lowest rate.
        noise_level: N_r, the noise level at which the decoded latent enters, 1 to 999. By default that of the point.
        eta: 0, the default, samples deterministically; 1 adds fresh noise at every step.
        cdm: True, the default, samples by compression-aware diffusion. False samples from pure noise by DDIM, or by DDPM if eta is
            1, in 50 steps by default, for weights that were trained so.
        suffix: Words that end every prompt and take no bits. The default is that of the authors' code.
        negative: Words that the guidance leads away from. The default is that of the authors' code.
        captions: What the images show: one caption for all, or a JSON file {image id: caption}. None by default.
        residuals: What to send of the images, in the same two forms. By default it is found from captions.
        captioner: Describes the other images, and all decoded previews: a transformers model by local path or hub name; arguments
            of a chat model, {source, ...} or {url, model, ...}, see captioners.py; or a function from image to text. None by
            default.
        llm: Finds what the preview's caption lacks: a model in the same forms, or a function from text to text. By default the
            captioner, if it chats; without one, captions are sent in full. Both models get the paper's prompts.
        pfo: True, or the arguments of pfo.PerceptualFidelity, to search for tokens whose decoding is closer to the original. False
            by default, because the search takes minutes per image.
        text: Coder of the words, see captions.py. "prior", the default, and "clip16" are the paper's index coding, with tables that
            take no bits.

    Raises:
        CodecError: an option is out of its range, or a file, weights or the device cannot be had.
    """

    name = "resulic"
    version = 1
    points = default_points = tuple(NOISE_LEVELS)
    samplers = ("cdm", "cdm-stochastic", "ddim", "ddpm")
    weights = (
        "none are published: train them (resulic-lambda<point>.safetensors), over Stable Diffusion 2.1-base (CreativeML Open "
        "RAIL++-M); profile tiny: none needed"
    )

    @flat_options
    def __init__(
        self,
        point: float = 36,
        *,
        noise_level: int | None = None,
        eta: Literal[0, 1] = 0,
        cdm: bool = True,
        suffix: str = SUFFIX,
        negative: str = NEGATIVE,
        captions: str | Path = "",
        residuals: str | Path | None = None,
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        llm: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        pfo: bool | dict[str, Any] = False,
        text: Literal["prior", "clip16", "utf8", "deflate", "zlib", "smallest"] = "prior",
        model: ModelOptions = MODEL_DEFAULTS,
        sampling: SamplingOptions = SAMPLING_DEFAULTS,
        runtime: RuntimeOptions = RUNTIME_DEFAULTS,
    ) -> None:
        if eta not in (0, 1) or 0 in (noise_level, sampling.steps, sampling.cfg):  # In a stream, 0 stands for the default.
            raise CodecError(f"{self.name} takes eta 0 or 1, and noise_level, steps and cfg from 1")
        sampler = self.samplers[(0 if cdm else 2) + eta]
        overrides = Overrides(sampling.steps or (0 if cdm else PLAIN_STEPS), noise_level or 0, sampling.cfg)
        describer, reasoner = build_captioner_and_reasoner(captioner, llm, resolve_device(runtime.device, runtime.dtype)[0])
        self._residual_guide = ResidualGuide(
            residuals,
            captions,
            describer,
            reasoner,
            _build_optimiser(pfo),
            suffix=suffix,
            negative=negative,
            coder=text,
            seed=sampling.seed,
        )
        super().__init__(
            point,
            sampler=sampler,
            guide=self._residual_guide,
            sampling=overrides,
            seed=sampling.seed,
            model=model,
            runtime=runtime,
        )
        # Parameters that do not fit each other should fail now rather than at the first image.
        self.build_sampler(sampler, self.complete_sampling(overrides, model.profile, point))

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        return Overrides(steps=STEPS, noise_level=NOISE_LEVELS[point], guidance=GUIDANCE)

    @classmethod
    def sampler_options(cls, name: str) -> dict[str, Any]:
        number = cls.samplers.index(name)
        return {"cdm": number < 2, "eta": number % 2}

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
        from icmbench.codecs.diffusion.sampling.samplers import SAMPLERS

        if name in SAMPLERS:
            return SAMPLERS[name](sampling.steps)
        return CompressionAwareSampler(sampling.noise_level, sampling.steps, eta=self.samplers.index(name))

    def build_decoding(self, sampler: Sampler, guidance: float, runtime: RuntimeOptions) -> Decoding:
        return replace(super().build_decoding(sampler, guidance, runtime), negative=self._residual_guide.negative)

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.models import RESULIC

        return RESULIC


def _build_optimiser(pfo: bool | dict[str, Any]) -> PerceptualFidelity | None:
    if pfo is False:
        return None
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

    try:
        return PerceptualFidelity(**({} if pfo is True else pfo))
    except TypeError as error:
        raise CodecError(f"pfo takes arguments of pfo.PerceptualFidelity ({error})") from error
