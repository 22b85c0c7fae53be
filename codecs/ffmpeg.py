"""VVC, HEVC and AV1 intra by the ffmpeg inside imageio-ffmpeg: libvvenc, libx265 and libaom, without a build or a manual download.

    image --pad, BT.709--> planar u16le --ffmpeg -c:v ENCODER--> byte stream + trailer --ffmpeg--> planar u16le --crop--> image

    trailer: 1 byte for each padded side, the right one before the bottom one: how many samples were padded
             2 bytes (HEVC: 4), little-endian: 14 (30) bits of CRC-32 over all bytes before, 1 bit "padded at the right",
             1 bit "padded at the bottom"

A stream without its trailer plays anywhere. The trailer has two reasons. VVC at 4:2:0 knows even sizes only. And no decoder notices
all damage: those of VVC and AV1 notice a truncation, but the one of HEVC conceals it, so its check must be reliable by itself and
is longer. The trailer counts in the rate, as header.

Encoders run on one thread and without wavefronts; otherwise their bytes would depend on the machine.
"""

from __future__ import annotations

import functools
import re
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.checks import check_image, check_sides, integer_parameter
from icmbench.codecs.process import ProgramError, TimeLimits, find_program, run_program, temporary_folder
from icmbench.codecs.yuv import Subsampling, from_samples, to_samples

if TYPE_CHECKING:  # As in `base`.
    import numpy as np

Point: TypeAlias = int | Mapping[str, int]
VvencPreset: TypeAlias = Literal["faster", "fast", "medium", "slow", "slower"]
X265Preset: TypeAlias = Literal["ultrafast", "veryfast", "fast", "medium", "slow", "slower", "veryslow", "placebo"]


class _Ffmpeg:
    """Base of the three codecs, which differ in their encoder and its settings."""

    name: str
    extra = "ffmpeg"
    weights = "ffmpeg with its encoders inside imageio-ffmpeg (a GPL-3.0 program, run as one, never linked)"
    usable_runs_programs = True
    version: ClassVar[int] = 1  # Raised by hand when bytes or pixels change for the same settings.
    encoder: ClassVar[str]  # ffmpeg's name of the encoder
    format: ClassVar[str]  # ffmpeg's name of the byte stream format
    parameter: ClassVar[str]  # name of the rate point's number
    subsampling: ClassVar[Subsampling]
    min_side: ClassVar[int]  # The encoder refuses smaller pictures, which are padded.
    max_side: ClassVar[int]  # pixels of the longest side that both the encoder and ffmpeg's decoder take
    check_bytes: ClassVar[int] = 2  # length of the trailer's check
    point: RatePoint
    fingerprint: str

    def _setup(self, value: int, settings: tuple[str, ...], limits: TimeLimits) -> None:
        """Set the rate point, ffmpeg's options for the encoder (the point's included), the time limits and the fingerprint."""
        limits.check(self.name)
        self._ffmpeg = _find_ffmpeg(self.name)
        if self.encoder not in _encoder_names(self._ffmpeg):
            raise CodecError(f"{self.name}: {self._ffmpeg} has no {self.encoder}; unset IMAGEIO_FFMPEG_EXE, or name another there")
        self.point = RatePoint(f"{self.parameter}={value}", -value, {self.parameter: value})
        self._settings = settings
        self._limits = limits
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            settings=settings,
            ffmpeg=_ffmpeg_version(self._ffmpeg),
            sha256=file_sha256(self._ffmpeg),
        )

    @classmethod
    def usable(cls) -> str | None:
        """Why this machine's ffmpeg cannot run the codec; None if it can."""
        try:
            names = _encoder_names(_find_ffmpeg(cls.name))
        except CodecError as error:
            return str(error).removeprefix(f"{cls.name}: ")
        return None if cls.encoder in names else f"the ffmpeg of this machine was built without {cls.encoder}"

    def compress(self, image: Image) -> bytes:
        """A self-contained stream. The same image gives the same bytes.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, or the encoder fails or hangs.
        """
        import numpy as np

        check_image(image, self.name)
        height, width = image.shape[:2]
        check_sides(width, height, self._max_side_of(width, height), self.name, f"the limit of {self.encoder} or of its decoder")
        right, bottom = (self._padding(side) for side in (width, height))
        padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge")
        pixels = f"yuv{self.subsampling.replace(':', '')}p10le"
        with temporary_folder() as name:
            folder = Path(name)
            to_samples(padded, self.subsampling).tofile(folder / "in.yuv")
            arguments = [
                *(self._ffmpeg, "-nostdin", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", pixels),
                *("-s", f"{width + right}x{height + bottom}", "-r", "1", "-i", "in.yuv", "-frames:v", "1", "-threads", "1"),
                *("-c:v", self.encoder, *self._settings, "-f", self.format, "out.bin"),
            ]
            try:
                run_program(self.name, "encoder", arguments, folder, self._limits.encoder(width, height))
            except ProgramError as error:
                raise CodecError(f"{self.name}: {error}, for an image of {width}x{height}{error.tail}") from None
            stream = folder / "out.bin"
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"{self.name}: the encoder {Path(self._ffmpeg).name} ended well but wrote no stream")
            body = stream.read_bytes()
        body += bytes(samples for samples in (right, bottom) if samples)
        return body + (self._check(body) << 2 | bool(right) << 1 | bool(bottom)).to_bytes(self.check_bytes, "little")

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec. Bad bytes raise no other error.
        """
        import numpy as np

        stream, right, bottom = self._split(data)
        with temporary_folder() as name:
            folder = Path(name)
            (folder / "in.bin").write_bytes(stream)
            arguments = [
                *(self._ffmpeg, "-nostdin", "-y", "-v", "error", "-xerror", "-err_detect", "explode", "-threads", "1"),
                *("-f", self.format, "-i", "in.bin", "-f", "yuv4mpegpipe", "-strict", "-1", "out.y4m"),
            ]
            try:
                run_program(self.name, "decoder", arguments, folder, self._limits.decode)
                samples, width, height = _read_y4m(folder / "out.y4m", self.subsampling)
                image = from_samples(samples, width, height, self.subsampling)
            except ProgramError as error:
                raise BitstreamError(f"{self.name}: {error}, for a stream of {len(data)} bytes{error.tail}") from None
            except (OSError, ValueError) as error:
                raise BitstreamError(f"{self.name}: a stream of {len(data)} bytes gave no picture: {error}") from error
        if right >= width or bottom >= height:
            raise BitstreamError(f"{self.name}: a picture of {width}x{height} with padding of {right}x{bottom}")
        return np.ascontiguousarray(image[: height - bottom, : width - right])

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        """Bits of the trailer ("header") and of the encoder's own stream ("stream").

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec.
        """
        stream, _, _ = self._split(data)
        return {"header": 8 * (len(data) - len(stream)), "stream": 8 * len(stream)}

    def _max_side_of(self, width: int, height: int) -> int:
        """Pixels of the longest side that a picture of this shape may have."""
        return self.max_side

    def _padding(self, side: int) -> int:
        to_even = side % 2 if self.subsampling == "4:2:0" else 0
        return max(to_even, self.min_side - side)

    def _check(self, body: bytes) -> int:
        return zlib.crc32(body) & (1 << 8 * self.check_bytes - 2) - 1

    def _split(self, data: bytes) -> tuple[bytes, int, int]:
        """The encoder's own stream, and by how many samples the picture is padded at the right and at the bottom."""
        body, trailer = data[: -self.check_bytes], int.from_bytes(data[-self.check_bytes :], "little")
        padded = (trailer >> 1 & 1, trailer & 1)
        stream = body[: len(body) - sum(padded)]
        if not stream or self._check(body) != trailer >> 2:
            raise BitstreamError(f"{self.name}: not a whole stream of this codec ({len(data)} bytes): its check does not match")
        sizes = iter(body[len(stream) :])
        right, bottom = (next(sizes) if flag else 0 for flag in padded)
        return stream, right, bottom


