"""Reconstructions of images, and what is recorded of them: decoded from streams, or given with estimated bits.

source pixels -> stream -> reconstruction               a codec that writes real bytes
source pixels -> reconstruction and estimated bits      a codec that estimates its rate
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icmbench.codecs.base import CodecError
from icmbench.harness.work.attempt import attempt
from icmbench.harness.work.pixels import read_only
from icmbench.harness.work.series import Series
from icmbench.harness.work.stream_source import Stream
from icmbench.tasks.base import Image


@dataclass(frozen=True)
class Coded:
    """The reconstruction of one image, and how it was had.

    Attributes:
        image: the reconstruction, uint8 (height, width, 3).
        columns: makes those columns of its row that a codec of streams and one that estimates its rate do not share. It raises
            CodecError if the codec's parts of a stream do not sum to its size.
    """

    image: Image
    columns: Callable[[], Mapping[str, Any]]


def decode_streams(
    series: Series, streams: Mapping[str, Stream], originals: Mapping[str, Image], tolerant: bool
) -> dict[str, Coded | Exception]:
    """Decode streams.

    Args:
        series: the codec at its point and seed.
        streams: the streams by image id.
        originals: source pixels of at least these images, uint8 (height, width, 3).
        tolerant: whether an image that fails is reported beside the others.

    Returns:
        By image id the reconstruction or, if `tolerant`, the exception that the image raises.

    Raises:
        CodecError: a reconstruction is of another shape or type than its image, and `tolerant` is false.
    """
    ids = list(streams)
    if not ids:
        return {}

    def decode(indices: Sequence[int]) -> Sequence[Image]:
        batch = [ids[k] for k in indices]
        decoded = series.decode([streams[i].data for i in batch])
        for image_id, image in zip(batch, decoded, strict=False):
            _check_pixels(image_id, image, originals[image_id])
        return [read_only(image) for image in decoded]

    def columns(stream: Stream) -> dict[str, Any]:
        return {
            "stream": hashlib.sha256(stream.data).hexdigest(),
            "data": stream.data,
            "encode_seconds": stream.encode_seconds,
            "decode_seconds": seconds,
            **series.measure(stream.data),
        }

    start = time.perf_counter()
    results = attempt(decode, range(len(ids)), tolerant, "codec")
    seconds = (time.perf_counter() - start) / len(ids)
    return {
        ids[k]: result if isinstance(result, Exception) else Coded(result, functools.partial(columns, streams[ids[k]]))
        for k, result in results.items()
    }


def estimate(series: Series, ids: Sequence[str], originals: Mapping[str, Image], tolerant: bool) -> dict[str, Coded | Exception]:
    """Reconstruct images by a codec that estimates its rate.

    Args:
        series: the codec at its point and seed.
        ids: the images.
        originals: source pixels of at least these images, uint8 (height, width, 3).
        tolerant: whether an image that fails is reported beside the others.

    Returns:
        As `decode_streams`.

    Raises:
        CodecError: the codec broke its contract, and `tolerant` is false.
    """
    if not ids:
        return {}

    def reconstruct(indices: Sequence[int]) -> Sequence[tuple[Image, float]]:
        batch = [ids[k] for k in indices]
        pairs = series.reconstruct([originals[i] for i in batch], batch)
        for image_id, (image, _) in zip(batch, pairs, strict=True):
            _check_pixels(image_id, image, originals[image_id])
        return [(read_only(image), bits) for image, bits in pairs]

    start = time.perf_counter()
    results = attempt(reconstruct, range(len(ids)), tolerant, "codec")
    seconds = (time.perf_counter() - start) / len(ids)
    return {
        ids[k]: result
        if isinstance(result, Exception)
        else Coded(result[0], functools.partial(dict, bits=result[1], seconds=seconds))
        for k, result in results.items()
    }


def _check_pixels(image_id: str, image: Any, original: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != original.shape:
        actual = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise CodecError(f"the reconstruction of {image_id!r} is {actual}, not uint8 {original.shape}")
