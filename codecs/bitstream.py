"""The container of the project's own codecs: about ten bytes around one payload.

    version (3 bits) and codec id (5 bits)   1 byte; id 0 means that a varint length and the codec's name in UTF-8 follow
    model or rate point                      1 byte, in the codec's own numbering
    flags                                    1 byte: bit 0 tells the entropy coder's arithmetic, bits 1 to 5 the optional fields
    width, height                            varints
    optional fields, in this order:
      seed                                   4 bytes
      overrides                              2 varints (steps, noise level) and 2 bytes (guidance)
      text                                   1 byte (mode), 2 varints (count, bits) and the text's own bytes
      version 1: colour statistics           12 bytes; no codec ever wrote them
                 model hash                  4 bytes; no codec ever wrote it
      version 2: variant                     1 byte, in the codec's own numbering, from 1; bit 4 of the flags
    symbol check                             2 bytes: CRC-32, its low half, over the header and the codec's own checksum
    length of z                              varint: how many bytes of the payload are side information
    payload                                  z, then y
    stream check                             2 bytes: CRC-32, its low half, over all bytes before it

A stream is written in the lowest version that has its fields: version 2 if it has a variant, otherwise version 1, whose bytes are
those that earlier releases wrote. Both are read.

The stream check refuses foreign, truncated and altered bytes before anything is decoded. The symbol check tells a decoder whether
it decoded the symbols that the encoder coded, with the same weights. Integers are little-endian.

An encoder pads the payload with zero bytes, which the entropy coders ignore, to at least one byte for every PIXELS_PER_BYTE pixels.
A stream of a few bytes can therefore not claim a huge image.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from icmbench.codecs.base import BitstreamError, CodecError

VERSIONS = (1, 2)
CODECS = {1: "elic", 2: "diff-icmh", 3: "resulic", 4: "slim", 5: "cadc", 6: "stablecodec"}  # 6 is reserved: no such codec here
PIXELS_PER_BYTE = 8192
FREE_PIXELS = 1 << 18  # A stream of any length may claim this many pixels.
MAX_PIXELS = 1 << 28
_IDS = {name: number for number, name in CODECS.items()}
# Bits of the flags byte. Bits 4 and 5 are _COLOUR and _HASH in version 1; bit 4 is _VARIANT in version 2, which has no bit 5.
_PORTABLE, _SEED, _OVERRIDES, _TEXT, _COLOUR, _HASH = (1 << bit for bit in range(6))
_VARIANT = _COLOUR
_MAX_NAME = 64  # bytes


@dataclass(frozen=True)
class Overrides:
    """Sampling parameters of a stream that differ from the model's own; 0 keeps the model's.

    Attributes:
        steps: Number of sampling steps.
        noise_level: Diffusion time step at which sampling starts.
        guidance: Scale of classifier-free guidance, below 256, stored in steps of 1/256.
    """

    steps: int = 0
    noise_level: int = 0
    guidance: float = 0.0


@dataclass(frozen=True)
class Text:
    """Text side information.

    Attributes:
        mode: The codec's number for the text coder that made it, one byte.
        count: Number of tags or tokens.
        bits: How many bits of `data` are used.
        data: The coded text, `bits` rounded up to bytes.
    """

    mode: int
    count: int
    bits: int
    data: bytes


@dataclass(frozen=True)
class Container:
    """The fields of a stream, parsed or to be written.

    Attributes:
        codec: Entry point name of the codec.
        model: The codec's number for its model or rate point, one byte.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        payload: The entropy-coded latents: z, then y.
        z_bytes: How many bytes of the payload are z.
        checksum: 32 bits over the symbols and the weights, known to encoder and decoder. A parsed stream has None, because only
            16 bits of a hash of it are stored; see `verify`.
        portable: Whether the entropy networks ran on the fixed-point grid, so that the stream decodes on any processor.
        seed: Seed of the decoder's sampler.
        overrides: Sampling parameters that differ from the model's own.
        text: Text side information.
        colour: 12 bytes. Only in version 1, and unused.
        model_hash: 4 bytes. Only in version 1, and unused.
        variant: The codec's number for what `model` has no room for, 1 to 255; 0 for nothing, which takes no byte. Streams with a
            variant are of version 2.
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
    variant: int = 0

    def to_bytes(self) -> bytes:
        """The whole stream.

        Raises:
            CodecError: a field does not fit the format, or the checksum is missing.
        """
        if self.checksum is None:
            raise CodecError("a stream needs the checksum of its symbols")
        if self.width < 1 or self.height < 1 or self.width * self.height > MAX_PIXELS:
            raise CodecError(f"cannot code an image of {self.width}x{self.height}; the format takes 1 to {MAX_PIXELS} pixels")
        header = self._header()
        length = max(len(self.payload), _min_payload(self.width * self.height))
        body = header + _symbol_check(header, self.checksum) + _varint(self.z_bytes) + self.payload.ljust(length, b"\0")
        return seal(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Container:
        """Parse a stream. This allocates no more memory than the stream's own size.

        Raises:
            BitstreamError: the bytes are not one whole stream of this format.
        """
        reader = _Reader(_unseal(data))
        name = reader.codec()
        version = data[0] >> 5
        model, flags = reader.take(2)
        if flags >= 2 * (_HASH if version == 1 else _VARIANT):
            raise BitstreamError("the stream has fields of a later version; update icmbench")
        width, height = reader.varint(), reader.varint()
        seed = int.from_bytes(reader.take(4), "little") if flags & _SEED else None
        overrides = reader.overrides() if flags & _OVERRIDES else None
        text = reader.text() if flags & _TEXT else None
        variant, colour, model_hash = 0, None, None
        if version == 1:
            colour = reader.take(12) if flags & _COLOUR else None
            model_hash = reader.take(4) if flags & _HASH else None
        elif flags & _VARIANT:
            (variant,) = reader.take(1)
        if version == 2 and not variant:  # Each header has one form, which `verify` compares.
            raise BitstreamError("the stream's header has a version that its fields do not need: it is damaged")
        reader.take(2)  # the symbol check; `verify` compares it once the symbols are decoded
        z_bytes = reader.varint()
        payload = reader.remaining()
        if width < 1 or height < 1 or width * height > MAX_PIXELS or len(payload) < _min_payload(width * height):
            raise BitstreamError(f"a stream of {len(data)} bytes cannot hold the {width}x{height} image it claims")
        if z_bytes > len(payload):
            raise BitstreamError(f"the stream claims {z_bytes} bytes of z in a payload of {len(payload)}")
        portable = bool(flags & _PORTABLE)
        fields = (z_bytes, None, portable, seed, overrides, text, colour, model_hash, variant)
        return cls(name, model, width, height, payload, *fields)

    def verify(self, data: bytes, checksum: int) -> None:
        """Compare the stream's symbol check with the decoder's checksum.

        Args:
            data: The stream that this container was parsed from.
            checksum: 32 bits over the decoded symbols and the weights.

        Raises:
            BitstreamError: the stream was written with another checksum.
        """
        header = self._header()
        if data[: len(header) + 2] != header + _symbol_check(header, checksum):
            raise BitstreamError(
                "the decoded symbols are not the encoded ones: the stream is damaged, or was made with other weights"
                + ("" if self.portable else " or on another kind of processor (mode: portable makes streams that decode anywhere)")
            )

    def rates(self, data: bytes) -> dict[str, int]:
        """Bits of the parts header, z, y and text, which sum to the stream.

        Args:
            data: The stream that this container was parsed from.
        """
        text = 0 if self.text is None else 8 * len(_text_bytes(self.text))
        z, payload = 8 * self.z_bytes, 8 * len(self.payload)
        return {"header": 8 * len(data) - payload - text, "z": z, "y": payload - z, "text": text}

    def _header(self) -> bytes:
        """All bytes before the symbol check."""
        optional: list[tuple[int, bytes | None]] = [
            (_PORTABLE, b"" if self.portable else None),
            (_SEED, None if self.seed is None else _fixed(self.seed, 4, "seed")),
            (_OVERRIDES, None if self.overrides is None else _overrides_bytes(self.overrides)),
            (_TEXT, None if self.text is None else _text_bytes(self.text)),
            (_COLOUR, self.colour),
            (_HASH, self.model_hash),
            (_VARIANT, _fixed(self.variant, 1, "variant") if self.variant else None),
        ]
        if self.variant and (self.colour is not None or self.model_hash is not None):
            raise CodecError("a stream with a variant has neither colour statistics nor a model hash")
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
                bytes([(2 if self.variant else 1) << 5 | number]),
                b"" if number else _varint(len(name)) + name,
                _fixed(self.model, 1, "model"),
                bytes([flags]),
                _varint(self.width),
                _varint(self.height),
                *(field for _, field in optional if field is not None),
            ]
        )


