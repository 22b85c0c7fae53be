"""Any external encoder and decoder, by their command lines: no code, an entry in the experiment file.

    codecs:
      - name: command
        label: vvc
        points: [{qp: 22}, {qp: 32}, {qp: 42}]
        set:
          encode: [vvencoder, --input, "{input}", --output, "{stream}", --qp, "{qp}"]
          decode: [vvdecoder, --bitstream, "{stream}", --output, "{output}"]
          order: -qp

    image --Pillow--> {input} --encode--> {stream} --bytes--> {stream} --decode--> {output} --Pillow--> image

For POSIX systems: a hanging program is ended by its process group.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image as Pillow

from icmbench.codecs.base import DECODE_ONLY, BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.classical import check_image
from icmbench.codecs.process import ProgramError, find_program, run_program, temporary_folder

Value: TypeAlias = int | float | str
Pixels: TypeAlias = Literal["ppm", "png", "bmp", "tif"]

_PILLOW = {"ppm": "PPM", "png": "PNG", "bmp": "BMP", "tif": "TIFF"}
# Placeholders of the two command lines, each with a value to try it with: files, which must be used, and sizes.
_ENCODE: dict[str, Value] = {"input": "file", "stream": "file", "width": 1, "height": 1}
_DECODE: dict[str, Value] = {"stream": "file", "output": "file"}


class Command:
    """Any external encoder and decoder, by their command lines.

    point: a number or a word, {point} in the command lines; or a mapping such as {qp: 32}, {qp} there.
    encode, decode: program and arguments, one list item each, never seen by a shell. Placeholders, format specifications as in
        `{qp:02d}` included: {input} {stream} {width} {height} for encode, {stream} {output} for decode, the point's parameters for
        both; a literal brace is doubled. The decoder is told no size: a stream decodes from its bytes alone.
    input, output: the 8-bit RGB file format that the encoder reads and the decoder writes.
    stream: file name extension of the stream, for tools that go by it.
    order: the parameter that sorts the points by rate, "-qp" where a larger value is a lower rate; else the first number.
    folder: where relative paths in the command lines start; the current directory if not given. A program without a slash is
        looked up on PATH. An argument with a slash or a suffix that names a file there stands for that file.
    timeout_seconds, timeout_seconds_per_megapixel: an encoder may take their sum for its image.
    decode_timeout_seconds: flat, because a bare stream does not say how many pixels it holds.
    decode_only: see `icmbench.codecs.base`; the encoder need not be there.

    Both programs, and files named as arguments of their own (`python encode.py`), are in the fingerprint by SHA-256. A call has a
    temporary folder of its own as working directory, and a process group that is killed when the program ends, fails or hangs.
    Whether truncated or altered streams are noticed is up to the decoder: a return code other than 0 or an unreadable image is
    a BitstreamError.
    """

    name = "command"
    version = 1

    def __init__(
        self,
        point: Value | Mapping[str, Value],
        *,
        encode: list[str],
        decode: list[str],
        input: Pixels = "ppm",
        output: Pixels = "ppm",
        stream: str = "bin",
        order: str | None = None,
        folder: Path | None = None,
        timeout_seconds: float = 60,
        timeout_seconds_per_megapixel: float = 600,
        decode_timeout_seconds: float = 600,
        decode_only: bool = False,
    ) -> None:
        for key, extension in {"input": input, "output": output}.items():
            if extension not in _PILLOW:
                raise CodecError(f"command: {key} is one of {', '.join(_PILLOW)}, not {extension!r}")
        if not re.fullmatch(r"[A-Za-z0-9.]+", stream):
            raise CodecError(f"command: stream is a file name extension such as 'bin', not {stream!r}")
        if min(timeout_seconds, decode_timeout_seconds) <= 0 or timeout_seconds_per_megapixel < 0:
            raise CodecError("command: time-outs are positive numbers of seconds")
        parameters = _parameters(point)
        self.point = RatePoint(_label(point, parameters), _order(order, parameters), parameters)
        self._decode = _CommandLine("decode", decode, _DECODE, parameters, folder or Path())
        self._input, self._output, self._suffix = input, output, stream
        self._encode_seconds = (timeout_seconds, timeout_seconds_per_megapixel)
        self._decode_seconds = decode_timeout_seconds
        self._encode: _CommandLine | None = None
        self.fingerprint = ""
        if decode_only:
            return
        self._encode = _CommandLine("encode", encode, _ENCODE, parameters, folder or Path())
        for parameter in parameters:
            if parameter not in self._encode.placeholders | self._decode.placeholders:
                raise CodecError(f"command: the command lines use {{{parameter}}} nowhere, so every point would be the same")
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            parameters=parameters,
            encode=encode,
            decode=decode,
            formats=[input, stream, output],
            sha256={**self._encode.sha256, **self._decode.sha256},
        )

    def compress(self, image: Image) -> bytes:
        """The stream that the encoder writes. CodecError if it fails, hangs or writes none."""
        check_image(image, self.name)
        if self._encode is None:
            raise CodecError(DECODE_ONLY.format(name=self.name))
        height, width = image.shape[:2]
        base, slope = self._encode_seconds
        with temporary_folder() as name:
            folder = Path(name)
            source, stream = folder / f"input.{self._input}", folder / f"stream.{self._suffix}"
            Pillow.fromarray(image).save(source, _PILLOW[self._input])
            values = {"input": str(source), "stream": str(stream), "width": width, "height": height}
            try:
                self._encode.run(values, folder, base + slope * width * height / 1e6)
            except ProgramError as error:
                raise CodecError(f"command: {error}, for an image of {width}x{height}{error.tail}") from None
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"command: the encoder {self._encode.program} ended well but wrote nothing to {{stream}}")
            return stream.read_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image that the decoder writes, uint8 (height, width, 3). BitstreamError if it fails, hangs or writes none."""
        if not data:
            raise BitstreamError("command: an empty stream")
        with temporary_folder() as name:
            folder = Path(name)
            stream, target = folder / f"stream.{self._suffix}", folder / f"output.{self._output}"
            stream.write_bytes(data)
            try:
                self._decode.run({"stream": str(stream), "output": str(target)}, folder, self._decode_seconds)
            except ProgramError as error:
                raise BitstreamError(f"command: {error}, for a stream of {len(data)} bytes{error.tail}") from None
            if not target.is_file():
                raise BitstreamError(f"command: the decoder {self._decode.program} ended well but wrote nothing to {{output}}")
            try:
                with Pillow.open(target, formats=[_PILLOW[self._output]]) as picture:
                    if picture.mode != "RGB":
                        raise ValueError(f"its pixels are {picture.mode}, not 8-bit RGB")
                    return np.array(picture)
            except Exception as error:  # Pillow raises a dozen types on bad files
                program = self._decode.program
                raise BitstreamError(f"command: the decoder {program} wrote no readable {self._output} file: {error}") from error


