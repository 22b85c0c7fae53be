"""The container: what it holds, what it costs, what it refuses."""

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.codecs import bitstream
from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import CODECS, MAX_PIXELS, Container, Overrides, Text, codec_name, seal

# A stream of version 1 with every optional field, written before there was a version 2.
VERSION_1 = bytes.fromhex(
    "23433f28380100000002ac0280010102090102000102030405060708090a0b616263647ed404000102030405060708090a0b0c0d0e0f10111213e5f9"
)
PLAIN = Container("elic", 3, 768, 512, bytes(range(1, 200)), z_bytes=40, checksum=0x12345678)


def with_byte(data: bytes, position: int, value: int) -> bytes:
    """The stream with one byte changed and a right stream check."""
    body = bytearray(data[:-2])
    body[position] = value
    return seal(bytes(body))


@st.composite
def containers(draw):
    name = draw(st.sampled_from([*CODECS.values(), "my-plug-in", "ü"]))
    payload = draw(st.binary(min_size=8, max_size=60))
    bits = draw(st.integers(0, 100))
    text = Text(draw(st.integers(0, 255)), draw(st.integers(0, 300)), bits, bytes((bits + 7) // 8))
    variant = draw(st.just(0) | st.integers(1, 255))
    return Container(
        codec=name,
        model=draw(st.integers(0, 255)),
        width=draw(st.integers(1, 500)),
        height=draw(st.integers(1, 500)),
        payload=payload,
        z_bytes=draw(st.integers(0, len(payload))),
        checksum=draw(st.integers(0, 2**32 - 1)),
        portable=draw(st.booleans()),
        seed=draw(st.none() | st.integers(0, 2**32 - 1)),
        overrides=draw(st.none() | st.builds(Overrides, st.integers(0, 999), st.integers(0, 999), st.sampled_from([0, 2.5, 7]))),
        text=draw(st.none() | st.just(text)),
        colour=None if variant else draw(st.none() | st.binary(min_size=12, max_size=12)),
        model_hash=None if variant else draw(st.none() | st.binary(min_size=4, max_size=4)),
        variant=variant,
    )


@given(containers())
def test_every_field_comes_back_and_the_parts_sum_to_the_stream(container):
    data = container.to_bytes()
    parsed = Container.from_bytes(data)
    assert codec_name(data) == parsed.codec == container.codec
    assert parsed == Container(**{**container.__dict__, "checksum": None})
    parsed.verify(data, container.checksum)
    with pytest.raises(BitstreamError, match="not the encoded ones"):
        parsed.verify(data, container.checksum ^ 1)
    rates = parsed.rates(data)
    assert sum(rates.values()) == 8 * len(data) and min(rates.values()) >= 0
    assert rates["z"] == 8 * container.z_bytes
    assert rates["z"] + rates["y"] == 8 * len(container.payload)


def test_a_photograph_costs_about_ten_bytes_of_header():
    assert len(PLAIN.to_bytes()) - len(PLAIN.payload) == 12


def test_text_is_counted_as_text():
    text = Text(mode=1, count=9, bits=117, data=bytes(15))
    data = Container("diff-icmh", 1, 512, 512, bytes(20), 4, checksum=0, text=text).to_bytes()
    assert Container.from_bytes(data).rates(data)["text"] == 8 * (15 + 3)


def test_a_header_change_that_keeps_the_latents_shape_is_noticed_by_the_symbol_check():
    data = PLAIN.to_bytes()
    assert data[3:5] == bytes([0x80, 0x06])  # width 768
    altered = with_byte(data, 3, 0x81)
    parsed = Container.from_bytes(altered)
    assert parsed.width == 769
    with pytest.raises(BitstreamError):
        parsed.verify(altered, PLAIN.checksum)


def test_every_truncation_and_every_flipped_bit_is_refused():
    data = PLAIN.to_bytes()
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            Container.from_bytes(data[:length])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            Container.from_bytes(bytes(flipped))


@pytest.mark.parametrize(
    "data", [b"", b"\x21", b"\xff\xd8\xff\xe0" * 9, b"\x89PNG\r\n\x1a\n" * 4, b"RIFF....WEBPVP8 ", b" " * 40, bytes(100)]
)
def test_foreign_bytes_are_refused(data):
    for read in (Container.from_bytes, codec_name):
        with pytest.raises(BitstreamError):
            read(data)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_junk_with_a_right_check_raises_nothing_else(junk, known_codec):
    data = seal((b"\x21" if known_codec else b"") + junk)
    try:
        container = Container.from_bytes(data)
    except BitstreamError:
        return
    assert container.width * container.height <= MAX_PIXELS and len(container.payload) < len(data)


@pytest.mark.parametrize("width, height", [(1 << 15, 1 << 15), (1 << 31, 1), (1 << 31, 1 << 31), (0, 5), (MAX_PIXELS, 2)])
def test_a_few_bytes_cannot_claim_a_huge_image(monkeypatch, width, height):
    def varint(value):
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    data = seal(b"\x21\x01\x00" + varint(width) + varint(height) + b"\0\0" + b"\x01" + b"payload...")
    reads, take = [], bitstream._Reader.take
    monkeypatch.setattr(bitstream._Reader, "take", lambda reader, count: (reads.append(count), take(reader, count))[1])
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="cannot hold"):
        Container.from_bytes(data)
    assert sum(reads) <= len(data)  # No byte is read twice, so refusing the stream takes no longer than reading it.
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_large_plain_image_is_padded_to_a_plausible_size_and_decodes():
    container = Container("elic", 1, 8000, 6000, b"\x01\x02", checksum=7)
    data = container.to_bytes()
    assert 8000 * 6000 / 8192 - 40 < len(data) < 8000 * 6000 / 8192
    assert Container.from_bytes(data).payload.rstrip(b"\0") == b"\x01\x02"


def test_later_versions_flags_and_codecs_are_named():
    data, varied = PLAIN.to_bytes(), replace(PLAIN, variant=1).to_bytes()
    for stream, position, value, message in (
        (data, 0, 0x61, "version that it does not know"),
        (data, 2, 0x80, "later version"),
        (data, 0, 0x3F, "codec number 31"),
        (varied, 2, 0x30, "later version"),
    ):
        with pytest.raises(BitstreamError, match=message):
            Container.from_bytes(with_byte(stream, position, value))


def test_streams_of_version_1_are_read_and_still_written():
    parsed = Container.from_bytes(VERSION_1)
    assert (parsed.codec, parsed.model, parsed.width, parsed.height, parsed.variant) == ("resulic", 0x43, 40, 56, 0)
    assert (parsed.seed, parsed.overrides, parsed.text) == (1, Overrides(2, 300, 1.5), Text(1, 2, 9, b"\1\2"))
    assert (parsed.colour, parsed.model_hash, parsed.payload) == (bytes(range(12)), b"abcd", bytes(range(20)))
    parsed.verify(VERSION_1, 9)
    assert replace(parsed, checksum=9).to_bytes() == VERSION_1


def test_only_a_variant_makes_a_stream_of_version_2():
    """A variant costs one byte; every header has one form, so a version 2 that is not needed is refused."""
    plain, varied = PLAIN.to_bytes(), replace(PLAIN, variant=7).to_bytes()
    assert (plain[0] >> 5, varied[0] >> 5, len(varied) - len(plain)) == (1, 2, 1)
    assert (Container.from_bytes(varied).variant, codec_name(varied)) == (7, "elic")
    assert varied[5:7] == plain[5:7] and varied[7] == 7  # It follows the height.
    for position, value in ((0, 0x41), (7, 0)):
        with pytest.raises(BitstreamError, match="do not need"):
            Container.from_bytes(with_byte(plain if position == 0 else varied, position, value))


def test_a_name_that_has_a_number_must_use_it():
    with pytest.raises(BitstreamError, match="codec name"):
        Container.from_bytes(seal(b"\x20\x04elic\x01\x00\x01\x01\0\0\0payload"))


@pytest.mark.parametrize(
    "change",
    [
        {"checksum": None},
        {"width": 0},
        {"height": MAX_PIXELS},
        {"model": 256},
        {"seed": -1},
        {"codec": ""},
        {"codec": "x" * 65},
        {"colour": b"short"},
        {"model_hash": b""},
        {"text": Text(0, 1, 9, b"x")},
        {"overrides": Overrides(guidance=300.0)},
        {"variant": 256},
        {"variant": -1},
        {"variant": 1, "model_hash": b"abcd"},
    ],
)
def test_what_does_not_fit_the_format_is_an_encoder_error(change):
    with pytest.raises(CodecError):
        Container(**{**PLAIN.__dict__, **change}).to_bytes()
