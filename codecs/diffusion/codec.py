"""The codec contract for the family: a model number in the header says which rate point, sampler and profile made a stream.

    model number (1 byte)    bits 0-3: 1 + index of the rate point    4-5: index of the sampler    6-7: index of the profile

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.classical import check_image
from icmbench.codecs.diffusion.backbone.files import Files, Published, run_on
from icmbench.codecs.diffusion.prompts.guides import Guide

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import CodecModel, Decoding, Request
    from icmbench.codecs.diffusion.models import Architecture
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

PROFILES = ("sd21", "tiny")
MAX_STEPS = 1000


class DiffusionCodec:
    """Base of the family's codecs. A subclass names itself, its points and samplers, and gives `usual`, `sampler` and `recipe`.

    points: the lambdas that have models. samplers: their names, in the order of their numbers in a stream.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    points: ClassVar[tuple[float, ...]]
    samplers: ClassVar[tuple[str, ...]]
    published: ClassVar[Published | None] = None
    extra = "diffusion"
    deterministic = False  # pixels may differ between devices and batch sizes

    def __init__(
        self,
        point: float,
        *,
        profile: str,
        sampler: str,
        sampling: Overrides,
        guide: Guide,
        weights: Literal["random"] | Path | None,
        backbone: str | None,
        seed: int,
        colour: str,
        mode: str,
        dtype: str | None,
        device: str | None,
        tile: int,
        overlap: int,
        batch: int,
        compile: bool,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """sampling: steps, guidance, noise level of this codec's streams; 0 for the usual. facts: more for the fingerprint. The
        rest as in DiffIcmh. CodecError."""
        if point not in self.points or profile not in PROFILES or sampler not in self.samplers:
            raise CodecError(
                f"{self.name} has lambda {self.points}, profile {PROFILES} and sampler {self.samplers}: choose from these"
            )
        chosen = self._filled(sampling, profile, point)
        if not (1 <= chosen.steps <= MAX_STEPS and 1 <= chosen.guidance < 256 and 0 <= chosen.noise_level < MAX_STEPS):
            raise CodecError(f"{self.name} takes steps 1 to {MAX_STEPS}, cfg 1 to 255, a noise level below {MAX_STEPS}")
        if batch < 1 or tile % 8 or not 0 <= overlap < (tile or 1 << 16):
            raise CodecError(f"{self.name} takes batch from 1, tile a multiple of 8 beyond overlap, or 0")
        self._device, self._dtype = run_on(device, dtype)
        self._files = Files(self.name, profile, weights, backbone, self.published)
        self._guide, self._profile, self._seed, self._mode = guide, profile, seed, mode
        self._number = 1 + self.points.index(point) | self.samplers.index(sampler) << 4 | PROFILES.index(profile) << 6
        self._overrides = None if chosen == self._filled(Overrides(), profile, point) else chosen
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
            sampling=[sampler, chosen.steps, chosen.guidance, chosen.noise_level, seed, colour, tile, overlap],
            text=guide.facts,
            compute=[mode, self._dtype, self._device.partition(":")[0], version("torch"), version("diffusers")],
            **(facts or {}),
        )

    def usual(self, profile: str, point: float) -> Overrides:
        """Steps, guidance and noise level of a stream that does not say otherwise."""
        raise NotImplementedError

    def sampler(self, name: str, sampling: Overrides) -> Sampler:
        """The sampler of that name with those parameters."""
        raise NotImplementedError

    def architecture(self) -> Architecture:
        """The networks."""
        raise NotImplementedError

    def decoding(self, sampler: Sampler, guidance: float) -> Decoding:
        """How a stream becomes pixels, within this codec's limits."""
        from icmbench.codecs.diffusion.engine import Decoding

        return Decoding(sampler, guidance, **self._limits)

    def compress(self, image: Image, image_id: str | None = None) -> bytes:
        """A whole stream of a uint8 RGB image of any size. image_id: whose words to say, where a file holds them. CodecError."""
        check_image(image, self.name)
        frame = self._frame()
        model, decoding = self._setting(frame)
        return model.compress(image, frame, decoding, self._guide, image_id, self._mode)

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
        """Bits of header, z, y and text, summing to the stream. BitstreamError."""
        return self._parse(data).rates(data)

    def networks(self, *, empty: bool = False) -> tuple[CodecModel, Decoding]:
        """The model of this point, and how its streams are decoded. empty: on the meta device, without values, to count with."""
        from icmbench.codecs.diffusion import models

        frame = self._frame()
        return (models.empty(self.architecture(), self._profile), self._decoding(frame)) if empty else self._setting(frame)

    def _frame(self) -> Container:
        return Container(self.name, self._number, 0, 0, b"", seed=self._seed or None, overrides=self._overrides)

    def _parse(self, data: bytes) -> Container:
        container = Container.from_bytes(data)
        if container.codec != self.name:
            raise BitstreamError(f"the stream was made by {container.codec}, not by {self.name}")
        index, sampler, profile = container.model & 15, container.model >> 4 & 3, container.model >> 6
        sampling = container.overrides or Overrides()
        known = 1 <= index <= len(self.points) and sampler < len(self.samplers) and profile < len(PROFILES)
        if not known or sampling.steps > MAX_STEPS or sampling.noise_level >= MAX_STEPS:
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

    def _setting(self, container: Container) -> tuple[CodecModel, Decoding]:
        """The model that a header names, and how it says to decode."""
        from icmbench.codecs.diffusion import models

        point = self.points[(container.model & 15) - 1]
        return models.load(self.architecture(), self._files, point, self._dtype, self._device), self._decoding(container)

    def _decoding(self, container: Container) -> Decoding:
        point = self.points[(container.model & 15) - 1]
        sampling = self._filled(container.overrides or Overrides(), self._profile, point)
        return self.decoding(self.sampler(self.samplers[container.model >> 4 & 3], sampling), sampling.guidance)

    def _filled(self, given: Overrides, profile: str, point: float) -> Overrides:
        """What is given, rounded as a stream keeps it, and the usual where it is 0."""
        usual = self.usual(profile, point)
        guidance = round((given.guidance or usual.guidance) * 256) / 256
        return Overrides(given.steps or usual.steps, given.noise_level or usual.noise_level, guidance)
