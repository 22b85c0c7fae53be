"""SLIM (Lee et al.): a latent code that spends its bits on what a classifier looks at, and a caption of just that.

image --VAE--> z0 --compressor--> y, z --> payload      image x RoI mask --captioner--> caption --smallest coder--> text
payload --compressor--> hint --noised--> Stable Diffusion 2.1 with control, a few steps, guided by the caption --VAE--> image

No mask is sent, and the latent code needs none: training taught the compressor where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Overrides
from icmbench.codecs.diffusion.backbone.files import run_on
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.prompts.captioners import captioner_of
from icmbench.codecs.diffusion.prompts.captions import CaptionGuide
from icmbench.codecs.diffusion.prompts.roi import MaskedCaptioner, roi_of

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

STEPS, NOISE_LEVEL, GUIDANCE = 3, 999, 1.0


class Slim(DiffusionCodec):
    """SLIM: a latent code of what a classifier looks at, and a caption of it, decoded by Stable Diffusion 2.1.

    The paper publishes neither code nor weights. What it leaves open is an option here, marked (open), with the default's reason.

    point: lambda_r, the weight of the rate in training: 1, 2, 4, 8 or 16, the lowest rate (open: ResULIC's range).
    profile: "sd21" is the paper's size, "tiny" a small one of the same shape.
    weights: a folder with the weights of the points, or the file of this point; by default the package's; or "random".
    backbone: Stable Diffusion 2.1-base: a checkpoint file, a folder in diffusers layout or a hub repository.
    control: "light", of a fifth of the UNet's width, with feedback, or "full" (open: table 3's cost fits light).
    sampler: "ddim", "ddpm", which adds fresh noise, or "none", which decodes the latent as it is, as in the ablation (open).
    steps: 3 (open: table 3's cost). noise_level: the time at which the noised latent enters, up to 999 (open; see enhance.py).
    cfg: scale of the guidance by the caption, 1 for none (open: table 3's cost leaves no second evaluation). seed: of the noise.
    captions: a caption for all images, or a JSON file {image id: caption}.
    captioner: writes the others: a transformers model (BLIP-2 in the paper) by local path or hub name; {url, model, ...} for a
        served one, see captioners.Endpoint; or a callable from image to text.
    roi: what the captioner sees is the image within a Grad-CAM mask of this classifier: "resnet50" (the paper's, with torchvision's
        weights), a file of such weights, "efficientnet-lite0"; "none" for the whole image; or a callable from image to mask.
    roi_threshold, roi_scale: of the mask (open), see roi.GradCamMask.
    text: the caption's coder, see captions.py; "zlib" is the paper's.
    colour: "wavelet" takes the low frequencies from the decoded latent. mode: "portable" streams decode on any processor.
    dtype, device: of all but the entropy coder; by default bfloat16 on a CUDA device if there is one, else float32 on the CPU.
    tile, overlap: latents (8 pixels a position) with a longer side are sampled in tiles, 0 for never. batch: images at a time.
    compile: have torch compile the networks, which pays off from some ten images of one size on.
    """

    name = "slim"
    version = 1
    points = default_points = (1, 2, 4, 8, 16)
    samplers = ("ddim", "ddpm", "none")
    weights = (
        "none are published: train slim-lambda<point>.safetensors, over Stable Diffusion 2.1-base (CreativeML Open RAIL++-M); "
        "profile tiny: none needed"
    )

    def __init__(
        self,
        point: float = 1,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        weights: Literal["random"] | Path | None = None,
        backbone: str | None = None,
        control: Literal["light", "full"] = "light",
        sampler: Literal["ddim", "ddpm", "none"] = "ddim",
        steps: int = STEPS,
        noise_level: int = NOISE_LEVEL,
        cfg: float = GUIDANCE,
        seed: int = 0,
        captions: str | Path = "",
        captioner: str | Path | Mapping[str, Any] | Callable[..., Any] | None = None,
        roi: str | Path | Callable[..., Any] = "resnet50",
        roi_threshold: float = 0.15,
        roi_scale: Literal["max", "minmax"] = "max",
        text: Literal["smallest", "utf8", "deflate", "zlib", "clip16", "prior"] = "smallest",
        colour: Literal["none", "wavelet"] = "none",
        mode: Literal["default", "portable"] = "default",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        tile: int = 96,
        overlap: int = 32,
        batch: int = 8,
        compile: bool = False,
    ) -> None:
        if not 1 <= steps <= noise_level or not cfg:
            raise CodecError(f"{self.name} takes steps from 1, a noise level of at least as many, and cfg from 1")
        if isinstance(captions, str) and captions.endswith(".json"):  # a file that is not there
            captions = Path(captions)
        place = run_on(device, dtype)[0]
        writes = captioner_of(captioner, place)
        if writes is not None:
            mask = roi_of(roi, roi_threshold, roi_scale, place)
            writes = writes if mask is None else MaskedCaptioner(writes, mask)
        self._control = control
        super().__init__(
            point,
            profile=profile,
            sampler=sampler,
            sampling=Overrides(steps, noise_level, cfg),
            guide=CaptionGuide(captions, writes, text),
            weights=weights,
            backbone=backbone,
            seed=seed,
            colour=colour,
            mode=mode,
            dtype=dtype,
            device=device,
            tile=tile,
            overlap=overlap,
            batch=batch,
            compile=compile,
            facts={"control": control},
        )

    def usual(self, profile: str, point: float) -> Overrides:
        return Overrides(STEPS, NOISE_LEVEL, GUIDANCE)

    def sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.enhance import Enhance, Undenoised

        if name == "none":
            return Undenoised()
        return Enhance(sampling.steps, sampling.noise_level, eta=int(name == "ddpm"))

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion import models

        return {"light": models.SLIM, "full": models.SLIM_FULL}[self._control]
