"""VVC, HEVC and AV1 by ffmpeg: rates of a real photograph, sizes, the trailer, and what every kind of bad stream raises."""

import json
import random
import subprocess
import sys
import zlib

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.ffmpeg import X265, Av1, Vvenc

from .helpers import psnr, smooth_image

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

FASTEST = {Vvenc: {"preset": "faster"}, X265: {"preset": "ultrafast"}, Av1: {"speed": 8}}


def skip_unusable(codec_class):
    reason = codec_class.usable()
    return pytest.param(codec_class, id=codec_class.name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))


each_codec = pytest.mark.parametrize("codec_class", [skip_unusable(codec_class) for codec_class in FASTEST])


def fast(codec_class):
    """The codec at its fastest setting and a rate in the middle of its curve."""
    return codec_class(codec_class.default_points[2], **FASTEST[codec_class])


def stand_in(monkeypatch, tmp_path, source: str) -> None:
    """Replaces ffmpeg by a script that claims to have all its encoders."""
    program = tmp_path / "ffmpeg"
    names = " ".join(f"print(' V. {name}')" + ";" for name in ("libvvenc", "libx265", "libaom-av1"))
    head = f"#!{sys.executable}\nimport sys\nif '-encoders' in sys.argv or '-version' in sys.argv:\n    {names} sys.exit()\n"
    program.write_text(head + source)
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


@pytest.mark.parametrize(
    ("codec_class", "point", "bpp", "decibel"),
    [  # rates and PSNR of kodim03 that the baselines are specified to have, with HEVC's wavefronts and AV1's default speed
        (Vvenc, 22, 0.878, 42.68),
        (X265, 51, 0.0231, 26.9),
        (Av1, 63, 0.0127, 25.3),
    ],
    ids=["vvenc", "x265", "av1"],
)
def test_rates_of_a_photograph(photograph, codec_class, point, bpp, decibel):
    codec = codec_class(point)
    stream = codec.compress(photograph)
    assert len(stream) * 8 / (768 * 512) == pytest.approx(bpp, rel=0.03)
    assert psnr(photograph, codec.decompress(stream)) == pytest.approx(decibel, abs=0.15)


@each_codec
def test_default_points_order_a_rate_curve(photograph, codec_class):
    crop = np.ascontiguousarray(photograph[128:384, 256:512])
    codecs = [codec_class(point, **FASTEST[codec_class]) for point in codec_class.default_points]
    streams = [codec.compress(crop) for codec in codecs]
    qualities = [psnr(crop, codec.decompress(stream)) for codec, stream in zip(codecs, streams, strict=True)]
    assert [codec.point.order for codec in codecs] == sorted((codec.point.order for codec in codecs), reverse=True)
    assert [len(stream) for stream in streams] == sorted(map(len, streams), reverse=True)
    assert qualities == sorted(qualities, reverse=True) and qualities[0] - qualities[-1] > 5
    assert all(codec.compress(crop) == stream for codec, stream in zip(codecs, streams, strict=True))


@each_codec
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (15, 31), (32, 33), (33, 47), (65, 64)], ids=str)
def test_every_size_keeps_its_shape(codec_class, shape):
    codec, image = codec_class(10, **FASTEST[codec_class]), smooth_image(*shape)
    image.flags.writeable = False  # as in the images that the harness passes
    stream = codec.compress(image)
    reconstruction = codec.decompress(stream)
    assert (reconstruction.shape, reconstruction.dtype) == (image.shape, np.uint8)
    assert reconstruction.flags.c_contiguous
    assert psnr(image, reconstruction) > 34
    parts = codec.rate_breakdown(stream)
    assert sum(parts.values()) == 8 * len(stream)
    only_even = codec_class is Vvenc
    padded = sum(side < codec_class.min_side or (only_even and side % 2 == 1) for side in shape)
    assert parts["header"] == 8 * (codec_class.check_bytes + padded)


@each_codec
def test_without_its_trailer_a_stream_is_a_plain_one(codec_class, tmp_path):
    codec, image = fast(codec_class), smooth_image(64, 96)
    (tmp_path / "in.bin").write_bytes(unsealed(codec, codec.compress(image)))
    arguments = ["-nostdin", "-v", "error", "-i", "in.bin", "-pix_fmt", "yuv444p10le", "-f", "rawvideo", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments]
    decoded = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60).stdout
    assert len(decoded) == 64 * 96 * 3 * 2


