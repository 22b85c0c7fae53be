"""The container of the project's own codecs: about ten bytes around one payload.

    version (3 bits) and codec id (5 bits)   1 byte; id 0: a varint length and the codec's name in UTF-8 follow
    model or rate point                      1 byte, the codec's own numbering
    flags                                    1 byte: which of the optional fields follow; the arithmetic of the entropy coder
    width, height                            varints
    optional: seed (4), overrides, text, colour statistics (12), model hash (4)
    symbol check                             2 bytes: over the header and what the codec says of its symbols and weights
    length of z                              varint: the bytes of the payload that are side information
    payload                                  z, then y
    stream check                             2 bytes: CRC-32 of all bytes before, its low half

The stream check turns away foreign, truncated and altered bytes before anything is decoded; the symbol check tells a decoder
whether it saw the symbols that the encoder saw, with the same weights. An encoder pads the payload with zero bytes, which coders
ignore, to at least a byte for every PIXELS_PER_BYTE pixels: so a few bytes cannot claim a huge image. Integers are little-endian.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from icmbench.codecs.base import BitstreamError, CodecError

VERSION = 1
CODECS = {1: "elic", 2: "diff-icmh", 3: "resulic", 4: "slim", 5: "cadc", 6: "stablecodec"}
PIXELS_PER_BYTE = 8192
FREE_PIXELS = 1 << 18  # any stream may claim as many
MAX_PIXELS = 1 << 28
_IDS = {name: number for number, name in CODECS.items()}
_PORTABLE, _SEED, _OVERRIDES, _TEXT, _COLOUR, _HASH = (1 << bit for bit in range(6))
_MAX_NAME = 64


@dataclass(frozen=True)
class Overrides:
    """Sampling parameters that differ from the model's own; 0 keeps the model's. guidance is kept in steps of 1/256."""

    steps: int = 0
    noise_level: int = 0
    guidance: float = 0.0


@dataclass(frozen=True)
class Text:
    """Text side information. mode: the codec's numbering of its text coders; count: tags or tokens; bits: used bits of data."""

    mode: int
    count: int
    bits: int
    data: bytes


