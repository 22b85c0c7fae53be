"""A codec at one rate point and seed, and the uncompressed originals, seen alike by everything that computes and scores.

What a codec may lack or have (batches, a rate breakdown, facts of an image) is resolved here once, so that nobody else asks for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from icmbench.codecs.base import Codec, CodecError, compress_all, decompress_all, estimates_rate, reconstruct_all
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import UNCOMPRESSED
from icmbench.harness.store.keys import digest
from icmbench.tasks.base import Image


class Series:
    """One codec at one rate point and seed, over all images.

    Args:
        label: the codec's label in the experiment.
        point: label of the rate point.
        seed: the codec's seed; None if the experiment lists no seeds.
        codec: the codec.
        point_value: the entry of the experiment's `points` that the codec was constructed with.

    Attributes:
        is_original: False; True for `Originals`.
        deterministic: whether a stream always decodes to the same pixels.
        background: whether the codec may run in a thread beside the task models.
        on_gpu: whether the codec's networks run on a GPU, so that it belongs to the processes that hold the models.
        fingerprint: everything that decides the bytes of its streams and their pixels, beside image and facts.
        measured_elsewhere: whether stream sizes come from the codec's `stream_bytes`, so that there are no streams to share.
        estimated: whether the codec estimates its rate, so that there are no streams at all: `reconstruct` takes the place of
            `encode`, `decode` and `measure`.

    Raises:
        UserError: the codec can neither write streams nor reconstruct, or has both ways.
    """

    is_original = False

    def __init__(self, label: str, point: str, seed: int | None, codec: Codec, point_value: Any = None) -> None:
        self.label, self.point, self.seed, self.codec, self.point_value = label, point, seed, codec, point_value
        try:
            self.estimated = estimates_rate(codec)
        except CodecError as error:
            raise UserError(f"codec {label!r} {error}; see icmbench.codecs.base.Codec") from None
        self.deterministic = bool(getattr(codec, "deterministic", True))
        self.background = bool(getattr(codec, "background", False))
        self.measured_elsewhere = hasattr(codec, "stream_bytes")
        self.on_gpu = str(getattr(codec, "device", "cpu")).partition(":")[0] in ("cuda", "mps")
        self._facts = getattr(codec, "facts", None)
        self._stream_bytes = getattr(codec, "stream_bytes", None)
        self._rate_breakdown = getattr(codec, "rate_breakdown", None)

    @property
    def fingerprint(self) -> str:
        """See the class. It is read when it is needed, because a codec that can only decode gets that of its pack later."""
        return json.dumps([self.codec.fingerprint, self.seed])

    @property
    def name(self) -> str:
        """The series as people read it."""
        return f"{self.label} {self.point}" + ("" if self.seed is None else f" seed={self.seed}")

    @property
    def point_name(self) -> str:
        """The rate point with its seed."""
        return self.point if self.seed is None else f"{self.point}.seed={self.seed}"

    @property
    def about(self) -> dict[str, Any]:
        """What shards say about the codec, for people and for packs."""
        return {
            "codec": self.codec.name,
            "point": self.point,
            "given": self.point_value,
            "seed": self.seed,
            "deterministic": self.deterministic,
            **({"estimated": True} if self.estimated else {}),
        }

    def facts(self, image_id: str) -> str:
        """A digest of what the codec takes from files by the image's id; empty if it takes nothing."""
        facts = None if self._facts is None else self._facts(image_id)
        return "" if facts is None else digest(facts)

    def encode(self, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        """Streams of images, uint8 (height, width, 3) each. Raises CodecError if one is not bytes or empty."""
        streams = compress_all(self.codec, images, ids)
        for image_id, data in zip(ids, streams, strict=False):
            if not isinstance(data, bytes) or not data:
                result = "no bytes" if isinstance(data, bytes) else type(data).__name__
                raise CodecError(f"compress gave {result} for {image_id!r}; a stream is bytes, at least one")
        return streams

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """Reconstructions, uint8 (height, width, 3) each, if the codec keeps its contract."""
        return decompress_all(self.codec, streams)

    def reconstruct(self, images: Sequence[Image], ids: Sequence[str]) -> list[tuple[Image, float]]:
        """Reconstructions of images, uint8 (height, width, 3) each, and estimated bits, if the codec estimates its rate.

        Raises:
            CodecError: the codec gave another number of results than images, one that is no pair of pixels and bits, or bits that
                are not finite and above 0.
        """
        results = reconstruct_all(self.codec, images, ids)
        if len(results) != len(images):
            raise CodecError(f"reconstruct gave {len(results)} results for {len(images)} images")
        return [_check_estimate(image_id, result) for image_id, result in zip(ids, results, strict=True)]

    def measure(self, data: bytes) -> dict[str, Any]:
        """A stream's size in bytes and, as JSON, the bits of each part if the codec itemises it.

        Raises:
            CodecError: the parts do not sum to the size.
        """
        size = len(data) if self._stream_bytes is None else int(self._stream_bytes(data))
        if self._rate_breakdown is None:
            return {"bytes": size, "parts": None}
        parts = {part: int(bits) for part, bits in self._rate_breakdown(data).items()}
        if sum(parts.values()) != 8 * size:
            raise CodecError(f"rate_breakdown sums to {sum(parts.values())} bits of a stream of {8 * size}")
        return {"bytes": size, "parts": json.dumps(parts)}


def _check_estimate(image_id: str, result: Any) -> tuple[Image, float]:
    """One result of `reconstruct`, whose pixels are not looked at yet."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise CodecError(
            f"reconstruct gave {type(result).__name__} for {image_id!r}; a reconstruction is a pair of pixels and bits"
        )
    image, bits = result
    if not isinstance(bits, Real) or isinstance(bits, bool) or not math.isfinite(bits) or bits <= 0:
        what = f"{float(bits):g}" if isinstance(bits, Real) and not isinstance(bits, bool) else type(bits).__name__
        raise CodecError(f"reconstruct gave {what} as the bits of {image_id!r}; bits are a finite number above 0")
    return image, float(bits)


class Originals:
    """The uncompressed images as a series: they have no streams, and their pixels are those of the source."""

    is_original = True
    label, point, name, point_name = UNCOMPRESSED, "-", f"{UNCOMPRESSED} -", "-"
    seed, point_value = None, None
    deterministic = background = True
    measured_elsewhere = estimated = False
    fingerprint = ""


AnySeries = Series | Originals