@each_codec
def test_points_and_settings(codec_class):
    parameter = codec_class.parameter
    bare, mapped = codec_class(40), codec_class({parameter: 40})
    assert bare.point == mapped.point and bare.fingerprint == mapped.fingerprint != codec_class(41).fingerprint
    assert bare.point.label == f"{parameter}=40" and bare.point.order > codec_class(41).point.order
    assert bare.fingerprint != codec_class(40, **FASTEST[codec_class]).fingerprint
    assert bare.fingerprint == codec_class(40, timeout_seconds=1).fingerprint
    facts = json.loads(bare.fingerprint)
    assert facts["codec"] == codec_class.name and len(facts["sha256"]) == 64 and facts["ffmpeg"][0] in "n0123456789N"
    for bad in [64, -1, 32.5, "32", None, {"quality": 3}]:
        with pytest.raises(CodecError, match=f"{codec_class.name}: "):
            codec_class(bad)
    with pytest.raises(CodecError, match="positive"):
        codec_class(40, timeout_seconds=0)


@pytest.mark.parametrize(("codec_class", "options"), [(Vvenc, {"preset": "best"}), (X265, {"preset": "best"}), (Av1, {"speed": 9})])
def test_bad_settings_are_refused(codec_class, options):
    with pytest.raises(CodecError, match=next(iter(options))):
        codec_class(40, **options)


@each_codec
def test_every_truncation_is_refused(codec_class):
    codec = fast(codec_class)
    stream = codec.compress(smooth_image(33, 47))
    for length in range(len(stream)):
        with pytest.raises(BitstreamError, match=codec.name):
            codec.decompress(stream[:length])


@each_codec
def test_truncations_of_a_photograph_are_refused(photograph, codec_class):
    codec = fast(codec_class)
    stream = codec.compress(photograph)
    for length in range(len(stream)):
        with pytest.raises(BitstreamError):
            codec.decompress(stream[:length])


def sealed(codec, body: bytes, padded: int = 0) -> bytes:
    """The body with a trailer whose check is right. `padded`: the two bits for padding at the right and at the bottom."""
    length = 4 if codec.name == "x265" else 2
    return body + ((zlib.crc32(body) << 2 & (1 << 8 * length) - 1) | padded).to_bytes(length, "little")


def unsealed(codec, stream: bytes) -> bytes:
    return stream[: -4 if codec.name == "x265" else -2]


@each_codec
def test_foreign_bytes_are_refused(codec_class):
    codec = fast(codec_class)
    usable = [other for other in FASTEST if other is not codec_class and other.usable() is None]
    foreign = [fast(other).compress(smooth_image(33, 47)) for other in usable]
    noise = random.Random(0).randbytes(1000)
    for data in [b"", b"\0", b"\0\0", b"\0\0\0", bytes(1000), noise, *foreign]:
        with pytest.raises(BitstreamError, match=codec.name):
            codec.decompress(data)
        with pytest.raises(BitstreamError, match=codec.name):  # The check is right here, so ffmpeg has to notice.
            codec.decompress(sealed(codec, data))


@each_codec
def test_bytes_that_follow_are_refused(codec_class):
    codec = fast(codec_class)
    stream = codec.compress(smooth_image(34, 48))
    for junk in [b"\0", b"\0\0\1", stream]:
        with pytest.raises(BitstreamError):
            codec.decompress(stream + junk)
    with pytest.raises(BitstreamError, match="gave no picture"):  # two pictures
        codec.decompress(sealed(codec, unsealed(codec, stream) * 2))


@each_codec
def test_padding_beyond_the_picture_is_refused(codec_class):
    codec = fast(codec_class)
    stream = unsealed(codec, codec.compress(smooth_image(34, 48)))
    assert codec.decompress(sealed(codec, stream + bytes([47, 33]), 3)).shape == (1, 1, 3)
    for sides in [(48, 1), (1, 34), (255, 255)]:
        with pytest.raises(BitstreamError, match="picture of 48x34 with padding"):
            codec.decompress(sealed(codec, stream + bytes(sides), 3))


@each_codec
def test_altered_streams_are_refused(codec_class):
    codec, generator = fast(codec_class), random.Random(1)
    stream = codec.compress(smooth_image(33, 47))
    for _ in range(2000):
        data = bytearray(stream)
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        with pytest.raises(BitstreamError):
            codec.decompress(bytes(data))


