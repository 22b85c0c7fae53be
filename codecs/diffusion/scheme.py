"""How the header of a stream says which rate point, sampler and profile made it, and how to decode it.

The model number, one byte, holds all three:

    bits 0-3: 1 + index of the rate point    bits 4-5: index of the sampler    bits 6-7: index of the profile

A codec with more than four samplers has the further bits of the index in the container's variant.

Sampling parameters are in the header if they differ from the defaults of the rate point. Imports nothing heavy.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.diffusion.options import RuntimeOptions

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import Decoding
    from icmbench.codecs.diffusion.sampling.samplers import Sampler

PROFILES = ("sd21", "tiny")
MAX_STEPS = 1000


class StreamScheme:
    """The points and samplers of one codec, their numbers in a header, and how streams with them decode.

    Attributes:
        name: The codec's name in tables and streams.
        points: The lambdas that have models, in the order of their numbers in a stream.
        samplers: The names of the samplers, in the order of their numbers in a stream.
    """

    name: ClassVar[str]
    points: ClassVar[tuple[float, ...]]
    samplers: ClassVar[tuple[str, ...]]

    @classmethod
    def default_sampling(cls, profile: str, point: float) -> Overrides:
        """Steps, guidance and noise level of a stream that does not carry its own."""
        raise NotImplementedError

    def build_sampler(self, name: str, sampling: Overrides) -> Sampler:
        """The sampler of that name with these parameters.

        Raises:
            CodecError: the parameters do not fit each other.
        """
        raise NotImplementedError

    def build_decoding(self, sampler: Sampler, guidance: float, runtime: RuntimeOptions) -> Decoding:
        """How a stream with this sampler and guidance becomes pixels."""
        from icmbench.codecs.diffusion.engine import Decoding

        return Decoding(sampler, guidance, **decoding_options(runtime))

    @classmethod
    def complete_sampling(cls, sampling: Overrides, profile: str, point: float) -> Overrides:
        """Sampling parameters with defaults in the place of zeros, rounded as a stream keeps them."""
        default = cls.default_sampling(profile, point)
        guidance = round((sampling.guidance or default.guidance) * 256) / 256
        return Overrides(sampling.steps or default.steps, sampling.noise_level or default.noise_level, guidance)

    def model_number(self, point: float, sampler: str, profile: str) -> int:
        """The number in a header for a rate point, sampler and profile, without the bits of the sampler that are in the variant.

        Raises:
            CodecError: the codec lacks one of the three.
        """
        if point not in self.points or profile not in PROFILES or sampler not in self.samplers:
            raise CodecError(
                f"{self.name} has lambda {self.points}, profile {PROFILES} and sampler {self.samplers}: choose from these"
            )
        return 1 + self.points.index(point) | (self.samplers.index(sampler) & 3) << 4 | PROFILES.index(profile) << 6

    def common_header(self, point: float, sampler: str, profile: str, sampling: Overrides, seed: int) -> Container:
        """What all streams of one codec at one point have in common; they differ in the image. Seed 0 takes no bytes.

        Raises:
            CodecError: the codec lacks the point, sampler or profile.
        """
        number = self.model_number(point, sampler, profile)
        complete = self.complete_sampling(sampling, profile, point)
        overrides = None if complete == self.complete_sampling(Overrides(), profile, point) else complete
        variant = self.samplers.index(sampler) >> 2
        return Container(self.name, number, 0, 0, payload=b"", seed=seed or None, overrides=overrides, variant=variant)

    def parse(self, data: bytes, profile: str) -> Container:
        """Parse a stream.

        Raises:
            BitstreamError: the bytes are no stream of this codec and profile.
        """
        container = self._parse_any_profile(data)
        if self.profile_of(container) != profile:
            raise BitstreamError(f"the stream was made with profile {self.profile_of(container)!r}: set it instead of {profile!r}")
        return container

    @classmethod
    def _parse_any_profile(cls, data: bytes) -> Container:
        """Parse a stream of any profile. Raises BitstreamError if the bytes are no stream of this codec."""
        container = Container.from_bytes(data)
        if container.codec != cls.name:
            raise BitstreamError(f"the stream was made by {container.codec}, not by {cls.name}")
        point_number, sampler_index, profile_index = container.model & 15, cls._sampler_index(container), container.model >> 6
        sampling = container.overrides or Overrides()
        valid = 1 <= point_number <= len(cls.points) and sampler_index < len(cls.samplers) and profile_index < len(PROFILES)
        if not valid or sampling.steps > MAX_STEPS or sampling.noise_level >= MAX_STEPS:
            raise BitstreamError("the stream names a model or a number of steps that this version does not have")
        return container

    @classmethod
    def point_of(cls, container: Container) -> float:
        """The rate point that a parsed header names."""
        return cls.points[(container.model & 15) - 1]

    @classmethod
    def sampler_of(cls, container: Container) -> str:
        """The name of the sampler that a parsed header names."""
        return cls.samplers[cls._sampler_index(container)]

    @classmethod
    def _sampler_index(cls, container: Container) -> int:
        return container.model >> 4 & 3 | container.variant << 2

    @classmethod
    def profile_of(cls, container: Container) -> str:
        """The profile that a parsed header names."""
        return PROFILES[container.model >> 6]

    @classmethod
    def sampler_options(cls, name: str) -> dict[str, Any]:
        """The constructor arguments that choose a sampler, by name."""
        return {"sampler": name}

    @classmethod
    def stream_options(cls, data: bytes) -> dict[str, Any]:
        """The point and the options with which a stream was made, as far as it states them; see `icmbench.codecs.base.Codec`.

        Raises:
            BitstreamError: the bytes are no stream of this codec.
        """
        container = cls._parse_any_profile(data)
        point, profile = cls.point_of(container), cls.profile_of(container)
        sampling = cls.complete_sampling(container.overrides or Overrides(), profile, point)
        options = {
            "point": point,
            "profile": profile,
            "mode": "portable" if container.portable else "default",
            "steps": sampling.steps,
            "noise_level": sampling.noise_level,
            "cfg": sampling.guidance,
            "seed": container.seed or 0,
            **cls.sampler_options(cls.sampler_of(container)),
        }
        accepted = inspect.signature(cls).parameters  # Not every codec of the family lets its user set all of them.
        return {name: value for name, value in options.items() if name in accepted}

    def decoding_of(self, container: Container, profile: str, runtime: RuntimeOptions) -> Decoding:
        """How a stream with this parsed header becomes pixels.

        Raises:
            CodecError: the header's sampling parameters do not fit each other.
        """
        sampling = self.complete_sampling(container.overrides or Overrides(), profile, self.point_of(container))
        sampler = self.build_sampler(self.sampler_of(container), sampling)
        return self.build_decoding(sampler, sampling.guidance, runtime)


def decoding_options(runtime: RuntimeOptions) -> dict[str, Any]:
    """The arguments of `engine.Decoding` that follow from the runtime options."""
    return {
        "wavelet": runtime.colour == "wavelet",
        "tile": runtime.tile,
        "overlap": runtime.overlap,
        "batch": runtime.batch,
        "compiled": runtime.compile,
    }
