"""Diff-ICMH (Feng et al., NeurIPS 2025): a latent code and tags, decoded by Stable Diffusion under control.

image --VAE--> z0 --LFGCM--> y, z --> payload        tags --13 bits each--> text
payload --LFGCM--> hint --control--> Stable Diffusion 2.1, 50 steps, guided by "tag, tag, tag" --VAE--> image
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Overrides
from icmbench.codecs.diffusion.backbone.files import PRETRAINED, PublishedWeights, resolve_device
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.options import (
    MODEL_DEFAULTS,
    RUNTIME_DEFAULTS,
    ModelOptions,
    RuntimeOptions,
    SamplingOptions,
    flat_options,
)
from icmbench.codecs.diffusion.prompts.taggers import build_tag_guide

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

STEPS = {"sd21": 50, "tiny": 20}  # 50 as in the published code, and fewer for laptops and tests.
GUIDANCE = 5.0
SAMPLING_DEFAULTS = SamplingOptions(cfg=GUIDANCE)


class DiffIcmh(DiffusionCodec):
    """Diff-ICMH: a latent code and recognised tags, decoded by Stable Diffusion 2.1.

    Also takes the fields of ModelOptions, SamplingOptions and RuntimeOptions. By default `steps` is 50, as published, and 20 for
    tiny; `cfg` is 5. Weights for sd21 are on the hub, and weights for tiny come with this package.

    Args:
        point: Lambda, the weight of the rate in training: 2, 4, 8, 16 or 32, the lowest rate.
        sampler: "ddpm", the default, as in the published code, or "ddim", as in the paper.
        tags: Tags for all images, or a JSON file {image id: [tag, ...]}. None by default.
        tagger: Recognises the tags of the other images: a folder with RAM++'s weights and tag lists, or a function from image to
            vocabulary indexes. None by default, because RAM++ is a download of 3 GB.
        vocabulary: A text file with one tag per line. By default the list in RAM++'s folder, or for tiny, with the weights of this
            package, the words that their training used.

    Raises:
        CodecError: an option is out of its range, or a file, weights or the device cannot be had.
    """

    name = "diff-icmh"
    version = 2
    points = default_points = (2, 4, 8, 16, 32)
    samplers = ("ddpm", "ddim")
    published = PublishedWeights(
        "RuoyuFeng/Diff-ICMH", "difficmh_models/CNscale1.0_1_1_{point}_2_WTagGCM_bs16x1_lr0.00005_cfg7.0/model.ckpt"
    )
    weights = "RuoyuFeng/Diff-ICMH on the hub, over Stable Diffusion 2.1-base (CreativeML Open RAIL++-M); tiny: with the package"

    @flat_options
    def __init__(
        self,
        point: float = 2,
        *,
        sampler: Literal["ddpm", "ddim"] = "ddpm",
        tags: list[str] | Path | None = None,
        tagger: Path | Callable[..., Any] | None = None,
        vocabulary: Path | None = None,
        model: ModelOptions = MODEL_DEFAULTS,
        sampling: SamplingOptions = SAMPLING_DEFAULTS,
        runtime: RuntimeOptions = RUNTIME_DEFAULTS,
    ) -> None:
        if model.profile == "tiny" and model.weights is None and vocabulary is None and tagger is None:
            vocabulary = PRETRAINED / model.profile / "vocabulary.txt"
        if sampling.steps == 0 or sampling.cfg == 0:  # In a stream, 0 stands for the default.
            raise CodecError(f"{self.name} takes steps and cfg from 1")
        super().__init__(
            point,
            sampler=sampler,
            guide=build_tag_guide(vocabulary, tags, tagger, resolve_device(runtime.device, runtime.dtype)[0]),
            sampling=Overrides(steps=sampling.steps or 0, guidance=sampling.cfg),
            seed=sampling.seed,
            model=model,
            runtime=runtime,
        )

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        return Overrides(steps=STEPS[profile], guidance=GUIDANCE)

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.samplers import SAMPLERS

        return SAMPLERS[name](sampling.steps)

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.models import DIFF_ICMH

        return DIFF_ICMH