def codec_name(data: bytes) -> str:
    """The entry point name of the codec that wrote a stream.

    Raises:
        BitstreamError: the bytes are not one whole stream of this format.
    """
    return _Reader(_unseal(data)).codec()


def seal(body: bytes) -> bytes:
    """A stream: the body, followed by its stream check."""
    return body + (zlib.crc32(body) & 0xFFFF).to_bytes(2, "little")


def _unseal(data: bytes) -> bytes:
    """The body of a stream whose version and stream check are right."""
    body, check = data[:-2], data[-2:]
    if len(body) < 8 or body[0] >> 5 not in VERSIONS:
        raise BitstreamError("the bytes are no stream of this project, or of a version that it does not know")
    if (zlib.crc32(body) & 0xFFFF).to_bytes(2, "little") != check:
        raise BitstreamError("the stream is truncated or altered: its check does not match")
    return body


def _symbol_check(header: bytes, checksum: int) -> bytes:
    return (zlib.crc32(checksum.to_bytes(4, "little"), zlib.crc32(header)) & 0xFFFF).to_bytes(2, "little")


def _min_payload(pixels: int) -> int:
    return max(0, pixels - FREE_PIXELS) // PIXELS_PER_BYTE


def _varint(value: int) -> bytes:
    if not 0 <= value < 1 << 32:
        raise CodecError(f"{value} does not fit a stream's header")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _fixed(value: int, size: int, name: str) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise CodecError(f"{name} {value} does not fit {size} bytes of a stream's header")
    return value.to_bytes(size, "little")


def _overrides_bytes(overrides: Overrides) -> bytes:
    return _varint(overrides.steps) + _varint(overrides.noise_level) + _fixed(round(256 * overrides.guidance), 2, "guidance")


def _text_bytes(text: Text) -> bytes:
    if len(text.data) != (text.bits + 7) // 8:
        raise CodecError(f"text of {text.bits} bits does not fill {len(text.data)} bytes")
    return _fixed(text.mode, 1, "text mode") + _varint(text.count) + _varint(text.bits) + text.data


class _Reader:
    """Reads the fields of a header one after the other. Raises BitstreamError if the bytes end too early."""

    def __init__(self, body: bytes) -> None:
        self._body, self._position = body, 0

    def take(self, count: int) -> bytes:
        if count > len(self._body) - self._position:
            raise BitstreamError("the stream ends within its header")
        self._position += count
        return self._body[self._position - count : self._position]

    def remaining(self) -> bytes:
        return self.take(len(self._body) - self._position)

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
