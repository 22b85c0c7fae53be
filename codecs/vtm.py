"""VVC through VTM, the reference software that papers take as their anchor: 4:4:4, 10 bit, intra, any size.

    image --full-range BT.709--> planar u16le --EncoderApp -q QP--> VVC byte stream --DecoderApp--> planar u16le --> image

The stream is the encoder's own and nothing else: its sequence parameter set holds the size, a conformance window cuts off what VTM
padded. Repeated encodes are byte-identical. An image of 768x512 takes one core from 3 s (QP 60) to 70 s (QP 22); decoding, 0.2 s.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from icmbench.codecs.base import DECODE_ONLY, BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.classical import _check_pixels, _integer, check_image
from icmbench.codecs.process import ProgramError, find_program, run_program, temporary_folder
from icmbench.codecs.yuv import DEPTH, from_samples, to_samples

FOLDER_VARIABLE = "ICMBENCH_VTM"
_FILES = {"encoder": "bin/EncoderAppStatic", "decoder": "bin/DecoderAppStatic", "config": "cfg/encoder_intra_vtm.cfg"}
_SETTINGS = (
    "--FrameRate=1",
    "--FramesToBeEncoded=1",
    "--InputChromaFormat=444",
    f"--InputBitDepth={DEPTH}",
    f"--InternalBitDepth={DEPTH}",
    f"--OutputBitDepth={DEPTH}",
    "--ConformanceWindowMode=1",
    "--Level=6.2",
)


class Vtm:
    """VVC intra, 4:4:4 10 bit, by VTM's own encoder and decoder, which the user builds.

    point: `qp`, 0 to 63.
    encoder, decoder, config: VTM's EncoderAppStatic and DecoderAppStatic, and its encoder_intra_vtm.cfg. What is not given is
        taken from bin/ and cfg/ of the folder that the environment variable ICMBENCH_VTM names. All three are in the fingerprint.
    timeout_seconds, timeout_seconds_per_megapixel: the encoder may take their sum for its image.
    decode_timeout_seconds, decode_timeout_seconds_per_megapixel: the decoder likewise.
    decode_only: see `icmbench.codecs.base`; encoder and config need not be there.
    """

    name = "vtm"
    version = 1
    weights = "VTM built from source (BSD-3-Clause): set encoder, decoder and config, or ICMBENCH_VTM to its folder"
    default_points = (32, 37, 42, 47, 52, 57)

    def __init__(
        self,
        point: int | Mapping[str, int],
        *,
        encoder: Path | None = None,
        decoder: Path | None = None,
        config: Path | None = None,
        timeout_seconds: float = 120,
        timeout_seconds_per_megapixel: float = 3600,
        decode_timeout_seconds: float = 60,
        decode_timeout_seconds_per_megapixel: float = 60,
        decode_only: bool = False,
    ) -> None:
        qp = _integer(point, self.name, "qp", 0, 63)
        files = {"decoder": decoder} if decode_only else {"encoder": encoder, "decoder": decoder, "config": config}
        paths = {key: _located(key, path) for key, path in files.items()}
        if (
            min(timeout_seconds, decode_timeout_seconds) <= 0
            or min(timeout_seconds_per_megapixel, decode_timeout_seconds_per_megapixel) < 0
        ):
            raise CodecError("vtm: time-outs are positive numbers of seconds")
        self.point = RatePoint(f"qp={qp}", -qp, {"qp": qp})
        self._decode_only = decode_only
        self._decoder = find_program("vtm: decoder", paths["decoder"].absolute())
        self._encode_seconds = (timeout_seconds, timeout_seconds_per_megapixel)
        self._decode_seconds = (decode_timeout_seconds, decode_timeout_seconds_per_megapixel)
        if decode_only:
            _banner(self._decoder, "Decoder")
            self.fingerprint = ""
            return
        self._encoder = find_program("vtm: encoder", paths["encoder"].absolute())
        self._config = paths["config"].absolute()
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            qp=qp,
            settings=_SETTINGS,
            encoder=_banner(self._encoder, "Encoder"),
            decoder=_banner(self._decoder, "Decoder"),
            sha256={key: file_sha256(path) for key, path in paths.items()},
        )

    @classmethod
    def usable(cls) -> str | None:
        """None, or why VTM cannot be used without naming its files in the experiment."""
        try:
            cls(cls.default_points[0])
        except CodecError as error:
            return str(error).removeprefix(f"{cls.name}: ")
        return None

    def compress(self, image: Image) -> bytes:
        """A VVC byte stream. CodecError where the encoder fails or hangs."""
        check_image(image, self.name)
        if self._decode_only:
            raise CodecError(DECODE_ONLY.format(name=self.name))
        height, width = image.shape[:2]
        with temporary_folder() as name:
            folder = Path(name)
            to_samples(image).tofile(folder / "in.yuv")
            arguments: list[str | Path] = [
                *(self._encoder, "-c", self._config, "-i", "in.yuv", "-b", "out.bin", "-o", os.devnull),
                *("-q", str(self.point.parameters["qp"]), f"--SourceWidth={width}", f"--SourceHeight={height}", *_SETTINGS),
            ]
            try:
                run_program(self.name, "encoder", arguments, folder, _seconds(self._encode_seconds, width, height))
            except ProgramError as error:
                raise CodecError(f"vtm: {error}, for an image of {width}x{height}{error.tail}") from None
            stream = folder / "out.bin"
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"vtm: the encoder {Path(self._encoder).name} ended well but wrote no stream")
            return stream.read_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image, uint8 (height, width, 3). BitstreamError unless the bytes are one whole VVC picture, 4:4:4 10 bit."""
        width, height = picture_size(data)
        with temporary_folder() as name:
            folder = Path(name)
            (folder / "out.bin").write_bytes(data)
            arguments = [self._decoder, "-b", "out.bin", "-o", "rec.yuv", "-d", str(DEPTH)]
            try:
                run_program(self.name, "decoder", arguments, folder, _seconds(self._decode_seconds, width, height))
                samples = np.fromfile(folder / "rec.yuv", "<u2")
                return from_samples(samples, width, height)
            except ProgramError as error:
                raise BitstreamError(f"vtm: {error}, for a stream of {len(data)} bytes{error.tail}") from None
            except (OSError, ValueError) as error:
                raise BitstreamError(f"vtm: a stream of {len(data)} bytes gave no picture: {error}") from error


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height that a VVC byte stream announces, its conformance window applied (ITU-R H.266, 7.3.2.4).

    BitstreamError unless it is made of whole network abstraction layer units, one sequence parameter set for 4:4:4 among them.
    """
    try:
        first, *units = re.split(rb"\x00\x00\x00?\x01", data)
        sets = [unit for unit in units if len(unit) > 2 and unit[1] >> 3 == _SEQUENCE_PARAMETER_SET]
        if first or len(sets) != 1 or any(len(unit) < 3 or unit.endswith(b"\0") for unit in units):
            raise ValueError("its units are not those of one picture")
        width, height = _parse_size(_Bits(sets[0][2:].replace(b"\0\0\3", b"\0\0")))
        if min(width, height) < 1:
            raise ValueError(f"a picture of {width}x{height}")
        _check_pixels(width, height)
    except ValueError as error:
        raise BitstreamError(f"vtm: not a whole VVC stream ({len(data)} bytes): {error}") from None
    return width, height


_SEQUENCE_PARAMETER_SET = 15  # NAL unit type
_CONSTRAINT_FLAGS = 71  # general_constraints_info() between its first flag and the number of additional bits


def _parse_size(bits: _Bits) -> tuple[int, int]:
    bits.take(8)  # identifiers
    sublayers = bits.take(3)
    if bits.take(2) != 3:
        raise ValueError("its chroma is not 4:4:4")
    bits.take(2)
    if bits.take(1):
        _skip_profile(bits, sublayers)
    bits.take(1)
    if bits.take(1):
        bits.take(1)
    width, height = bits.exp_golomb(), bits.exp_golomb()
    if bits.take(1):
        left, right, top, bottom = (bits.exp_golomb() for _ in range(4))
        width, height = width - left - right, height - top - bottom
    return width, height


def _skip_profile(bits: _Bits, sublayers: int) -> None:
    """profile_tier_level(), 7.3.3.1."""
    bits.take(18)
    if bits.take(1):
        bits.take(_CONSTRAINT_FLAGS)
        bits.take(bits.take(8))
    bits.align()
    levels = sum(bits.take(1) for _ in range(sublayers))
    bits.align()
    bits.take(8 * levels)
    bits.take(32 * bits.take(8))


class _Bits:
    """Bits off the front, most significant first. ValueError where they end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        if self._at + count > 8 * len(self._data):
            raise ValueError("its sequence parameter set is cut")
        value = 0
        for position in range(self._at, self._at + count):
            value = value << 1 | self._data[position >> 3] >> (7 - position % 8) & 1
        self._at += count
        return value

    def align(self) -> None:
        self._at += -self._at % 8

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        if zeros > 31:
            raise ValueError("a malformed number in its sequence parameter set")
        return (1 << zeros) - 1 + self.take(zeros)


def _located(key: str, path: Path | None) -> Path:
    if path is None:
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise CodecError(f"vtm: needs {key}: build VTM and set {', '.join(_FILES)}, or {FOLDER_VARIABLE} to its folder")
        path = Path(folder, _FILES[key])
    if not Path(path).is_file():
        raise CodecError(f"vtm: {key}: no such file: {path}")
    return Path(path)


@functools.cache
def _banner(program: str, kind: str) -> str:
    """How VTM's programs introduce themselves, such as `VTM Encoder Version 18.2`."""
    try:
        run = subprocess.run([program, "--help"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodecError(f"vtm: {program} cannot be started: {error}") from error
    found = re.search(rf"VTM {kind} Version [\w.]+", run.stdout.decode(errors="replace"))
    if found is None:
        raise CodecError(f"vtm: {program} is not VTM's {kind.lower()}")
    return found[0]


def _seconds(budget: tuple[float, float], width: int, height: int) -> float:
    return budget[0] + budget[1] * width * height / 1e6
