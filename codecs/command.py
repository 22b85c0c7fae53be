"""Any external encoder and decoder, by command lines in the experiment file; no code is needed.

    codecs:
      - name: command
        label: vvc
        points: [{qp: 22}, {qp: 32}, {qp: 42}]
        set:
          encode: [vvencoder, --input, "{input}", --output, "{stream}", --qp, "{qp}"]
          decode: [vvdecoder, --bitstream, "{stream}", --output, "{output}"]
          order: -qp

    image --Pillow--> {input} --encode--> {stream} --bytes--> {stream} --decode--> {output} --Pillow--> image

This needs a POSIX system, because a hanging program is ended through its process group.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image as Pillow

from icmbench.codecs.base import (
    DECODE_ONLY_MESSAGE,
    BitstreamError,
    CodecError,
    Image,
    ParameterValue,
    RatePoint,
    file_sha256,
    fingerprint,
)
from icmbench.codecs.checks import check_image
from icmbench.codecs.process import (
    ProgramError,
    TimeLimits,
    find_program,
    folder_sha256,
    is_scratch,
    run_program,
    temporary_folder,
)

FileFormat: TypeAlias = Literal["ppm", "png", "bmp", "tif"]

_PILLOW_FORMATS = {"ppm": "PPM", "png": "PNG", "bmp": "BMP", "tif": "TIFF"}
# Placeholders of the two command lines, each with an example that checks its format specification. A command line must use all
# placeholders that stand for files; sizes are optional.
_ENCODE_EXAMPLES: dict[str, ParameterValue] = {"input": "file", "stream": "file", "width": 1, "height": 1}
_DECODE_EXAMPLES: dict[str, ParameterValue] = {"stream": "file", "output": "file"}


class Command:
    """Any external encoder and decoder, by their command lines.

    Both programs, and files and folders that arguments name (`python encode.py`, `--config=slow.cfg`, `{preset}.cfg`,
    `--model=./weights`), are in the fingerprint by SHA-256, a folder with all its files. Each call has a temporary folder as its
    working directory and a process group, which is killed when the program ends, fails or hangs. Only the decoder can notice
    truncated or altered streams: a return code other than 0 or an unreadable image is a BitstreamError.

    Args:
        point: A number or a word, which stands for {point} in the command lines; or a mapping such as {qp: 32}, whose keys are
            placeholders.
        encode: The encoder and its arguments, one list item each; no shell sees them. Placeholders are {input}, {stream},
            {width}, {height} and the point's parameters, with format specifications such as `{qp:02d}`. A literal brace is
            doubled.
        decode: The decoder and its arguments, in the same way. Placeholders are {stream}, {output} and the point's parameters,
            but no size, because a stream decodes from its bytes alone.
        input: Format of the 8-bit RGB file that the encoder reads.
        output: Format of the 8-bit RGB file that the decoder writes.
        stream: File name extension of the stream, for programs that depend on it.
        order: The parameter that sorts the points by rate; "-qp" if a larger value is a lower rate. By default the first number.
        folder: Where relative paths in the command lines start, by default the current directory. A program without a slash is
            looked up on PATH. An argument with a slash or a suffix that names a file in the folder becomes the file's absolute
            path, and so does what follows a "=" in an argument. The same is done with a folder that an argument with a slash names
            (`./weights`). Programs write temporary files into their working directory or the system's folder for them; any other
            folder that they write into must not be named, because its files would be taken for those of a model.
        timeout_seconds: Fixed part of the encoder's time limit, in seconds.
        timeout_seconds_per_megapixel: What each million pixels adds to the encoder's time limit, in seconds.
        decode_timeout_seconds: The decoder's time limit, in seconds. It is fixed, because a stream does not tell its image's size.
        decode_only: Build a codec that only decodes; the encoder may be missing. See `icmbench.codecs.base.Codec`.

    Raises:
        CodecError: an option or command line is wrong, or a program is missing.
    """

    name = "command"
    version = 1  # Raised by hand when bytes or pixels change for the same settings.

    def __init__(
        self,
        point: ParameterValue | Mapping[str, ParameterValue],
        *,
        encode: list[str],
        decode: list[str],
        input: FileFormat = "ppm",
        output: FileFormat = "ppm",
        stream: str = "bin",
        order: str | None = None,
        folder: Path | None = None,
        timeout_seconds: float = 60,
        timeout_seconds_per_megapixel: float = 600,
        decode_timeout_seconds: float = 600,
        decode_only: bool = False,
    ) -> None:
        for key, extension in {"input": input, "output": output}.items():
            if extension not in _PILLOW_FORMATS:
                raise CodecError(f"command: {key} is one of {', '.join(_PILLOW_FORMATS)}, not {extension!r}")
        if not re.fullmatch(r"[A-Za-z0-9.]+", stream):
            raise CodecError(f"command: stream is a file name extension such as 'bin', not {stream!r}")
        self._limits = TimeLimits(timeout_seconds, timeout_seconds_per_megapixel, decode_timeout_seconds)
        self._limits.check(self.name)
        parameters = _parameters(point)
        self.point = RatePoint(_point_label(point, parameters), _sort_key(order, parameters), parameters)
        self._decode = _CommandLine("decode", decode, _DECODE_EXAMPLES, parameters, folder or Path())
        self._input, self._output, self._suffix = input, output, stream
        self._encode: _CommandLine | None = None
        self.fingerprint = ""
        if decode_only:
            return
        self._encode = _CommandLine("encode", encode, _ENCODE_EXAMPLES, parameters, folder or Path())
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
        """The stream that the encoder writes.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, the encoder fails, hangs or writes nothing, or the codec only decodes.
        """
        check_image(image, self.name)
        if self._encode is None:
            raise CodecError(DECODE_ONLY_MESSAGE.format(name=self.name))
        height, width = image.shape[:2]
        with temporary_folder() as name:
            folder = Path(name)
            source, stream = folder / f"input.{self._input}", folder / f"stream.{self._suffix}"
            Pillow.fromarray(image).save(source, _PILLOW_FORMATS[self._input])
            values = {"input": str(source), "stream": str(stream), "width": width, "height": height}
            try:
                self._encode.run(values, folder, self._limits.encoder(width, height))
            except ProgramError as error:
                raise CodecError(f"command: {error}, for an image of {width}x{height}{error.tail}") from None
            if not stream.is_file() or not stream.stat().st_size:
                raise CodecError(f"command: the encoder {self._encode.program} ended well but wrote nothing to {{stream}}")
            return stream.read_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image that the decoder writes, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the stream is empty, or the decoder fails, hangs or writes no 8-bit RGB image.
        """
        if not data:
            raise BitstreamError("command: an empty stream")
        with temporary_folder() as name:
            folder = Path(name)
            stream, target = folder / f"stream.{self._suffix}", folder / f"output.{self._output}"
            stream.write_bytes(data)
            try:
                self._decode.run({"stream": str(stream), "output": str(target)}, folder, self._limits.decode)
            except ProgramError as error:
                raise BitstreamError(f"command: {error}, for a stream of {len(data)} bytes{error.tail}") from None
            if not target.is_file():
                raise BitstreamError(f"command: the decoder {self._decode.program} ended well but wrote nothing to {{output}}")
            try:
                with Pillow.open(target, formats=[_PILLOW_FORMATS[self._output]]) as picture:
                    if picture.mode != "RGB":
                        raise ValueError(f"its pixels are {picture.mode}, not 8-bit RGB")
                    return np.array(picture)
            except Exception as error:  # Pillow raises a dozen types on bad files.
                program = self._decode.program
                raise BitstreamError(f"command: the decoder {program} wrote no readable {self._output} file: {error}") from error