@dataclass(frozen=True)
class Container:
    """A parsed stream, or one to be written.

    checksum: 32 bits over the symbols and the weights, known to encoder and decoder; None in a parsed stream, see `verify`.
    z_bytes: how many of the payload's bytes are z. colour: 12 bytes. model_hash: 4 bytes.
    """

    codec: str
    model: int
    width: int
    height: int
    payload: bytes
    z_bytes: int = 0
    checksum: int | None = None
    portable: bool = False
    seed: int | None = None
    overrides: Overrides | None = None
    text: Text | None = None
    colour: bytes | None = None
    model_hash: bytes | None = None

    def to_bytes(self) -> bytes:
        """The whole stream. CodecError where a field does not fit the format."""
        if self.checksum is None:
            raise CodecError("a stream needs the checksum of its symbols")
        if self.width < 1 or self.height < 1 or self.width * self.height > MAX_PIXELS:
            raise CodecError(f"cannot code an image of {self.width}x{self.height}; the format takes 1 to {MAX_PIXELS} pixels")
        header = self._header()
        length = max(len(self.payload), _least_payload(self.width * self.height))
        body = header + _check(header, self.checksum) + _varint(self.z_bytes) + self.payload.ljust(length, b"\0")
        return seal(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Container:
        """Parses a stream. BitstreamError unless it is whole; allocates no more than the stream's own size."""
        reader = _Reader(_unseal(data))
        name = reader.codec()
        model, flags = reader.take(2)
        if flags >= 2 * _HASH:
            raise BitstreamError("the stream has fields of a later version; update icmbench")
        width, height = reader.varint(), reader.varint()
        seed = int.from_bytes(reader.take(4), "little") if flags & _SEED else None
        overrides = reader.overrides() if flags & _OVERRIDES else None
        text = reader.text() if flags & _TEXT else None
        colour = reader.take(12) if flags & _COLOUR else None
        model_hash = reader.take(4) if flags & _HASH else None
        reader.take(2)
        z_bytes = reader.varint()
        payload = reader.rest()
        if width < 1 or height < 1 or width * height > MAX_PIXELS or len(payload) < _least_payload(width * height):
            raise BitstreamError(f"a stream of {len(data)} bytes cannot hold the {width}x{height} image it claims")
        if z_bytes > len(payload):
            raise BitstreamError(f"the stream claims {z_bytes} bytes of z in a payload of {len(payload)}")
        return cls(
            name, model, width, height, payload, z_bytes, None, bool(flags & _PORTABLE), seed, overrides, text, colour, model_hash
        )

    def verify(self, data: bytes, checksum: int) -> None:
        """BitstreamError unless `data`, which this was parsed from, was written with that checksum."""
        header = self._header()
        if data[: len(header) + 2] != header + _check(header, checksum):
            raise BitstreamError(
                "the decoded symbols are not the encoded ones: the stream is damaged, or was made with other weights"
                + ("" if self.portable else " or on another kind of processor (mode: portable makes streams that decode anywhere)")
            )

    def rates(self, data: bytes) -> dict[str, int]:
        """Bits of `data`, which this was parsed from, by part: header, z, y, text."""
        text = 0 if self.text is None else 8 * len(_text(self.text))
        z, payload = 8 * self.z_bytes, 8 * len(self.payload)
        return {"header": 8 * len(data) - payload - text, "z": z, "y": payload - z, "text": text}

    def _header(self) -> bytes:
        optional: list[tuple[int, bytes | None]] = [
            (_PORTABLE, b"" if self.portable else None),
            (_SEED, None if self.seed is None else _fixed(self.seed, 4, "seed")),
            (_OVERRIDES, None if self.overrides is None else _overrides(self.overrides)),
            (_TEXT, None if self.text is None else _text(self.text)),
            (_COLOUR, self.colour),
            (_HASH, self.model_hash),
        ]
        for field, size in ((self.colour, 12), (self.model_hash, 4)):
            if field is not None and len(field) != size:
                raise CodecError(f"an optional field has {len(field)} bytes where the format has {size}")
        number = _IDS.get(self.codec, 0)
        name = self.codec.encode()
        if not number and not 0 < len(name) <= _MAX_NAME:
            raise CodecError(f"a codec name in a stream has 1 to {_MAX_NAME} bytes, not {len(name)}")
        flags = sum(flag for flag, field in optional if field is not None)
        return b"".join(
            [
                bytes([VERSION << 5 | number]),
                b"" if number else _varint(len(name)) + name,
                _fixed(self.model, 1, "model"),
                bytes([flags]),
                _varint(self.width),
                _varint(self.height),
                *(field for _, field in optional if field is not None),
            ]
        )


def codec_name(data: bytes) -> str:
    """The entry point name of the codec that wrote a stream. BitstreamError where the bytes are no whole stream."""
    return _Reader(_unseal(data)).codec()


def seal(body: bytes) -> bytes:
    """A stream: the body and its check."""
    return body + (zlib.crc32(body) & 0xFFFF).to_bytes(2, "little")


def _unseal(data: bytes) -> bytes:
    body, check = data[:-2], data[-2:]
    if len(body) < 8 or body[0] >> 5 != VERSION:
        raise BitstreamError("the bytes are no stream of this project, or of a version that it does not know")
    if (zlib.crc32(body) & 0xFFFF).to_bytes(2, "little") != check:
        raise BitstreamError("the stream is truncated or altered: its check does not match")
    return body


def _check(header: bytes, checksum: int) -> bytes:
    return (zlib.crc32(checksum.to_bytes(4, "little"), zlib.crc32(header)) & 0xFFFF).to_bytes(2, "little")


def _least_payload(pixels: int) -> int:
    return max(0, pixels - FREE_PIXELS) // PIXELS_PER_BYTE


def _varint(value: int) -> bytes:
    if not 0 <= value < 1 << 32:
        raise CodecError(f"{value} does not fit a stream's header")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _fixed(value: int, size: int, what: str) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise CodecError(f"{what} {value} does not fit {size} bytes of a stream's header")
    return value.to_bytes(size, "little")


def _overrides(fields: Overrides) -> bytes:
    return _varint(fields.steps) + _varint(fields.noise_level) + _fixed(round(256 * fields.guidance), 2, "guidance")


def _text(text: Text) -> bytes:
    if len(text.data) != (text.bits + 7) // 8:
        raise CodecError(f"text of {text.bits} bits does not fill {len(text.data)} bytes")
    return _fixed(text.mode, 1, "text mode") + _varint(text.count) + _varint(text.bits) + text.data


class _Reader:
    """Takes fields off the front. BitstreamError where the bytes end too early."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, count: int) -> bytes:
        if count > len(self._body) - self._at:
            raise BitstreamError("the stream ends within its header")
        self._at += count
        return self._body[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._body) - self._at)

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                if value >= 1 << 32 or (shift and not byte):
                    break
                return value
        raise BitstreamError("the stream's header holds a malformed number")

    def codec(self) -> str:
        number = self.take(1)[0] & 31
        if number:
            if number not in CODECS:
                raise BitstreamError(f"the stream was made by codec number {number}, which this version does not know")
            return CODECS[number]
        length = self.varint()
        try:
            name = self.take(length if 0 < length <= _MAX_NAME else len(self._body)).decode()
        except UnicodeDecodeError:
            name = ""
        if not name or name in _IDS:
            raise BitstreamError("the stream's header holds a malformed codec name")
        return name

    def overrides(self) -> Overrides:
        return Overrides(self.varint(), self.varint(), int.from_bytes(self.take(2), "little") / 256)

    def text(self) -> Text:
        (mode,) = self.take(1)
        count, bits = self.varint(), self.varint()
        return Text(mode, count, bits, self.take((bits + 7) // 8))
