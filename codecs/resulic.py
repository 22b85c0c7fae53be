"""ResULIC (Ke et al., ICML 2025): a latent code, and the words that its preview lacks, decoded by compression-aware diffusion.

image --VAE--> z0 --VaeCompressor--> y, z --> payload        what the image shows - what the preview shows --tokens--> text
payload --VaeCompressor--> z_c --control--> Stable Diffusion 2.1 from z_c in noise, few steps, guided by the words --VAE--> image
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.diffusion.backbone.files import resolve_device
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.options import (
    MODEL_DEFAULTS,
    RUNTIME_DEFAULTS,
    ModelOptions,
    RuntimeOptions,
    flat_options,
)
from icmbench.codecs.diffusion.prompts.residual import ResidualGuide, build_captioner_and_reasoner

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import CodecModel, Decoding
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

# N_r by lambda. The authors' configuration files have 705 and 795 for lambda 36, 495 and 600 for 16, 300 for 6, 200 and 300 for 3
# (3.5 in these files), and 50, 100 and 150 for 1.5; the paper does not say which of them it reports.
NOISE_LEVELS = {1.5: 100, 3: 200, 6: 300, 16: 495, 36: 795}
STEPS, PLAIN_STEPS, GUIDANCE = 3, 50, 2.5
NEGATIVE = "oil painting, cartoon, blurring, dirty, messy, low quality, frames, deformed, lowres, over-smooth."
SUFFIX = "best quality, extremely detailed"


@dataclass(frozen=True)
class ResulicSampling:
    """How ResULIC's decoder samples. A stream carries these values if they differ from the defaults of its rate point.

    Args:
        steps: S, for all rate points, or as {lambda: S} for the points named there; the others keep the default. That is 3, or 50
            without compression-aware diffusion. S - 1 evaluations of the network have an effect in compression-aware diffusion.
            The paper's "4 and 3 steps" are S = 4 and 3, or S = 3 and 2 if it counts as its authors' code calls the network. Both
            are guesses, which compression_aware.py argues; 3 is a setting of the paper by either. It does not say which of its
            points take 4 steps.
        cfg: As in SamplingOptions. 2.5 by default, as in the authors' code.
        seed: As in SamplingOptions.
    """

    steps: int | dict[float, int] | None = None
    cfg: float = GUIDANCE
    seed: int = 0

    def steps_at(self, point: float) -> int | None:
        """The steps of a rate point, given by its lambda; None for the default.

        Raises:
            CodecError: steps name a point that ResULIC does not have.
        """
        if not isinstance(self.steps, dict):
            return self.steps
        if unknown := [f"{key:g}" for key in self.steps if key not in NOISE_LEVELS]:
            known = ", ".join(f"{key:g}" for key in NOISE_LEVELS)
            raise CodecError(f"resulic: steps name lambda {', '.join(unknown)}, which is no rate point: name some of {known}")
        return self.steps.get(point)


SAMPLING_DEFAULTS = ResulicSampling()


class Resulic(DiffusionCodec):
    """ResULIC: a compressed VAE latent and a residual caption, decoded by compression-aware diffusion.

    Also takes the fields of ModelOptions, ResulicSampling and RuntimeOptions. Profile tiny has control modules of full width,
    because a fifth of its narrow UNet would leave nothing.

    Args:
        point: lambda_R, the weight of the rate in the second stage of training: 1.5, 3, 6, 16 or 36, the lowest rate.
        noise_level: N_r, the noise level at which the decoded latent enters, 1 to 999. By default that of the point. Sampling from
            pure noise has none.
        eta: 0, the default, samples deterministically; 1 adds fresh noise at every step. Compression-aware diffusion needs weights
            that were trained with the same eta; a warning says if their file records another one.
        cdm: True, the default, samples by compression-aware diffusion. False samples from pure noise by DDIM, or by DDPM if eta is
            1, in 50 steps by default, for weights that were trained so.
        ans: True, with cdm False and weights trained so, starts at the noise level from the decoded latent in noise (equation 8)
            instead of pure noise: the baseline of table 4, PASD's "adjustable noise schedule", which the paper runs in 50 and 20
            steps. False by default. That it starts at the N_r of the point is a guess, because the paper does not say where.
        suffix: Words that end every prompt and take no bits. The default is that of the authors' code.
        negative: Words that the guidance leads away from. The default is that of the authors' code.
        captions: What the images show: one caption for all, or a JSON file {image id: caption}. None by default.
        residuals: What to send of the images, in the same two forms. By default it is found from captions.
        captioner: Describes the other images, and all decoded previews: a transformers model by local path or hub name; arguments
            of a chat model, {source, ...} or {url, model, ...}, see captioners.py; or a function from image to text. None by
            default.
        llm: Finds what the preview's caption lacks: a model in the same forms, or a function from text to text. By default the
            captioner, if it chats; without one, or with "none", captions are sent in full (no Srr). Both models get the
            paper's prompts.
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
    # Pairs for eta 0 and 1. The last pair, from `ans`, takes a further byte in a stream.
    samplers = ("cdm", "cdm-stochastic", "ddim", "ddpm", "ans", "ans-stochastic")
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
        ans: bool = False,
        suffix: str = SUFFIX,
        negative: str = NEGATIVE,
        captions: str | Path = "",
        residuals: str | Path | None = None,
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        llm: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        pfo: bool | dict[str, Any] = False,
        text: Literal["prior", "clip16", "utf8", "deflate", "zlib", "smallest"] = "prior",
        model: ModelOptions = MODEL_DEFAULTS,
        sampling: ResulicSampling = SAMPLING_DEFAULTS,
        runtime: RuntimeOptions = RUNTIME_DEFAULTS,
    ) -> None:
        steps = sampling.steps_at(point)
        if 0 in (noise_level, steps, sampling.cfg):  # In a stream, 0 stands for the default.
            raise CodecError(f"{self.name} takes noise_level, steps and cfg from 1")
        sampler = self._choose_sampler(cdm, ans, eta)
        overrides = Overrides(steps or (0 if cdm else PLAIN_STEPS), noise_level or 0, sampling.cfg)
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
        self._warn_of_other_training(self._header)

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        return Overrides(steps=STEPS, noise_level=NOISE_LEVELS[point], guidance=GUIDANCE)

    @classmethod
    def _choose_sampler(cls, cdm: bool, ans: bool, eta: int) -> str:
        if eta not in (0, 1):
            raise CodecError(f"{cls.name} takes eta 0 or 1")
        if ans and cdm:
            raise CodecError(f"{cls.name}: ans is for weights trained without compression-aware diffusion: set cdm: false")
        return cls.samplers[(0 if cdm else 4 if ans else 2) + eta]

    @classmethod
    def sampler_options(cls, name: str) -> dict[str, Any]:
        number = cls.samplers.index(name)
        return {"cdm": number < 2, "eta": number % 2, "ans": number >= 4}

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
        from icmbench.codecs.diffusion.sampling.enhance import EnhancementSampler
        from icmbench.codecs.diffusion.sampling.samplers import SAMPLERS

        options = self.sampler_options(name)
        if name in SAMPLERS:
            return SAMPLERS[name](sampling.steps)
        if options["ans"]:
            return EnhancementSampler(sampling.steps, sampling.noise_level, options["eta"])
        return CompressionAwareSampler(sampling.noise_level, sampling.steps, options["eta"])

    def build_decoding(self, sampler: Sampler, guidance: float, runtime: RuntimeOptions) -> Decoding:
        return replace(super().build_decoding(sampler, guidance, runtime), negative=self._residual_guide.negative)

    def _model_and_decoding(self, header: Container) -> tuple[CodecModel, Decoding]:
        if header is not self._header:
            self._warn_of_other_training(header)
        return super()._model_and_decoding(header)

    def _warn_of_other_training(self, header: Container) -> None:
        """Warn if the weights of a header's rate point were trained for another diffusion than its sampler's."""
        point, needed = self.point_of(header), self.sampler_options(self.sampler_of(header))
        if self._files.point_file(point) is None:
            return  # Random weights were not trained at all.
        # Files without a record may have been trained either way, but if with compression-aware diffusion, then with eta 0.
        trained = {"cdm": needed["cdm"], "eta": 0} | self._files.trained_with(point)
        for option in ("cdm", "eta") if needed["cdm"] else ("cdm",):  # Without it, training does not depend on eta.
            if trained[option] != needed[option]:
                sampling, training = (f"{option}: {str(values[option]).lower()}" for values in (needed, trained))
                warnings.warn(
                    f"{self.name}: lambda={point:g} samples with {sampling}, but its weights were trained with {training}: "
                    "set what they were trained with, or train others",
                    stacklevel=2,
                )
                return

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
