"""VVC through VTM. Tests that need its programs skip unless ICMBENCH_VTM names their folder; scripts stand in for failing ones."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.vtm import FOLDER_VARIABLE, Vtm, read_vvc_size
from icmbench.codecs.yuv import from_samples

from .helpers import is_gone, psnr

# VTM-18.2's stream of `picture(33, 47)` at QP 52: 47x33 pixels, coded as 48x40 and cropped by a conformance window.
STREAM = bytes.fromhex(
    "000000010079001d4266800040c414ea20d407d11bc8522214991bf5e1571fc1f440800000000100"
    "810000c4148a4200347b2145945945880000010041c4009f0d241e04c50df3871d677ca57d40"
)
HANG = """
    import pathlib, subprocess, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path({pid!r}).write_text(str(child.pid))
    time.sleep(600)
    pathlib.Path({pid!r}).with_name("slept").touch()
"""


@pytest.fixture(scope="module")
def vtm():
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        pytest.skip(f"no VTM: set {FOLDER_VARIABLE} to the folder of a built VTM-18.2")
    assert Vtm.usable() is None
    return Vtm


@pytest.fixture
def stand_in(tmp_path):
    """Writes scripts that claim to be VTM's programs, and returns the options that name them."""

    def write(encoder: str = "", decoder: str = "") -> dict[str, Path]:
        for role, source in {"Encoder": encoder, "Decoder": decoder}.items():
            path = tmp_path / role.lower()
            head = (
                f"#!{sys.executable}\nimport sys\nif '--help' in sys.argv: sys.exit('' if print('VTM {role} Version 0.1') else 0)\n"
            )
            path.write_text(head + textwrap.dedent(source))
            path.chmod(0o755)
        (tmp_path / "intra.cfg").write_text("QP : 32\n")
        return {"encoder": tmp_path / "encoder", "decoder": tmp_path / "decoder", "config": tmp_path / "intra.cfg"}

    return write


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 3, x * 2, 128 + 60 * (x > y)], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("qp", "bpp", "decibel"), [(52, 0.0137, 26.84), (42, 0.0506, 31.06), (32, 0.2256, 36.79)])
def test_rates_of_a_photograph(vtm, shared, qp, bpp, decibel):
    with Pillow.open(shared / "data/kodak/kodim03.png") as file:
        photograph = np.array(file.convert("RGB"))
    codec = vtm(qp)
    stream = codec.compress(photograph)
    assert len(stream) * 8 / (768 * 512) == pytest.approx(bpp, abs=1e-4)
    assert psnr(photograph, codec.decompress(stream)) == pytest.approx(decibel, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (2, 2), (7, 5), (33, 47), (65, 64)], ids=str)
def test_every_size_keeps_its_shape(vtm, shape):
    codec, image = vtm(22), picture(*shape)
    stream = codec.compress(image)
    assert read_vvc_size(stream) == shape[::-1]
    reconstruction = codec.decompress(stream)
    assert (reconstruction.shape, reconstruction.dtype) == (image.shape, np.uint8)
    assert psnr(image, reconstruction) > 30


def test_a_known_stream(vtm):
    codec, image = vtm(52), picture(33, 47)
    assert psnr(image, codec.decompress(STREAM)) == pytest.approx(26.098, abs=0.001)
    if json.loads(codec.fingerprint)["encoder"] == "VTM Encoder Version 18.2":
        assert codec.compress(image) == codec.compress(image) == STREAM


