"""The trials of `icmbench guest check`: what an adapter must keep to, so that its numbers can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, compress_all, decompress_all, estimates_rate, reconstruct_all
from icmbench.harness.guests.codec import GuestCodec
from icmbench.harness.guests.process import GUESTS
from icmbench.tasks.datasets.images import read_image

SIZES = ((1, 1), (17, 300), (64, 64), (33, 47))  # Width and height of the pictures that are generated.


class AdapterCheck:
    """Tries one rate point of an adapter.

    Args:
        make: makes the codec; it is called again for a fresh process.
    """

    def __init__(self, make: Callable[[], GuestCodec]) -> None:
        self._make = make
        self._passed = True

    def run(self, pictures: Sequence[Path]) -> bool:
        """Carry out all trials and print a line for each. Returns whether all went well.

        Raises:
            UserError: the codec cannot be made.
            DatasetError: a picture cannot be read.
        """
        images = {f"{width}x{height}": _generate(width, height) for width, height in SIZES}
        images |= {path.name: read_image(path) for path in pictures}
        codec = self._make()
        if estimates_rate(codec):
            self._try_estimates(codec, images)
        else:
            streams = self._try_streams(codec, images)
            self._try_batches(codec, images, streams)
            if streams:
                self._try_damage(codec, max(streams.values(), key=len))
        GUESTS.end()
        return self._passed

    def _say(self, passed: bool, what: str) -> None:
        self._passed &= passed
        print(f"  {'ok  ' if passed else 'FAIL'}  {what}")

    def _try_streams(self, codec: Any, images: dict[str, Image]) -> dict[str, bytes]:
        """Encode everything, then decode in a fresh process, from the bytes alone."""
        streams: dict[str, bytes] = {}
        for name, image in images.items():
            try:
                streams[name] = codec.compress(image)
            except Exception as error:
                self._say(False, f"{name}: cannot be encoded: {error}")
                continue
            if not isinstance(streams[name], bytes) or not streams[name]:
                self._say(False, f"{name}: compress gave {type(streams.pop(name)).__name__}, not bytes, at least one")
            elif codec.compress(image) != streams[name]:
                self._say(False, f"{name}: encoding it twice gives two streams")
        self._compare_reported_bits(codec, images, streams)
        GUESTS.end()
        fresh = self._make()
        rates, errors = [], []
        for name in list(streams):
            image = images[name]
            try:
                pixels = fresh.decompress(streams[name])  # type: ignore[attr-defined]
            except Exception as error:
                self._say(False, f"{name}: its stream cannot be decoded in a fresh process: {error}")
                continue
            if not _is_picture(pixels, image):
                self._say(False, f"{name}: decompress gave {_describe(pixels)}, not uint8 {image.shape}")
                continue
            again = fresh.decompress(streams[name])  # type: ignore[attr-defined]
            if fresh.deterministic and not np.array_equal(again, pixels):
                self._say(False, f"{name}: its stream decodes to two pictures; set deterministic = False if it must be so")
                continue
            self._check_parts(fresh, name, streams[name])
            rate, psnr = 8 * len(streams[name]) / (image.shape[0] * image.shape[1]), _psnr(image, pixels)
            rates.append(rate)
            errors.append(psnr)
            self._say(True, f"{name}: {len(streams[name])} bytes, decoded in a fresh process, {rate:.4f} bpp, {psnr:.2f} dB")
        if rates:
            print(f"a table will show: {codec.name}, point {codec.point.label} (order {codec.point.order:g})")
        return streams

    def _try_batches(self, codec: Any, images: dict[str, Image], streams: dict[str, bytes]) -> None:
        """A batch must give what its images give alone."""
        names = list(streams)
        if not names:
            return
        if hasattr(codec, "compress_batch"):
            batch = compress_all(codec, [images[name] for name in names], names)
            same = batch == [streams[name] for name in names]
            self._say(same, f"compress_batch of {len(names)} images gives the streams of each alone")
        if hasattr(codec, "decompress_batch"):
            alone = [codec.decompress(streams[name]) for name in names]
            batch_pixels = decompress_all(codec, [streams[name] for name in names])
            same = len(alone) == len(batch_pixels) and all(map(np.array_equal, alone, batch_pixels))
            self._say(same, f"decompress_batch of {len(names)} streams gives the pixels of each alone")

    def _try_damage(self, codec: Any, stream: bytes) -> None:
        """Bytes that are no stream must raise BitstreamError, whatever is wrong with them."""
        damaged = {"no bytes": b"", "half of a stream": stream[: len(stream) // 2], "a stream and more": stream + b"more"}
        for what, data in damaged.items():
            try:
                codec.decompress(data)
            except BitstreamError:
                self._say(True, f"{what}: BitstreamError")
            except CodecError as error:
                self._say(False, f"{what}: raises another error than BitstreamError: {error}")
            else:
                self._say(False, f"{what}: decodes to a picture, so that damage would go unnoticed; check lengths in decompress")

    def _try_estimates(self, codec: Any, images: dict[str, Image]) -> None:
        for name, image in images.items():
            try:
                (pixels, bits), (again, bits_again) = (reconstruct_all(codec, [image], [name])[0] for _ in range(2))
            except Exception as error:
                self._say(False, f"{name}: {error}")
                continue
            if not _is_picture(pixels, image) or not (isinstance(bits, int | float) and math.isfinite(bits) and bits > 0):
                self._say(False, f"{name}: reconstruct gave {_describe(pixels)} and {bits!r} bits")
            elif codec.deterministic and (bits != bits_again or not np.array_equal(pixels, again)):
                self._say(False, f"{name}: two calls give two results; set deterministic = False if it must be so")
            else:
                rate = bits / (image.shape[0] * image.shape[1])
                self._say(True, f"{name}: {bits:.1f} estimated bits, {rate:.4f} bpp, {_psnr(image, pixels):.2f} dB")
        print(f"a table will show: {codec.name}, point {codec.point.label}, its rate marked as estimated")

    def _compare_reported_bits(self, codec: Any, images: dict[str, Image], streams: dict[str, bytes]) -> None:
        """Compare streams with what the authors' own script counts, if the adapter can ask it."""
        for name, stream in streams.items():
            reported = codec.reported_bits(images[name])
            if reported is None:
                print("  --    the adapter has no `reported_bits`: the streams are compared with no script of the authors")
                return
            more = 8 * len(stream) - reported
            self._say(more >= 0, f"{name}: {8 * len(stream)} bits; the authors' script reports {reported:g} ({more:+g})")

    def _check_parts(self, codec: Any, name: str, stream: bytes) -> None:
        if hasattr(codec, "rate_breakdown"):
            total = sum(codec.rate_breakdown(stream).values())
            if total != 8 * len(stream):
                self._say(False, f"{name}: the parts of rate_breakdown sum to {total} bits of {8 * len(stream)}")


def _generate(width: int, height: int) -> Image:
    """A smooth picture with some noise, the same on every machine."""
    x, y = np.linspace(0, 3, width)[None, :, None], np.linspace(0, 2, height)[:, None, None]
    waves = 128 + 80 * np.sin(x * np.array([1.0, 2.0, 3.0]) + y)
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return (waves + noise).clip(0, 255).astype(np.uint8)


def _is_picture(pixels: Any, image: Image) -> bool:
    return isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == image.shape


def _describe(pixels: Any) -> str:
    return f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__


def _psnr(image: Image, pixels: Image) -> float:
    error = float(np.mean((image.astype(np.float64) - pixels) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
