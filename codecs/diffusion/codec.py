"""The codec contract for the family, and the words that join a coded latent in a stream.

    compress      pixels --engine--> payload, draft --guide--> words        header, payload, words --Container--> bytes
    decompress    bytes --Container--> model, sampler, words --guide--> prompt --engine--> pixels

Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.bitstream import Container, Overrides
from icmbench.codecs.checks import check_image
from icmbench.codecs.diffusion.backbone.files import PublishedWeights, WeightFiles, resolve_device
from icmbench.codecs.diffusion.options import ModelOptions, RuntimeOptions
from icmbench.codecs.diffusion.prompts.guides import Guide
from icmbench.codecs.diffusion.scheme import MAX_STEPS, StreamScheme

if TYPE_CHECKING:
    from icmbench.codecs.diffusion.engine import CodecModel, Decoding, Request
    from icmbench.codecs.diffusion.models import Architecture


class DiffusionCodec(StreamScheme):
    """Base of the family's codecs.

    A subclass sets the class attributes here and in StreamScheme, and gives `architecture`, `default_sampling`, `build_sampler`.

    Args:
        point: Lambda of the rate point, one of `points`.
        sampler: One of `samplers`.
        guide: Chooses and codes the words.
        sampling: Steps, noise level and guidance of the streams that this codec makes; 0 for the default.
        seed: Seed of the noise of the streams that this codec makes.
        model: Networks and weights.
        runtime: How coding runs.
        facts: What else decides bytes or pixels, as JSON values by name, for the fingerprint.

    Raises:
        CodecError: an option is out of its range, or weights or the device cannot be had.
    """

    version: ClassVar[int]  # Raised by hand when bytes or pixels change.
    # The hub repository and path of the authors' weights, if they published any.
    published: ClassVar[PublishedWeights | None] = None
    extra = "diffusion"
    deterministic = False  # Pixels may differ between devices and batch sizes.

    def __init__(
        self,
        point: float,
        *,
        sampler: str,
        guide: Guide,
        sampling: Overrides,
        model: ModelOptions,
        runtime: RuntimeOptions,
        seed: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        profile = model.profile
        self._header = self.common_header(point, sampler, profile, sampling, seed)
        sampling = self.complete_sampling(sampling, profile, point)
        _check_ranges(self.name, sampling, runtime)
        self.device, self._dtype = resolve_device(runtime.device, runtime.dtype)
        self._files = WeightFiles(self.name, profile, model.weights, model.backbone, self.published)
        self._guide, self._profile, self._runtime = guide, profile, runtime
        self.point = RatePoint(f"lambda={point:g}", -float(point), {"lambda": point})
        numbers = [sampling.steps, sampling.guidance, sampling.noise_level, seed]
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            point=point,
            profile=profile,
            weights=[file_sha256(path) for path in self._files.required_files(point)] or "random",
            sampling=[sampler, *numbers, runtime.colour, runtime.tile, runtime.overlap],
            text=guide.facts,
            compute=[runtime.mode, self._dtype, self.device.partition(":")[0], version("torch"), version("diffusers")],
            **(facts or {}),
        )

    def facts(self, image_id: str) -> Any:
        """The words that the user's files hold for this image, as JSON; None if they hold none. See `codecs.base.Codec`."""
        return self._guide.image_facts(image_id)

    def architecture(self) -> Architecture:
        """The networks."""
        raise NotImplementedError

    def compress(self, image: Image, image_id: str | None = None) -> bytes:
        """The whole stream of an image.

        Args:
            image: uint8 RGB of any size, (H, W, 3).
            image_id: The image's id, if a file holds its words by image id.

        Raises:
            CodecError: the image is no such array, there are no words for its id, or a model cannot be had or fails.
        """
        check_image(image, self.name)
        import torch

        model, decoding = self._model_and_decoding(self._header)
        with torch.no_grad():  # A guide may call a user's function, which need not switch gradients off.
            coded, draft = model.compress(image, decoding, self._runtime.mode)
            text = self._guide.encode(image, image_id, draft)
        return replace(
            self._header,
            width=image.shape[1],
            height=image.shape[0],
            payload=coded.payload,
            z_bytes=min(round(coded.z_bits / 8), len(coded.payload)),
            checksum=coded.checksum ^ model.digest ^ (self._guide.checksum if text else 0),
            portable=self._runtime.mode == "portable",
            text=text,
        ).to_bytes()

    def compress_batch(self, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        """The streams of images, made one by one, because a stream must not depend on its neighbours."""
        return [self.compress(image, image_id) for image, image_id in zip(images, ids)]

    def decompress(self, data: bytes) -> Image:
        """The reconstruction of a stream. Lambda, sampler, steps, guidance and seed are the stream's, not this codec's.

        Raises:
            BitstreamError: the stream is damaged, or needs other weights, another codec, profile or vocabulary.
        """
        return self.decompress_batch([data])[0]

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Image]:
        """The reconstructions of streams; those of one padded size are sampled together. Raises what `decompress` raises."""
        from icmbench.codecs.diffusion import engine

        return engine.decompress([self._request(data) for data in streams])

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        """Bits of the header, z, y and text of a stream; their sum is the stream's size.

        Raises:
            BitstreamError: the bytes are no stream of this codec and profile.
        """
        return self.parse(data, self._profile).rates(data)

    def networks(self, *, empty: bool = False) -> tuple[CodecModel, Decoding]:
        """The model of this point, and how its streams are decoded. Raises CodecError if weights cannot be had.

        Args:
            empty: Whether to leave the model on the meta device, without values, to count its parameters and operations.
        """
        if not empty:
            return self._model_and_decoding(self._header)
        from icmbench.codecs.diffusion import models

        model = models.build_meta_model(self.architecture(), self._profile)
        return model, self.decoding_of(self._header, self._profile, self._runtime)

    def _request(self, data: bytes) -> Request:
        from icmbench.codecs.diffusion.engine import Request

        container = self.parse(data, self._profile)
        prompt = self._guide.prompt(container.text)
        try:
            model, decoding = self._model_and_decoding(container)
        except CodecError as error:
            raise BitstreamError(f"the stream needs weights of another lambda, which are not at hand: {error}") from error
        check = self._guide.checksum if container.text else 0
        return Request(model, container, data, decoding, prompt, container.seed or 0, check)

    def _model_and_decoding(self, header: Container) -> tuple[CodecModel, Decoding]:
        from icmbench.codecs.diffusion import models

        model = models.load_model(self.architecture(), self._files, self.point_of(header), self._dtype, self.device)
        return model, self.decoding_of(header, self._profile, self._runtime)


def _check_ranges(codec: str, sampling: Overrides, runtime: RuntimeOptions) -> None:
    if not (1 <= sampling.steps <= MAX_STEPS and 1 <= sampling.guidance < 256 and 0 <= sampling.noise_level < MAX_STEPS):
        raise CodecError(f"{codec} takes steps 1 to {MAX_STEPS}, cfg 1 to 255, a noise level below {MAX_STEPS}")
    if runtime.batch < 1 or runtime.tile % 8 or not 0 <= runtime.overlap < (runtime.tile or 1 << 16):
        raise CodecError(f"{codec} takes batch from 1, tile a multiple of 8 beyond overlap, or 0")
