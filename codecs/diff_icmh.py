"""Diff-ICMH (Feng et al., NeurIPS 2025): a latent code and tags, decoded by Stable Diffusion under control.

image --VAE--> z0 --LFGCM--> y, z --> payload        tags --13 bits each--> text
payload --LFGCM--> hint --control--> Stable Diffusion 2.1, 50 steps, guided by "tag, tag, tag" --VAE--> image
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.classical import check_image
from icmbench.codecs.diffusion.files import Files, Published, run_on
from icmbench.codecs.diffusion.text import TagGuide

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding, Model, Request

LAMBDAS = (2, 4, 8, 16, 32)
PROFILES = ("sd21", "tiny")
SAMPLERS = ("ddpm", "ddim")
STEPS, GUIDANCE = {"sd21": 50, "tiny": 20}, 5.0  # of a stream that does not say otherwise
MAX_STEPS = 1000
PUBLISHED = Published("RuoyuFeng/Diff-ICMH", "difficmh_models/CNscale1.0_1_1_{point}_2_WTagGCM_bs16x1_lr0.00005_cfg7.0/model.ckpt")


class DiffIcmh:
    """Diff-ICMH: a latent code and recognised tags, decoded by Stable Diffusion 2.1.

    point: lambda, the weight of the rate in training: 2, 4, 8, 16 or 32, the lowest rate.
    profile: "sd21" is the published model, "tiny" a small one of the same shape.
    weights: a folder with the weights of the points, or the file of this point; by default the package's or the hub's; or "random".
    backbone: Stable Diffusion 2.1-base: a checkpoint file, a folder in diffusers layout or a hub repository.
    steps, sampler, cfg, seed: of the sampling. steps: 50, and 20 for tiny, by default. sampler: "ddpm" as in the published code, or
        "ddim" as in the paper. cfg: scale of the guidance by tags, 1 for none.
    tags: tags for all images, or a JSON file {image id: [tag, ...]}. tagger: a folder with RAM++'s weights and tag lists, or a
        callable from image to vocabulary indexes. vocabulary: one tag a line; RAM++'s for the published weights.
    colour: "wavelet" takes the low frequencies from the decoded hint. mode: "portable" streams decode on any processor.
    dtype, device: of all but the entropy coder; by default bfloat16 on a CUDA device if there is one, else float32 on the CPU.
    tile, overlap: latents (8 pixels a position) with a longer side are sampled in tiles, 0 for never. batch: images at a time.
    compile: have torch compile the networks, which pays off from some ten images of one size on.
    """

    name = "diff-icmh"
    version = 1
    extra = "diffusion"
    weights = "RuoyuFeng/Diff-ICMH on the hub, over Stable Diffusion 2.1-base (CreativeML Open RAIL++-M); profile tiny: none needed"
    default_points = LAMBDAS
    deterministic = False  # pixels may differ between devices and batch sizes

    def __init__(
        self,
        point: float = LAMBDAS[0],
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
        if point not in LAMBDAS or profile not in PROFILES or sampler not in SAMPLERS:
            raise CodecError(f"diff-icmh has lambda {LAMBDAS}, profile {PROFILES} and sampler {SAMPLERS}: choose from these")
        steps = STEPS[profile] if steps is None else steps
        if not 1 <= steps <= MAX_STEPS or not 1 <= cfg < 256 or batch < 1 or tile % 8 or not 0 <= overlap < (tile or 1 << 16):
            raise CodecError(
                "diff-icmh takes steps 1 to 1000, cfg 1 to 255, batch from 1, tile a multiple of 8 beyond overlap, or 0"
            )
        self._device, self._dtype = run_on(device, dtype)
        self._files = Files(self.name, profile, weights, backbone, PUBLISHED)
        self._guide = TagGuide.from_files(vocabulary, tags, tagger, self._device)
        self._model_number = 1 + LAMBDAS.index(point) + 8 * SAMPLERS.index(sampler) + 16 * PROFILES.index(profile)
        self._overrides = Overrides(steps=steps, guidance=round(cfg * 256) / 256)
        self._profile, self._seed, self._mode = profile, seed, mode
        self._limits: dict[str, Any] = {
            "wavelet": colour == "wavelet",
            "tile": tile,
            "overlap": overlap,
            "batch": batch,
            "compiled": compile,
        }
        self.point = RatePoint(f"lambda={point:g}", -float(point), {"lambda": point})
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            point=point,
            profile=profile,
            weights=[file_sha256(path) for path in self._files.needed(point)] or "random",
            sampling=[sampler, steps, cfg, seed, colour, tile, overlap],
            text=self._guide.facts,
            compute=[mode, self._dtype, self._device.partition(":")[0], version("torch"), version("diffusers")],
        )

    def compress(self, image: Image, image_id: str | None = None) -> bytes:
        """A whole stream of a uint8 RGB image of any size. image_id: whose tags to say, where a file holds them. CodecError."""
        check_image(image, self.name)
        text = self._guide.encode(image, image_id)
        usual = (self._overrides.steps, self._overrides.guidance) == (STEPS[self._profile], GUIDANCE)
        frame = Container(
            codec=self.name,
            model=self._model_number,
            width=0,
            height=0,
            payload=b"",
            seed=self._seed or None,
            overrides=None if usual else self._overrides,
            text=text,
        )
        model, decoding = self._setting(frame)
        return model.compress(image, frame, decoding, mode=self._mode, check=self._guide.checksum if text else 0)

    def compress_batch(self, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        """Streams of images, made one by one: a stream does not depend on its neighbours."""
        return [self.compress(image, image_id) for image, image_id in zip(images, ids)]

    def decompress(self, data: bytes) -> Image:
        """The image of a stream; lambda, sampler, steps, guidance and seed are the stream's. BitstreamError."""
        return self.decompress_batch([data])[0]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Image]:
        """The images of streams; those of one padded size are sampled together. BitstreamError where one is damaged."""
        from icmbench.codecs.diffusion import engine

        return engine.decompress([self._request(data) for data in streams])

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        """Bits of header, z, y and text (the tags), summing to the stream. BitstreamError."""
        return self._parse(data).rates(data)

    def _parse(self, data: bytes) -> Container:
        container = Container.from_bytes(data)
        if container.codec != self.name:
            raise BitstreamError(f"the stream was made by {container.codec}, not by {self.name}")
        number, profile = container.model & 7, container.model >> 4
        steps = container.overrides.steps if container.overrides else 0
        if not 1 <= number <= len(LAMBDAS) or profile >= len(PROFILES) or steps > MAX_STEPS:
            raise BitstreamError("the stream names a model or a number of steps that this version does not have")
        if PROFILES[profile] != self._profile:
            raise BitstreamError(f"the stream was made with profile {PROFILES[profile]!r}: set it instead of {self._profile!r}")
        return container

    def _request(self, data: bytes) -> Request:
        from icmbench.codecs.diffusion.engine import Request

        container = self._parse(data)
        prompt = self._guide.prompt(container.text)
        try:
            model, decoding = self._setting(container)
        except CodecError as error:
            raise BitstreamError(f"the stream needs weights of another lambda, which are not at hand: {error}") from error
        check = self._guide.checksum if container.text else 0
        return Request(model, container, data, decoding, prompt, container.seed or 0, check)

    def _setting(self, container: Container) -> tuple[Model, Decoding]:
        """The model that a stream's header names, and how it says to decode."""
        from icmbench.codecs.diffusion import engine, models, sampling

        overrides = container.overrides or Overrides()
        sampler = sampling.SAMPLERS[SAMPLERS[container.model >> 3 & 1]](overrides.steps or STEPS[self._profile])
        model = models.diff_icmh(self._files, LAMBDAS[(container.model & 7) - 1], self._dtype, self._device)
        return model, engine.Decoding(sampler, overrides.guidance or GUIDANCE, **self._limits)
