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
from icmbench.codecs.diffusion.backbone.files import PRETRAINED, Published, run_on
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.prompts.tags import TagGuide

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

STEPS, GUIDANCE = {"sd21": 50, "tiny": 20}, 5.0


class DiffIcmh(DiffusionCodec):
    """Diff-ICMH: a latent code and recognised tags, decoded by Stable Diffusion 2.1.

    point: lambda, the weight of the rate in training: 2, 4, 8, 16 or 32, the lowest rate.
    profile: "sd21" is the published model, "tiny" a small one of the same shape.
    weights: a folder with the weights of the points, or the file of this point; by default the package's or the hub's; or "random".
    backbone: Stable Diffusion 2.1-base: a checkpoint file, a folder in diffusers layout or a hub repository.
    steps, sampler, cfg, seed: of the sampling. steps: 50, and 20 for tiny, by default. sampler: "ddpm" as in the published code, or
        "ddim" as in the paper. cfg: scale of the guidance by tags, 1 for none.
    tags: tags for all images, or a JSON file {image id: [tag, ...]}. tagger: a folder with RAM++'s weights and tag lists, or a
        callable from image to vocabulary indexes. vocabulary: one tag a line; RAM++'s for the published weights; with
        tiny's own weights, by default the words that their training knew.
    colour: "wavelet" takes the low frequencies from the decoded hint. mode: "portable" streams decode on any processor.
    dtype, device: of all but the entropy coder; by default bfloat16 on a CUDA device if there is one, else float32 on the CPU.
    tile, overlap: latents (8 pixels a position) with a longer side are sampled in tiles, 0 for never. batch: images at a time.
    compile: have torch compile the networks, which pays off from some ten images of one size on.
    """

    name = "diff-icmh"
    version = 2
    points = default_points = (2, 4, 8, 16, 32)
    samplers = ("ddpm", "ddim")
    published = Published(
        "RuoyuFeng/Diff-ICMH", "difficmh_models/CNscale1.0_1_1_{point}_2_WTagGCM_bs16x1_lr0.00005_cfg7.0/model.ckpt"
    )
    weights = "RuoyuFeng/Diff-ICMH on the hub, over Stable Diffusion 2.1-base (CreativeML Open RAIL++-M); tiny: with the package"

    def __init__(
        self,
        point: float = 2,
        *,
        profile: Literal["sd21", "tiny"] = "sd21",
        weights: Literal["random"] | Path | None = None,
        backbone: str | None = None,
        steps: int | None = None,
        sampler: Literal["ddpm", "ddim"] = "ddpm",
        cfg: float = GUIDANCE,
        seed: int = 0,
        tags: list[str] | Path | None = None,
        tagger: Path | Callable[..., Any] | None = None,
        vocabulary: Path | None = None,
        colour: Literal["none", "wavelet"] = "none",
        mode: Literal["default", "portable"] = "default",
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        device: str | None = None,
        tile: int = 96,
        overlap: int = 32,
        batch: int = 8,
        compile: bool = False,
    ) -> None:
        if profile == "tiny" and weights is None and vocabulary is None and tagger is None:
            vocabulary = PRETRAINED / profile / "vocabulary.txt"
        if steps == 0 or cfg == 0:  # 0 means the usual value in a stream
            raise CodecError(f"{self.name} takes steps and cfg from 1")
        super().__init__(
            point,
            profile=profile,
            sampler=sampler,
            sampling=Overrides(steps=steps or 0, guidance=cfg),
            guide=TagGuide.from_files(vocabulary, tags, tagger, run_on(device, dtype)[0]),
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
        )

    def usual(self, profile: str, point: float) -> Overrides:
        return Overrides(steps=STEPS[profile], guidance=GUIDANCE)

    def sampler(self, name: str, sampling: Overrides) -> Sampler:
        from icmbench.codecs.diffusion.sampling.samplers import SAMPLERS

        return SAMPLERS[name](sampling.steps)

    def architecture(self) -> Architecture:
        from icmbench.codecs.diffusion.models import DIFF_ICMH

        return DIFF_ICMH