def test_another_decoder_sees_the_same_picture(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    (tmp_path / "in.bin").write_bytes(STREAM)
    words = ["-nostdin", "-v", "error", "-f", "vvc", "-i", "in.bin", "-f", "rawvideo", "out.yuv"]
    subprocess.run([ffmpeg, *words], cwd=tmp_path, check=True, timeout=60)
    image = from_samples(np.fromfile(tmp_path / "out.yuv", "<u2"), *read_vvc_size(STREAM))
    assert psnr(picture(33, 47), image) == pytest.approx(26.098, abs=0.001)


def test_every_truncation_is_refused(vtm):
    for length in range(len(STREAM)):
        with pytest.raises(BitstreamError, match="vtm"):
            vtm(52).decompress(STREAM[:length])


def test_altered_streams_give_an_image_or_a_bitstream_error(vtm):
    generator, codec, refused = random.Random(0), vtm(52, decode_timeout_seconds=20), 0
    for _ in range(60):
        data = bytearray(STREAM)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        try:
            image = codec.decompress(bytes(data))
        except BitstreamError:
            refused += 1
        else:
            assert image.shape == (*read_vvc_size(bytes(data))[::-1], 3)
    assert 0 < refused < 60


@pytest.mark.parametrize("junk", [b"\0", b"\0\0\0", b"\0\0\1", b"\0\0\1\1", b"\0\0\0\1\0\x79", STREAM], ids=repr)
def test_bytes_that_follow_are_refused(vtm, junk):
    with pytest.raises(BitstreamError):
        vtm(52).decompress(STREAM + junk)


def test_sizes_come_from_the_sequence_parameter_set():
    assert read_vvc_size(STREAM) == (47, 33)


def parameter_set(bits: str) -> bytes:
    """A sequence parameter set as a byte stream, with its stop bit and emulation prevention."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    payload = bytearray()
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if payload.endswith(b"\0\0") and byte <= 3:
            payload.append(3)
        payload.append(byte)
    return b"\0\0\0\1\0\x79" + bytes(payload)


def ue(value: int) -> str:
    """A number in Exp-Golomb code."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("constraints", ["", "0" * 71 + "00000110" + "101010"], ids=["plain", "constrained"])
@pytest.mark.parametrize("sublayers", [0, 2])
def test_optional_fields_before_the_size_are_skipped(constraints, sublayers, window):
    bits = "00000000" + f"{sublayers:03b}" + "11011"  # identifiers, 4:4:4, tree unit size, profile present
    bits += "01000010" + f"{102:08b}" + "10" + ("1" + constraints if constraints else "0")
    bits += "0" * (-len(bits) % 8) + "1" * sublayers
    bits += "0" * (-len(bits) % 8) + "01010101" * sublayers
    bits += "00000001" + "1" * 32  # one sub-profile
    bits += "011" + ue(1928) + ue(1080)
    bits += "1" + ue(1) + ue(7) + ue(0) + ue(3) if window else "0"
    assert read_vvc_size(parameter_set(bits)) == ((1920, 1077) if window else (1928, 1080))


def size_fields(width: int, height: int, chroma: str = "11") -> str:
    """The bits of a sequence parameter set up to its size."""
    return "00000000000" + chroma + "01000" + ue(width) + ue(height)


def test_a_picture_too_large_is_refused_before_it_is_decoded(stand_in, monkeypatch):
    decoder = Vtm(32, **stand_in(decoder="raise SystemExit('started')"))
    with pytest.raises(BitstreamError, match="MAX_IMAGE_PIXELS"):
        decoder.decompress(parameter_set(size_fields(60000, 60000) + "0"))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 4096)
    with pytest.raises(BitstreamError, match="started"):
        decoder.decompress(parameter_set(size_fields(64, 64) + "0"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole VVC stream"),
        (b"\xff\xd8\xff\xd9", "not those of one picture"),
        (b"\0\0\0\1", "not those of one picture"),
        (bytes(1000), "not those of one picture"),
        (random.Random(0).randbytes(1000), "not those of one picture"),
        (b"x" + STREAM, "not those of one picture"),
        (STREAM + STREAM, "not those of one picture"),
        (STREAM[:14], "parameter set is cut"),
        (parameter_set(size_fields(64, 64, chroma="01") + "0"), "not 4:4:4"),
        (parameter_set(size_fields(8, 8) + "1" + ue(8) + ue(0) + ue(0) + ue(0)), "a picture of 0x8"),
        (parameter_set("000000000001101000" + "0" * 80), "malformed number"),
    ],
    ids=["empty", "JPEG", "start code", "zeros", "noise", "byte before", "twice", "cut", "4:2:0", "no width", "no number"],
)
def test_foreign_bytes_are_refused_without_a_decoder(stand_in, data, message):
    with pytest.raises(BitstreamError, match=message):
        Vtm(32, **stand_in()).decompress(data)


def test_points(stand_in):
    codec = Vtm({"qp": 42}, **stand_in())
    assert (codec.point.label, codec.point.parameters) == ("qp=42", {"qp": 42})
    assert codec.point.order < Vtm(22, **stand_in()).point.order
    assert codec.fingerprint != Vtm(22, **stand_in()).fingerprint
    for bad in [64, -1, 32.5, "32", None, {"quality": 3}]:
        with pytest.raises(CodecError, match="vtm: "):
            Vtm(bad, **stand_in())


def test_the_fingerprint_holds_programs_and_configuration(stand_in, tmp_path):
    options = stand_in()
    before = json.loads(Vtm(32, **options).fingerprint)
    assert before["encoder"] == "VTM Encoder Version 0.1" and before["decoder"] == "VTM Decoder Version 0.1"
    assert Vtm(32, timeout_seconds=1, **options).fingerprint == Vtm(32, **options).fingerprint
    (tmp_path / "intra.cfg").write_text("QP : 33\n")
    after = json.loads(Vtm(32, **options).fingerprint)
    assert {key for key in before["sha256"] if before["sha256"][key] != after["sha256"][key]} == {"config"}


