"""VVC through VTM, the reference software that papers take as their anchor: 4:4:4, 10 bit, intra, any size.

    image --full-range BT.709--> planar u16le --EncoderApp -q QP--> VVC byte stream --DecoderApp--> planar u16le --> image

The stream is the encoder's own and nothing else: its sequence parameter set holds the size, and a conformance window crops what VTM
padded. Repeated encodes are byte-identical. On one core, encoding an image of 768x512 takes from 3 s (QP 60) to 70 s (QP 22), and
decoding takes 0.2 s.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from icmbench.codecs.base import DECODE_ONLY_MESSAGE, BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.checks import check_image, check_pixel_count, integer_parameter
from icmbench.codecs.process import ProgramError, TimeLimits, find_program, run_program, temporary_folder
from icmbench.codecs.yuv import DEPTH, from_samples, to_samples

FOLDER_VARIABLE = "ICMBENCH_VTM"  # environment variable that names the folder of a built VTM
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

    Encoder, decoder and configuration file are in the fingerprint by SHA-256.

    Args:
        point: `qp`, 0 to 63.
        encoder: VTM's EncoderAppStatic. By default it is taken from bin/ of the folder that the environment variable ICMBENCH_VTM
            names.
        decoder: VTM's DecoderAppStatic, with the same default folder.
        config: VTM's encoder_intra_vtm.cfg. By default it is taken from cfg/ of the same folder.
        timeout_seconds: Fixed part of the encoder's time limit, in seconds.
        timeout_seconds_per_megapixel: What each million pixels adds to the encoder's time limit, in seconds. The default is
            twenty times what QP 22 takes.
        decode_timeout_seconds: Fixed part of the decoder's time limit, in seconds.
        decode_timeout_seconds_per_megapixel: What each million pixels adds to the decoder's time limit, in seconds.
        decode_only: Build a codec that only decodes, without encoder and configuration file; see `icmbench.codecs.base.Codec`.

    Raises:
        CodecError: an option is out of range, or a program or file is missing.
    """

    name = "vtm"
    version = 1  # Raised by hand when bytes or pixels change for the same settings.
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
        qp = integer_parameter(point, self.name, "qp", 0, 63)
        files = {"decoder": decoder} if decode_only else {"encoder": encoder, "decoder": decoder, "config": config}
        paths = {key: _find_file(key, path) for key, path in files.items()}
        self._limits = TimeLimits(
            timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds, decode_timeout_seconds_per_megapixel
        )
        self._limits.check(self.name)
        self.point = RatePoint(f"qp={qp}", -qp, {"qp": qp})
        self._decode_only = decode_only
        self._decoder = find_program("vtm: decoder", paths["decoder"].absolute())
        if decode_only:
            _version_line(self._decoder, "Decoder")
            self.fingerprint = ""
            return
        self._encoder = find_program("vtm: encoder", paths["encoder"].absolute())
        self._config = paths["config"].absolute()
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            qp=qp,
            settings=_SETTINGS,
            encoder=_version_line(self._encoder, "Encoder"),
            decoder=_version_line(self._decoder, "Decoder"),
            sha256={key: file_sha256(path) for key, path in paths.items()},
        )

    @classmethod
    def usable(cls) -> str | None:
        """Why VTM cannot be used unless the experiment names its files; None if it can."""
        try:
            cls(cls.default_points[0])
        except CodecError as error:
            return str(error).removeprefix(f"{cls.name}: ")
        return None

    def compress(self, image: Image) -> bytes:
        """A VVC byte stream of one picture. The same image gives the same bytes.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, the encoder fails or hangs, or the codec only decodes.
        """
        check_image(image, self.name)
        if self._decode_only:
            raise CodecError(DECODE_ONLY_MESSAGE.format(name=self.name))
        height, width = image.shape[:2]
        try:
            check_pixel_count(width, height)  # As the decoder does: its stream would not be decoded.
        except ValueError as error:
            raise CodecError(f"vtm: an image of {width}x{height} pixels cannot be encoded: {error}") from None
        with temporary_folder() as name:
            folder = Path(name)
            to_samples(image).tofile(folder / "in.yuv")
            arguments: list[str | Path] = [
                *(self._encoder, "-c", self._config, "-i", "in.yuv", "-b", "out.bin", "-o", os.devnull),
                *("-q", str(self.point.parameters["qp"]), f"--SourceWidth={width}", f"--SourceHeight={height}", *_SETTINGS),
            ]
            try:
                run_program(self.name, "encoder", arguments, folder, self._limits.encoder(width, height))
            except ProgramError as error:
                raise CodecError(f"vtm: {error}, for an image of {width}x{height}{error.tail}") from None
            stream = folder / "out.bin"
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"vtm: the encoder {Path(self._encoder).name} ended well but wrote no stream")
            return stream.read_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole VVC picture, 4:4:4 10 bit, or the decoder fails or hangs.
        """
        import numpy as np

        width, height = read_vvc_size(data)
        with temporary_folder() as name:
            folder = Path(name)
            (folder / "out.bin").write_bytes(data)
            arguments = [self._decoder, "-b", "out.bin", "-o", "rec.yuv", "-d", str(DEPTH)]
            try:
                run_program(self.name, "decoder", arguments, folder, self._limits.decoder(width, height))
                samples = np.fromfile(folder / "rec.yuv", "<u2")
                return from_samples(samples, width, height)
            except ProgramError as error:
                raise BitstreamError(f"vtm: {error}, for a stream of {len(data)} bytes{error.tail}") from None
            except (OSError, ValueError) as error:
                raise BitstreamError(f"vtm: a stream of {len(data)} bytes gave no picture: {error}") from error


def read_vvc_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels that a VVC byte stream announces, cropped by its conformance window (ITU-T H.266, 7.3.2.4).

    Raises:
        BitstreamError: the stream does not consist of whole network abstraction layer units, one of which is a sequence parameter
            set for 4:4:4; or the picture has more than PIL.Image.MAX_IMAGE_PIXELS pixels.
    """
    try:
        before, *units = re.split(rb"\x00\x00\x00?\x01", data)
        sets = [unit for unit in units if len(unit) > 2 and unit[1] >> 3 == _SEQUENCE_PARAMETER_SET]
        if before or len(sets) != 1 or any(len(unit) < 3 or unit.endswith(b"\0") for unit in units):
            raise ValueError("its units are not those of one picture")
        width, height = _parse_size(_Bits(sets[0][2:].replace(b"\0\0\3", b"\0\0")))
        if min(width, height) < 1:
            raise ValueError(f"a picture of {width}x{height}")
        check_pixel_count(width, height)
    except ValueError as error:
        raise BitstreamError(f"vtm: not a whole VVC stream ({len(data)} bytes): {error}") from None
    return width, height