class _CommandLine:
    """A checked command line.

    `sha256` holds the hashes of the program and of files among the arguments, by the words of the command line.
    """

    def __init__(
        self,
        key: Literal["encode", "decode"],
        line: Sequence[str],
        examples: Mapping[str, ParameterValue],
        parameters: Mapping[str, ParameterValue],
        folder: Path,
    ) -> None:
        if isinstance(line, str) or not line or not all(isinstance(argument, str) for argument in line):
            raise CodecError(f"command: {key} is a list of words, a program and its arguments, not {line!r}: quote numbers")
        self.role: Literal["encoder", "decoder"] = "encoder" if key == "encode" else "decoder"
        self.parameters = parameters
        examples_and_parameters = {**examples, **parameters}
        self.placeholders = {name for argument in line for name in _placeholders(key, argument, examples_and_parameters)}
        for name, example in examples.items():
            if example == "file" and name not in self.placeholders:
                raise CodecError(f"command: {key} does not use {{{name}}}: pixels and streams pass by files of these names")
        self._program = find_program(f"command: {key}", line[0], folder)
        self._arguments = list(line[1:])
        self.sha256 = {line[0]: file_sha256(self._program)}
        for number, argument in enumerate(self._arguments):
            starts = [0, *(match.end() for match in re.finditer("=", argument))]
            for start in starts:
                path = self._named_path(argument[start:], folder)
                if path is not None:
                    self._arguments[number] = argument[:start] + _escape_braces(str(path))
                    is_folder = path.is_dir()
                    self.sha256[argument] = folder_sha256(f"command: {key}", path) if is_folder else file_sha256(path)
                    break

    def _named_path(self, name: str, folder: Path) -> Path | None:
        """The file or folder that a text names once the point's parameters are filled in, absolute; None if it names none."""
        try:
            # A placeholder of another kind, such as {input}, is not known before a call.
            path = (folder / name.format_map(self.parameters)).absolute()
            if ("/" in name or path.suffix) and path.is_file():
                return path
            # A word without a slash, "./" and "../" stand for what is in the temporary working directory.
            is_named = "/" in name and not set(name) <= {".", "/"}
            return path if is_named and path.is_dir() and not is_scratch(path) else None
        except (KeyError, ValueError, OSError):  # Or half of a placeholder, or a text too long for a file's name.
            return None

    @property
    def program(self) -> str:
        """File name of the program."""
        return Path(self._program).name

    def run(self, values: Mapping[str, ParameterValue], folder: Path, seconds: float) -> None:
        """Run the program in a folder, with these values of the placeholders besides the point's. Raises as `run_program`."""
        values = {**self.parameters, **values}
        arguments = [self._program, *(argument.format_map(values) for argument in self._arguments)]
        run_program("command", self.role, arguments, folder, seconds)