class Vvenc(_Ffmpeg):
    """VVC intra by libvvenc, 4:2:0 10 bit: the VVC that installs with pip.

    Args:
        point: `qp`, 0 to 63.
        preset: libvvenc's trade of speed for rate, from "faster" to "slower"; "medium" is libvvenc's default.
        timeout_seconds: Fixed part of the encoder's time limit, in seconds.
        timeout_seconds_per_megapixel: What each million pixels adds to the encoder's time limit, in seconds.
        decode_timeout_seconds: The decoder's time limit, in seconds. It is fixed, because only decoding tells the image's size.

    Raises:
        CodecError: an option is out of range, or this machine has no ffmpeg with libvvenc.
    """

    name = "vvenc"
    encoder, format = "libvvenc", "vvc"
    parameter = "qp"
    subsampling = "4:2:0"
    min_side = 32
    max_side = 25_328  # sqrt(8 MaxLumaPs) of VVC's level 6.3; the encoder takes more, whose streams ffmpeg does not decode.
    default_points = (32, 37, 42, 47, 52, 57)

    def __init__(
        self,
        point: Point,
        *,
        preset: VvencPreset = "medium",
        timeout_seconds: float = 60,
        timeout_seconds_per_megapixel: float = 1200,
        decode_timeout_seconds: float = 300,
    ) -> None:
        qp = integer_parameter(point, self.name, "qp", 0, 63)
        _check_preset(self.name, preset, get_args(VvencPreset))
        # At one picture per second and an intra period of one second, each picture is coded alone, with a still picture's headers.
        settings = ("-preset", preset, "-qp", str(qp), "-qpa", "0", "-period", "1")
        self._setup(qp, settings, TimeLimits(timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))