_SEQUENCE_PARAMETER_SET = 15  # The NAL unit type of VVC's sequence parameter sets.
_CONSTRAINT_FLAGS = 71  # bits of general_constraints_info() between its first flag and the number of additional bits


def _parse_size(bits: _Bits) -> tuple[int, int]:
    """The fields of seq_parameter_set_rbsp() up to the conformance window, 7.3.2.4."""
    bits.take(8)  # sps_seq_parameter_set_id, sps_video_parameter_set_id
    sublayers = bits.take(3)  # sps_max_sublayers_minus1
    if bits.take(2) != 3:  # sps_chroma_format_idc
        raise ValueError("its chroma is not 4:4:4")
    bits.take(2)  # sps_log2_ctu_size_minus5
    if bits.take(1):  # sps_ptl_dpb_hrd_params_present_flag
        _skip_profile(bits, sublayers)
    bits.take(1)  # sps_gdr_enabled_flag
    if bits.take(1):  # sps_ref_pic_resampling_enabled_flag
        bits.take(1)  # sps_res_change_in_clvs_allowed_flag
    width, height = bits.exp_golomb(), bits.exp_golomb()
    if bits.take(1):  # sps_conformance_window_flag
        left, right, top, bottom = (bits.exp_golomb() for _ in range(4))
        width, height = width - left - right, height - top - bottom
    return width, height


def _skip_profile(bits: _Bits, sublayers: int) -> None:
    """The fields of profile_tier_level(), 7.3.3.1."""
    bits.take(18)  # profile, tier, level and two flags
    if bits.take(1):  # gci_present_flag
        bits.take(_CONSTRAINT_FLAGS)
        bits.take(bits.take(8))  # gci_num_additional_bits, and those bits
    bits.align()
    levels = sum(bits.take(1) for _ in range(sublayers))  # ptl_sublayer_level_present_flag
    bits.align()
    bits.take(8 * levels)
    bits.take(32 * bits.take(8))  # ptl_num_sub_profiles, and those sub-profiles


class _Bits:
    """Reads bits one after the other, the most significant bit of a byte first. Raises ValueError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def take(self, count: int) -> int:
        if self._position + count > 8 * len(self._data):
            raise ValueError("its sequence parameter set is cut")
        value = 0
        for position in range(self._position, self._position + count):
            value = value << 1 | self._data[position >> 3] >> (7 - position % 8) & 1
        self._position += count
        return value

    def align(self) -> None:
        self._position += -self._position % 8

    def exp_golomb(self) -> int:
        """An unsigned number in Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        if zeros > 31:
            raise ValueError("a malformed number in its sequence parameter set")
        return (1 << zeros) - 1 + self.take(zeros)


def _find_file(key: str, path: Path | None) -> Path:
    """The file of an option, by default in the folder that FOLDER_VARIABLE names. Raises CodecError if there is none."""
    if path is None:
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise CodecError(f"vtm: needs {key}: build VTM and set {', '.join(_FILES)}, or {FOLDER_VARIABLE} to its folder")
        path = Path(folder, _FILES[key])
    if not Path(path).is_file():
        raise CodecError(f"vtm: {key}: no such file: {path}")
    return Path(path)


@functools.cache
def _version_line(program: str, role: Literal["Encoder", "Decoder"]) -> str:
    """The name and version that one of VTM's programs prints, such as `VTM Encoder Version 18.2`."""
    try:
        run = subprocess.run([program, "--help"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodecError(f"vtm: {program} cannot be started: {error}") from error
    match = re.search(rf"VTM {role} Version [\w.]+", run.stdout.decode(errors="replace"))
    if match is None:
        raise CodecError(f"vtm: {program} is not VTM's {role.lower()}")
    return match[0]