def _parameters(point: Any) -> dict[str, ParameterValue]:
    """The parameters of a rate point by name, checked."""
    parameters = dict(point) if isinstance(point, Mapping) else {"point": point}
    if not parameters:
        raise CodecError("command: a point has at least one parameter, such as {qp: 32}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not name.isidentifier() or name in {*_ENCODE_EXAMPLES, *_DECODE_EXAMPLES}:
            raise CodecError(f"command: {name!r} cannot name a parameter of a point")
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise CodecError(f"command: parameter {name!r} of a point is a number or a word, not {value!r}")
    return parameters


def _point_label(point: Any, parameters: Mapping[str, ParameterValue]) -> str:
    return point if isinstance(point, str) else ",".join(f"{name}={value}" for name, value in parameters.items())


def _sort_key(order: str | None, parameters: Mapping[str, ParameterValue]) -> float:
    if order is None:
        return float(next((value for value in parameters.values() if not isinstance(value, str)), 0))
    name = order.removeprefix("-")
    value = parameters.get(name)
    if value is None or isinstance(value, str):
        raise CodecError(f"command: order names a number of the point, {' or '.join(parameters)}, not {order!r}")
    return -float(value) if order.startswith("-") else float(value)


def _placeholders(key: str, argument: str, values: Mapping[str, ParameterValue]) -> list[str]:
    """Names of the placeholders in one argument. Raises CodecError unless these values can fill them in."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(argument) if name is not None]
    except ValueError as error:
        raise CodecError(f"command: {key}: in {argument!r}: {error}; a literal brace is doubled") from error
    for name in names:
        if name not in values:
            hint = ": a stream decodes from its bytes alone" if key == "decode" and name in _ENCODE_EXAMPLES else ""
            known = " ".join(f"{{{placeholder}}}" for placeholder in values)
            raise CodecError(f"command: {key}: no placeholder {{{name}}} in {argument!r}{hint}; known are {known}")
    try:
        argument.format_map(values)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CodecError(f"command: {key}: {argument!r} cannot be filled in: {error}") from error
    return names


def _escape_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