class X265(_Ffmpeg):
    """HEVC intra by libx265, 4:4:4 10 bit.

    Args:
        point: `qp`, 0 to 51.
        preset: libx265's trade of speed for rate, from "ultrafast" to "placebo"; "slow" is what the baseline is specified with.
        timeout_seconds: Fixed part of the encoder's time limit, in seconds.
        timeout_seconds_per_megapixel: What each million pixels adds to the encoder's time limit, in seconds.
        decode_timeout_seconds: The decoder's time limit, in seconds. It is fixed, because only decoding tells the image's size.

    Raises:
        CodecError: an option is out of range, or this machine has no ffmpeg with libx265.
    """

    name = "x265"
    encoder, format = "libx265", "hevc"
    parameter = "qp"
    subsampling = "4:4:4"
    min_side = 16
    max_side = 8192  # libx265's limit for every level
    check_bytes = 4
    default_points = (32, 36, 40, 44, 48, 51)

    def __init__(
        self,
        point: Point,
        *,
        preset: X265Preset = "slow",
        timeout_seconds: float = 60,
        timeout_seconds_per_megapixel: float = 600,
        decode_timeout_seconds: float = 300,
    ) -> None:
        qp = integer_parameter(point, self.name, "qp", 0, 51)
        _check_preset(self.name, preset, get_args(X265Preset))
        parameters = f"qp={qp}:keyint=1:info=0:pools=none:frame-threads=1:wpp=0:log-level=error"
        settings = ("-preset", preset, "-x265-params", parameters)
        self._setup(qp, settings, TimeLimits(timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))

    def _max_side_of(self, width: int, height: int) -> int:
        # Above level 4, which has sqrt(8 MaxLumaPs) = 4222, libx265 needs blocks of 32, which narrower pictures do not hold.
        return self.max_side if min(width, height) >= 32 else 4208


class Av1(_Ffmpeg):
    """AV1 by libaom, a still picture, 4:4:4 10 bit.

    Args:
        point: `crf`, 0 to 63.
        speed: libaom's cpu-used, 0 (slow, best compression) to 8 (fast).
        timeout_seconds: Fixed part of the encoder's time limit, in seconds.
        timeout_seconds_per_megapixel: What each million pixels adds to the encoder's time limit, in seconds.
        decode_timeout_seconds: The decoder's time limit, in seconds. It is fixed, because only decoding tells the image's size.

    Raises:
        CodecError: an option is out of range, or this machine has no ffmpeg with libaom.
    """

    name = "av1"
    encoder, format = "libaom-av1", "obu"
    parameter = "crf"
    subsampling = "4:4:4"
    min_side = 1
    max_side = 65_536
    default_points = (32, 40, 46, 52, 58, 63)

    def __init__(
        self,
        point: Point,
        *,
        speed: int = 4,
        timeout_seconds: float = 60,
        timeout_seconds_per_megapixel: float = 1200,
        decode_timeout_seconds: float = 300,
    ) -> None:
        crf = integer_parameter(point, self.name, "crf", 0, 63)
        integer_parameter(speed, self.name, "speed", 0, 8)
        settings = ("-crf", str(crf), "-b:v", "0", "-still-picture", "1", "-cpu-used", str(speed), "-row-mt", "0")
        self._setup(crf, settings, TimeLimits(timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))


def _check_preset(codec: str, preset: str, presets: tuple[str, ...]) -> None:
    if preset not in presets:
        raise CodecError(f"{codec}: preset is one of {', '.join(presets)}, not {preset!r}")


def _read_y4m(path: Path, subsampling: Subsampling) -> tuple[np.ndarray, int, int]:
    """Samples, width and height of a Y4M file. Raises ValueError or OSError unless it holds one 10-bit picture."""
    import numpy as np

    header, _, frames = path.read_bytes().partition(b"\n")
    colour = f"C{subsampling.replace(':', '')}p10"
    match = re.match(rf"YUV4MPEG2 W(\d+) H(\d+) .*\b{colour}\b", header.decode(errors="replace"))
    if match is None or not frames.startswith(b"FRAME\n"):
        raise ValueError(f"the decoder wrote {header[:80]!r}, where {colour} is expected")
    return np.frombuffer(frames, "<u2", offset=len(b"FRAME\n")), int(match[1]), int(match[2])


def _find_ffmpeg(codec: str) -> str:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise CodecError(f"{codec}: imageio-ffmpeg has no ffmpeg for this machine: {error}") from error
    return find_program(f"{codec}: imageio-ffmpeg", program)


@functools.cache
def _output_of(program: str, option: str) -> str:
    try:
        run = subprocess.run(
            [program, "-hide_banner", option], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CodecError(f"ffmpeg: {program} cannot be run: {error}") from error
    return run.stdout.decode(errors="replace")


def _encoder_names(program: str) -> set[str]:
    return {line.split()[1] for line in _output_of(program, "-encoders").splitlines() if len(line.split()) > 1}


def _ffmpeg_version(program: str) -> str:
    return _output_of(program, "-version").partition(" Copyright")[0].removeprefix("ffmpeg version ")
