"""VVC, HEVC and AV1 intra by the ffmpeg that imageio-ffmpeg installs: libvvenc, libx265, libaom; no build, no download by hand.

    image --pad, BT.709--> planar u16le --ffmpeg -c:v ENCODER--> byte stream + trailer --ffmpeg--> planar u16le --crop--> image

    trailer: a byte for each padded side, right then bottom, how many samples; then 2 bytes (HEVC: 4), little-endian:
             14 (30) bits of CRC-32 over all bytes before, 1 bit "padded at the right", 1 bit "padded at the bottom"

Without its trailer a stream plays anywhere. The trailer is there because VVC at 4:2:0 knows even sizes only, and because no decoder
notices all damage: those of VVC and AV1 notice a cut, but ffmpeg's for HEVC conceals it, so that its check alone has to be sure. It
counts in the rate, as header. Encoders get one thread and no wavefronts: else their bytes would depend on the machine.
"""

from __future__ import annotations

import functools
import re
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.classical import _integer, check_image
from icmbench.codecs.process import ProgramError, find_program, run_program, temporary_folder
from icmbench.codecs.yuv import Subsampling, from_samples, to_samples

Point: TypeAlias = int | Mapping[str, int]
VvencPreset: TypeAlias = Literal["faster", "fast", "medium", "slow", "slower"]
X265Preset: TypeAlias = Literal["ultrafast", "veryfast", "fast", "medium", "slow", "slower", "veryslow", "placebo"]