def test_the_command_line_is_the_specified_one(stand_in, tmp_path):
    options = stand_in(encoder="open('out.bin', 'w').write('\\n'.join(sys.argv[1:]))")
    words = Vtm(47, **options).compress(picture(33, 47)).decode().split("\n")
    assert words == [
        *("-c", str(tmp_path / "intra.cfg"), "-i", "in.yuv", "-b", "out.bin", "-o", "/dev/null", "-q", "47"),
        *("--SourceWidth=47", "--SourceHeight=33", "--FrameRate=1", "--FramesToBeEncoded=1", "--InputChromaFormat=444"),
        *("--InputBitDepth=10", "--InternalBitDepth=10", "--OutputBitDepth=10", "--ConformanceWindowMode=1", "--Level=6.2"),
    ]


def test_what_is_missing_is_named(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert "ICMBENCH_VTM" in Vtm.usable()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert str(tmp_path / "bin/EncoderAppStatic") in Vtm.usable()
    options = stand_in()
    with pytest.raises(CodecError, match=r"vtm: decoder: no such file: .*nowhere"):
        Vtm(32, **{**options, "decoder": tmp_path / "nowhere"})
    with pytest.raises(CodecError, match="is not VTM's encoder"):
        Vtm(32, **{**options, "encoder": options["decoder"]})
    options["encoder"].chmod(0o644)
    with pytest.raises(CodecError, match="vtm: encoder: no program"):
        Vtm(32, **options)
    with pytest.raises(CodecError, match="positive"):
        Vtm(32, **stand_in(), timeout_seconds=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sys.exit('level too low')", r"ended with code 1, for an image of 5x4:\nlevel too low"),
        ("import os; os.abort()", "killed by signal 6"),
        ("", "wrote no stream"),
    ],
    ids=["fails", "crashes", "writes nothing"],
)
def test_a_failing_encoder_is_a_codec_error(stand_in, source, message):
    with pytest.raises(CodecError, match=message):
        Vtm(32, **stand_in(encoder=source)).compress(picture(4, 5))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sys.exit('no such tool')", "no such tool"),
        ("", "gave no picture"),
        ("open('rec.yuv', 'wb').write(bytes(47 * 33 * 6 - 2))", "4652 samples, where a 47x33 image has 4653"),
        ("open('rec.yuv', 'wb').write(bytes(2 * 47 * 33 * 6))", "9306 samples"),
    ],
    ids=["fails", "writes nothing", "writes too little", "writes two pictures"],
)
def test_a_failing_decoder_is_a_bitstream_error(stand_in, source, message):
    with pytest.raises(BitstreamError, match=message):
        Vtm(32, **stand_in(decoder=source)).decompress(STREAM)


@pytest.mark.parametrize("program", ["encoder", "decoder"])
def test_a_hanging_program_and_its_child_are_killed(stand_in, tmp_path, limit_time_from, program):
    pid = tmp_path / "pid"
    options = stand_in(**{program: HANG.format(pid=str(pid))})
    limits = {"timeout_seconds": 2, "timeout_seconds_per_megapixel": 0, "decode_timeout_seconds": 2}
    codec = Vtm(32, **options, **limits, decode_timeout_seconds_per_megapixel=0)
    limit_time_from(pid)
    if program == "encoder":
        with pytest.raises(CodecError, match=r"did not end within 2 s \(raise timeout_seconds"):
            codec.compress(picture(4, 5))
    else:
        with pytest.raises(BitstreamError, match="raise decode_timeout_seconds"):
            codec.decompress(STREAM)
    assert not (tmp_path / "slept").exists()
    assert is_gone(int(pid.read_text()))


def test_only_rgb_arrays_are_compressed(stand_in):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        Vtm(32, **stand_in()).compress(np.zeros((8, 8), np.uint8))


def test_decoding_alone_needs_the_decoder_alone(stand_in, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    files = stand_in(decoder="import pathlib\npathlib.Path('rec.yuv').write_bytes(bytes(2 * 3 * 47 * 33))\n")
    codec = Vtm(52, decoder=files["decoder"], decode_only=True)
    assert codec.point.label == "qp=52" and codec.decompress(STREAM).shape == (33, 47, 3)
    with pytest.raises(CodecError, match="its encoder is not here"):
        codec.compress(picture(33, 47))
    with pytest.raises(CodecError, match="vtm: needs decoder"):
        Vtm(52, decode_only=True)