@each_codec
def test_altered_streams_with_a_right_check_give_an_image_or_a_bitstream_error(codec_class):
    codec, generator, shapes = fast(codec_class), random.Random(2), set()
    body = unsealed(codec, codec.compress(smooth_image(34, 48)))
    for _ in range(30):
        data = bytearray(body)
        data[generator.randrange(len(data) // 2, len(data))] ^= 1 << generator.randrange(8)
        try:
            shapes.add(codec.decompress(sealed(codec, bytes(data))).shape)
        except BitstreamError:
            shapes.add(None)
    assert shapes <= {None, (34, 48, 3)}


@each_codec
def test_an_ffmpeg_without_the_encoder_is_named(codec_class, monkeypatch, tmp_path):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho ' V..... libx264 H.264'\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    assert codec_class.encoder in codec_class.usable()
    with pytest.raises(CodecError, match=f"has no {codec_class.encoder}"):
        codec_class(40)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    assert "no program" in codec_class.usable()


@pytest.mark.parametrize(
    ("source", "seconds", "message"),
    [
        ("sys.exit('no such preset')", 300, r"ended with code 1, for an image of 47x33:\nno such preset"),
        ("import time; time.sleep(600)", 2, "did not end within 2 s"),
        ("", 300, "wrote no stream"),
    ],
    ids=["fails", "hangs", "writes nothing"],
)
def test_a_failing_encoder_is_a_codec_error(monkeypatch, tmp_path, source, seconds, message):
    stand_in(monkeypatch, tmp_path, source)
    codec = Vvenc(32, timeout_seconds=seconds, timeout_seconds_per_megapixel=0)
    with pytest.raises(CodecError, match=message):
        codec.compress(smooth_image(33, 47))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sys.exit('broken')", "broken"),
        ("", "gave no picture"),
        ("open('out.y4m', 'wb').write(b'YUV4MPEG2 W32 H32 F1:1 C420jpeg\\nFRAME\\n' + bytes(1536))", "C420p10 is expected"),
        ("open('out.y4m', 'wb').write(b'YUV4MPEG2 W32 H32 F1:1 C420p10\\nFRAME\\n' + bytes(3070))", "1535 samples"),
        ("open('out.y4m', 'wb').write(b'YUV4MPEG2 W32 H32 F1:1 C420p10\\nFRAME\\n' + bytes(3071))", "gave no picture"),
    ],
    ids=["fails", "writes nothing", "8 bit", "a sample short", "a byte short"],
)
def test_a_failing_decoder_is_a_bitstream_error(monkeypatch, tmp_path, source, message):
    stand_in(monkeypatch, tmp_path, source)
    codec = Vvenc(32)
    with pytest.raises(BitstreamError, match=message):
        codec.decompress(sealed(codec, b"stream"))


def test_a_hanging_decoder_is_a_bitstream_error(monkeypatch, tmp_path):
    stand_in(monkeypatch, tmp_path, "import time; time.sleep(600)")
    codec = Vvenc(32, decode_timeout_seconds=2)
    with pytest.raises(BitstreamError, match="raise decode_timeout_seconds"):
        codec.decompress(sealed(codec, b"stream"))


@each_codec
def test_only_rgb_arrays_are_compressed(codec_class):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        fast(codec_class).compress(np.zeros((8, 8), np.uint8))


def test_importing_costs_little():
    code = "import sys, icmbench.codecs.ffmpeg; print(not {'imageio_ffmpeg', 'torch', 'pandas'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


@pytest.mark.parametrize(("codec_class", "limit"), [(Vvenc, 25328), (X265, 4208), (Av1, 65536)])
def test_a_side_beyond_the_limit_is_refused_with_it(codec_class, limit):
    codec = codec_class(51)
    for shape in ((1, limit + 1, 3), (limit + 1, 1, 3)):
        size = f"{shape[1]}x{shape[0]}"
        with pytest.raises(CodecError, match=rf"{codec.name}: an image of {size} pixels .* at most {limit} pixels"):
            codec.compress(np.zeros(shape, np.uint8))


def test_the_longest_sides_code_and_decode():
    codecs = (
        (Vvenc(63, preset="faster"), 8, 25328),
        (X265(51, preset="ultrafast"), 8, 4208),
        (X265(51, preset="ultrafast"), 32, 8192),
    )
    for codec, short, limit in codecs:
        for shape in ((short, limit, 3), (limit, short, 3)):
            assert codec.decompress(codec.compress(np.full(shape, 77, np.uint8))).shape == shape
