"""The container: what it holds, what it costs, what it refuses."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.codecs import bitstream
from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import CODECS, MAX_PIXELS, Container, Overrides, Text, codec_name, seal

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
        colour=draw(st.none() | st.binary(min_size=12, max_size=12)),
        model_hash=draw(st.none() | st.binary(min_size=4, max_size=4)),
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
    data = PLAIN.to_bytes()
    for position, value, message in ((0, 0x41, "version"), (2, 0x80, "later version"), (0, 0x3F, "codec number 31")):
        with pytest.raises(BitstreamError, match=message):
            Container.from_bytes(with_byte(data, position, value))


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
    ],
)
def test_what_does_not_fit_the_format_is_an_encoder_error(change):
    with pytest.raises(CodecError):
        Container(**{**PLAIN.__dict__, **change}).to_bytes()