class _CommandLine:
    """A checked command line: its program found, its placeholders known, its files hashed."""

    def __init__(
        self, key: str, line: Sequence[str], places: Mapping[str, Value], parameters: Mapping[str, Value], folder: Path
    ) -> None:
        if isinstance(line, str) or not line or not all(isinstance(argument, str) for argument in line):
            raise CodecError(f"command: {key} is a list of words, a program and its arguments, not {line!r}: quote numbers")
        self.role: Literal["encoder", "decoder"] = "encoder" if key == "encode" else "decoder"
        self.parameters = parameters
        known = {**places, **parameters}
        self.placeholders = {name for argument in line for name in _placeholders(key, argument, known)}
        for place, example in places.items():
            if example == "file" and place not in self.placeholders:
                raise CodecError(f"command: {key} does not use {{{place}}}: pixels and streams pass by files of these names")
        self._program = find_program(f"command: {key}", line[0], folder)
        self._arguments = list(line[1:])
        self.sha256 = {line[0]: file_sha256(self._program)}
        for number, argument in enumerate(self._arguments):
            path = (folder / argument).absolute()
            if ("/" in argument or path.suffix) and path.is_file():
                self._arguments[number] = _literal(str(path))
                self.sha256[argument] = file_sha256(path)

    @property
    def program(self) -> str:
        return Path(self._program).name

    def run(self, values: Mapping[str, Value], folder: Path, timeout: float) -> None:
        """Run to the end or to the time-out. Raises ProgramError; CodecError if the program cannot be started at all."""
        known = {**self.parameters, **values}
        arguments = [self._program, *(argument.format_map(known) for argument in self._arguments)]
        run_program("command", self.role, arguments, folder, timeout)


def _parameters(point: Any) -> dict[str, Value]:
    parameters = dict(point) if isinstance(point, Mapping) else {"point": point}
    if not parameters:
        raise CodecError("command: a point has at least one parameter, such as {qp: 32}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not name.isidentifier() or name in {*_ENCODE, *_DECODE}:
            raise CodecError(f"command: {name!r} cannot name a parameter of a point")
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise CodecError(f"command: parameter {name!r} of a point is a number or a word, not {value!r}")
    return parameters


def _label(point: Any, parameters: Mapping[str, Value]) -> str:
    return point if isinstance(point, str) else ",".join(f"{name}={value}" for name, value in parameters.items())


def _order(order: str | None, parameters: Mapping[str, Value]) -> float:
    if order is None:
        return float(next((value for value in parameters.values() if not isinstance(value, str)), 0))
    name = order.removeprefix("-")
    value = parameters.get(name)
    if value is None or isinstance(value, str):
        raise CodecError(f"command: order names a number of the point, {' or '.join(parameters)}, not {order!r}")
    return -float(value) if order.startswith("-") else float(value)


def _placeholders(key: str, argument: str, known: Mapping[str, Value]) -> list[str]:
    """Names of the placeholders in one argument, after trying them out."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(argument) if name is not None]
    except ValueError as error:
        raise CodecError(f"command: {key}: in {argument!r}: {error}; a literal brace is doubled") from error
    for name in names:
        if name not in known:
            hint = ": a stream decodes from its bytes alone" if key == "decode" and name in _ENCODE else ""
            listed = " ".join(f"{{{place}}}" for place in known)
            raise CodecError(f"command: {key}: no placeholder {{{name}}} in {argument!r}{hint}; known are {listed}")
    try:
        argument.format_map(known)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CodecError(f"command: {key}: {argument!r} cannot be filled in: {error}") from error
    return names


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