class _Ffmpeg:
    """What the three share. `settings` are ffmpeg's options for the encoder, the point's own among them."""

    name: str
    extra = "ffmpeg"
    weights = "ffmpeg with its encoders inside imageio-ffmpeg (a GPL-3.0 program, run as one, never linked)"
    version: ClassVar[int] = 1  # raised by hand when bytes or pixels change for the same settings
    encoder: ClassVar[str]  # ffmpeg's names
    format: ClassVar[str]
    parameter: ClassVar[str]
    subsampling: ClassVar[Subsampling]
    least_side: ClassVar[int]  # smaller pictures are refused by the encoder
    check_bytes: ClassVar[int] = 2
    point: RatePoint
    fingerprint: str

    def _setup(self, value: int, settings: tuple[str, ...], timeouts: tuple[float, float, float]) -> None:
        if min(timeouts[0], timeouts[2]) <= 0 or timeouts[1] < 0:
            raise CodecError(f"{self.name}: time-outs are positive numbers of seconds")
        self._ffmpeg = _program(self.name)
        if self.encoder not in _encoders(self._ffmpeg):
            raise CodecError(f"{self.name}: {self._ffmpeg} has no {self.encoder}; unset IMAGEIO_FFMPEG_EXE, or name another there")
        self.point = RatePoint(f"{self.parameter}={value}", -value, {self.parameter: value})
        self._settings = settings
        self._timeouts = timeouts
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            settings=settings,
            ffmpeg=_ffmpeg_version(self._ffmpeg),
            sha256=file_sha256(self._ffmpeg),
        )

    @classmethod
    def usable(cls) -> str | None:
        """None, or why this machine's ffmpeg cannot do it."""
        try:
            known = _encoders(_program(cls.name))
        except CodecError as error:
            return str(error).removeprefix(f"{cls.name}: ")
        return None if cls.encoder in known else f"the ffmpeg of this machine was built without {cls.encoder}"

    def compress(self, image: Image) -> bytes:
        """A self-contained stream; the same image gives the same bytes. CodecError where the encoder fails or hangs."""
        check_image(image, self.name)
        height, width = image.shape[:2]
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
            base, slope, _ = self._timeouts
            try:
                run_program(self.name, "encoder", arguments, folder, base + slope * width * height / 1e6)
            except ProgramError as error:
                raise CodecError(f"{self.name}: {error}, for an image of {width}x{height}{error.tail}") from None
            stream = folder / "out.bin"
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"{self.name}: the encoder {Path(self._ffmpeg).name} ended well but wrote no stream")
            body = stream.read_bytes()
        body += bytes(side for side in (right, bottom) if side)
        return body + (self._check(body) << 2 | bool(right) << 1 | bool(bottom)).to_bytes(self.check_bytes, "little")

    def decompress(self, data: bytes) -> Image:
        """The image, uint8 (height, width, 3). BitstreamError, never anything else, on bad bytes."""
        stream, right, bottom = self._split(data)
        with temporary_folder() as name:
            folder = Path(name)
            (folder / "in.bin").write_bytes(stream)
            arguments = [
                *(self._ffmpeg, "-nostdin", "-y", "-v", "error", "-xerror", "-err_detect", "explode", "-threads", "1"),
                *("-f", self.format, "-i", "in.bin", "-f", "yuv4mpegpipe", "-strict", "-1", "out.y4m"),
            ]
            try:
                run_program(self.name, "decoder", arguments, folder, self._timeouts[2])
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
        """Bits of the trailer ("header") and of the coder's own stream. BitstreamError."""
        stream, _, _ = self._split(data)
        return {"header": 8 * (len(data) - len(stream)), "stream": 8 * len(stream)}

    def _padding(self, side: int) -> int:
        even = side % 2 if self.subsampling == "4:2:0" else 0
        return max(even, self.least_side - side)

    def _check(self, body: bytes) -> int:
        return zlib.crc32(body) & (1 << 8 * self.check_bytes - 2) - 1

    def _split(self, data: bytes) -> tuple[bytes, int, int]:
        """The coder's own stream, and how much it is padded at the right and at the bottom."""
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

    point: `qp`, 0 to 63.
    preset: libvvenc's.
    timeout_seconds, timeout_seconds_per_megapixel: the encoder may take their sum for its image. decode_timeout_seconds: flat.
    """

    name = "vvenc"
    encoder, format = "libvvenc", "vvc"
    parameter = "qp"
    subsampling = "4:2:0"
    least_side = 32
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
        qp = _integer(point, self.name, "qp", 0, 63)
        _known(self.name, preset, get_args(VvencPreset))
        # One picture a second and an intra period of one second: each picture is coded alone, with the headers of still pictures.
        settings = ("-preset", preset, "-qp", str(qp), "-qpa", "0", "-period", "1")
        self._setup(qp, settings, (timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))


class X265(_Ffmpeg):
    """HEVC intra by libx265, 4:4:4 10 bit.

    point: `qp`, 0 to 51.
    preset: libx265's.
    timeout_seconds, timeout_seconds_per_megapixel: the encoder may take their sum for its image. decode_timeout_seconds: flat.
    """

    name = "x265"
    encoder, format = "libx265", "hevc"
    parameter = "qp"
    subsampling = "4:4:4"
    least_side = 16
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
        qp = _integer(point, self.name, "qp", 0, 51)
        _known(self.name, preset, get_args(X265Preset))
        parameters = f"qp={qp}:keyint=1:info=0:pools=none:frame-threads=1:wpp=0:log-level=error"
        settings = ("-preset", preset, "-x265-params", parameters)
        self._setup(qp, settings, (timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))


class Av1(_Ffmpeg):
    """AV1 by libaom, a still picture, 4:4:4 10 bit.

    point: `crf`, 0 to 63.
    speed: libaom's cpu-used, 0 (slow) to 8 (fast).
    timeout_seconds, timeout_seconds_per_megapixel: the encoder may take their sum for its image. decode_timeout_seconds: flat.
    """

    name = "av1"
    encoder, format = "libaom-av1", "obu"
    parameter = "crf"
    subsampling = "4:4:4"
    least_side = 1
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
        crf = _integer(point, self.name, "crf", 0, 63)
        _integer(speed, self.name, "speed", 0, 8)
        settings = ("-crf", str(crf), "-b:v", "0", "-still-picture", "1", "-cpu-used", str(speed), "-row-mt", "0")
        self._setup(crf, settings, (timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds))


def _known(codec: str, preset: str, presets: tuple[str, ...]) -> None:
    if preset not in presets:
        raise CodecError(f"{codec}: preset is one of {', '.join(presets)}, not {preset!r}")


def _read_y4m(path: Path, subsampling: Subsampling) -> tuple[np.ndarray, int, int]:
    """Samples, width and height of a file of one 10-bit picture. ValueError or OSError where it is another."""
    header, _, rest = path.read_bytes().partition(b"\n")
    colour = f"C{subsampling.replace(':', '')}p10"
    found = re.match(rf"YUV4MPEG2 W(\d+) H(\d+) .*\b{colour}\b", header.decode(errors="replace"))
    if found is None or not rest.startswith(b"FRAME\n"):
        raise ValueError(f"the decoder wrote {header[:80]!r}, where {colour} is expected")
    return np.frombuffer(rest, "<u2", offset=len(b"FRAME\n")), int(found[1]), int(found[2])


def _program(codec: str) -> str:
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise CodecError(f"{codec}: imageio-ffmpeg has no ffmpeg for this machine: {error}") from error
    return find_program(f"{codec}: imageio-ffmpeg", program)


@functools.cache
def _said(program: str, option: str) -> str:
    try:
        run = subprocess.run(
            [program, "-hide_banner", option], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CodecError(f"ffmpeg: {program} cannot be run: {error}") from error
    return run.stdout.decode(errors="replace")


def _encoders(program: str) -> set[str]:
    return {line.split()[1] for line in _said(program, "-encoders").splitlines() if len(line.split()) > 1}


def _ffmpeg_version(program: str) -> str:
    return _said(program, "-version").partition(" Copyright")[0].removeprefix("ffmpeg version ")
