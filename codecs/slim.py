"""SLIM (Lee et al.): a latent code that spends its bits on what a classifier looks at, and a caption of just that.

image --VAE--> z0 --compressor--> y, z --> payload      image x RoI mask --captioner--> caption --smallest coder--> text
payload --compressor--> hint --noised--> Stable Diffusion 2.1 with control, a few steps, guided by the caption --VAE--> image

No mask is sent, and the latent code needs none: training taught the compressor where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from icmbench.codecs.diffusion.prompts.captioners import build_captioner
from icmbench.codecs.diffusion.prompts.captions import CaptionGuide
from icmbench.codecs.diffusion.prompts.roi import MaskedCaptioner, build_masker

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

STEPS, NOISE_LEVEL, GUIDANCE = 3, 999, 1.0


@dataclass(frozen=True)
class SlimSampling(SamplingOptions):
    """SLIM's sampling options. What its paper leaves open is marked (open), with the default's reason.

    Args:
        steps: Steps of the sampler, at most `noise_level`. 3 by default (open: the cost in table 3 fits three evaluations).
        cfg: As in SamplingOptions. 1 by default, no guidance (open: the cost in table 3 leaves no second evaluation per step).
        seed: As in SamplingOptions.
    """

    steps: int = STEPS
    cfg: float = GUIDANCE


class Slim(DiffusionCodec):
    """SLIM: a latent code of what a classifier looks at, and a caption of it, decoded by Stable Diffusion 2.1.

    The paper publishes neither code nor weights. What it leaves open is an option here, marked (open), with the default's reason.
    Also takes the fields of ModelOptions, SlimSampling and RuntimeOptions.

    Args:
        point: lambda_r, the weight of the rate in training: 1, 2, 4, 8 or 16, the lowest rate (open: ResULIC's range).
        control: Width of the control module. "light", the default, has a fifth of the UNet's width, and feedback; "full" has the
            whole width (open: the cost in table 3 fits light).
        sampler: "ddim", the default; "ddpm", which adds fresh noise; or "none", which decodes the hint as it is, as in the paper's
            ablation (open).
        noise_level: Time at which the noised hint enters, up to 999, the default (open: the paper's words suggest nearly pure
            noise, see enhance.py).
        captions: A caption for all images, or a JSON file {image id: caption}. None by default.
        captioner: Writes the captions of the other images: a transformers model (BLIP-2 in the paper) by local path or hub name;
            arguments {url, model, ...} of captioners.Endpoint; or a function from image to text. None by default.
        roi: What the captioner looks at: the image within a Grad-CAM mask of this classifier. "resnet50", the paper's and the
            default, has torchvision's weights; a path names a file of such weights; "efficientnet-lite0" comes with a package.
            "none" is the whole image, and a function maps an image to its mask.
        roi_threshold: Share of its maximum, 0 to 1, at which the mask's map is cut; see roi.GradCamMasker for the default (open).
        roi_scale: How the map is scaled before that, "max" or "minmax"; see roi.GradCamMasker (open).
        text: Coder of the caption, see captions.py. "smallest" by default; "zlib" is the paper's.

    Raises:
        CodecError: an option is out of its range, or a file, weights or the device cannot be had.
    """

    name = "slim"
    version = 1
    points = default_points = (1, 2, 4, 8, 16)
    samplers = ("ddim", "ddpm", "none")
    weights = (
        "none are published: train slim-lambda<point>.safetensors, over Stable Diffusion 2.1-base (CreativeML Open RAIL++-M); "
        "profile tiny: none needed"
    )

    @flat_options
    def __init__(
        self,
        point: float = 1,
        *,
        control: Literal["light", "full"] = "light",
        sampler: Literal["ddim", "ddpm", "none"] = "ddim",
        noise_level: int = NOISE_LEVEL,
        captions: str | Path = "",
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        roi: str | Path | Callable[..., Any] = "resnet50",
        roi_threshold: float = 0.15,
        roi_scale: Literal["max", "minmax"] = "max",
        text: Literal["smallest", "utf8", "deflate", "zlib", "clip16", "prior"] = "smallest",
        model: ModelOptions = MODEL_DEFAULTS,
        sampling: SlimSampling = SlimSampling(),
        runtime: RuntimeOptions = RUNTIME_DEFAULTS,
    ) -> None:
        if not 1 <= sampling.steps <= noise_level or not sampling.cfg:
            raise CodecError(f"{self.name} takes steps from 1, a noise level of at least as many, and cfg from 1")
        if isinstance(captions, str) and captions.endswith(".json"):  # A missing file must not become a caption.
            captions = Path(captions)
        device = resolve_device(runtime.device, runtime.dtype)[0]
        describer = build_captioner(captioner, device)
        masker = None if describer is None else build_masker(roi, roi_threshold, roi_scale, device)
        if describer is not None and masker is not None:
            describer = MaskedCaptioner(describer, masker)
        self._control = control
        super().__init__(
            point,
            sampler=sampler,
            guide=CaptionGuide(captions, describer, text),
            sampling=Overrides(sampling.steps, noise_level, sampling.cfg),
            seed=sampling.seed,
            model=model,
            runtime=runtime,
            facts={"control": control},
        )

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        return Overrides(STEPS, NOISE_LEVEL, GUIDANCE)

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.enhance import EnhancementSampler, IdentitySampler

        if name == "none":
            return IdentitySampler()
        return EnhancementSampler(sampling.steps, sampling.noise_level, eta=int(name == "ddpm"))

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion import models

        return {"light": models.SLIM, "full": models.SLIM_FULL}[self._control]
